"""Seconds and memory of every recovery together on 5 M parameters: ``python benches/results/recovery_cost.py``.

MobileNetV2 for 224x224 images, its last two layers widened until it has 5.0 M parameters; random weights and images, on
which neither hangs. 512 samples in batches of 8.
"""

import importlib
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from edgesmith.compressor.int8 import recover
from edgesmith.core.values import Arrays, TensorSpec
from edgesmith.exporters import from_torch
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.graph.canonical import canonicalise
from edgesmith.exporters.int8 import placement, qdq
from edgesmith.exporters.sessions import taps
from edgesmith.exporters.targets.onnxruntime_cpu import OnnxRuntimeCpu

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion_mnist"
NAMES = ("equalize", "smooth", "round", "bias-correction")
PLAN = (  # outputs, blocks, stride, expansion
    (16, 1, 1, 1), (24, 2, 2, 6), (32, 3, 2, 6), (64, 4, 2, 6), (96, 3, 1, 6), (160, 3, 2, 6), (480, 1, 1, 6),
)  # fmt: skip
SIZE, SAMPLES, BATCH = 224, 512, 8


def main() -> None:
    sys.path.insert(0, str(EXAMPLE))
    model, dialect = network(), OnnxRuntimeCpu().dialects()[0]
    before, started = peak(), time.monotonic()
    model, notes = recover.before_ranges(NAMES, model, batches, "cpu", "recover")
    folded = time.monotonic()
    placed = placement.place(model)
    seen = taps.observe(model, batches(), placement.tensors_to_observe(placed))
    params = qdq.weight_params(model, placed) | {
        name: qdq.activation_params(found.low, found.high, "min-max") for name, found in seen.items()
    }
    ranged, reached = time.monotonic(), peak()
    _, more = recover.after_ranges(NAMES, model, placed, params, dialect, batches, "cpu", "recover")
    ended = time.monotonic()
    print("; ".join([*notes, *more]))
    print(f"before ranges {folded - started:.0f} s, ranges {ranged - folded:.0f} s, after {ended - ranged:.0f} s")
    print(f"in all {ended - started:.0f} s, {time.process_time():.0f} s of one core with the export")
    print(f"peak memory: {before} MB before, {reached} MB after the ranges, {peak()} MB at the end")


def network() -> onnx.ModelProto:
    """The canonical graph."""
    torch.manual_seed(0)
    networks = importlib.import_module("networks")
    layers, inputs = [networks._convolution(3, 32, 3, 2), nn.ReLU6()], 32
    for outputs, blocks, stride, expansion in PLAN:
        for index in range(blocks):
            layers.append(networks.InvertedResidual(inputs, outputs, stride if index == 0 else 1, expansion))
            inputs = outputs
    head = [networks._convolution(inputs, 2048, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    module, images = nn.Sequential(*layers, *head, nn.Linear(2048, 1000)), next(batches())
    print(f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.1f} M parameters")
    with torch.no_grad():
        module.train()(torch.tensor(images["x"]))
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 3, SIZE, SIZE))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        from_torch.export(module.eval(), images, (spec,), ("y",), path)
        return canonicalise(onnx_file.load(path))


def batches() -> Iterator[Arrays]:
    rng = np.random.default_rng(0)
    for _ in range(0, SAMPLES, BATCH):
        yield {"x": rng.standard_normal((BATCH, 3, SIZE, SIZE), np.float32)}


def peak() -> int:
    """Largest resident memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
