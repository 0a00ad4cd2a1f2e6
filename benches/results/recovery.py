"""What recovery gives back where one scale per weight tensor is too coarse: ``python benches/results/recovery.py NET``.

NET is the MobileNet of examples/fashion_mnist in one of three forms, or a small transformer: `vit`, trained here, and
`vit-rescaled`, the same with outlier channels behind its norms (of up to FACTOR, and the function is kept). `relu6` is
the MobileNet as it was trained. In `relu6-rescaled` and `relu-rescaled` the channels of consecutive layers are
rescaled at random by up to FACTOR either way, which keeps the function and is what batch norms with small variances do
to a network by themselves. `relu-rescaled` has ReLU in place of ReLU6, as Nagel et al. (2019) do it, and is not
trained again. Behind ReLU6 only channels that never reach its bound are rescaled.

Ranges are min-max over 512 training images; every file is that of dialect `u8`, run by ONNX Runtime on the 10,000 test
images. Printed is a Markdown table. `--split validation` is what settings were chosen on.
"""

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import safetensors.torch
from torch import nn

from edgesmith.benches.metrics.accuracy import labels_of, paired_drop, predict
from edgesmith.benches.metrics.metrics import METRICS, scores_of
from edgesmith.compressor.int8 import recover, recover_equalize, recover_smooth
from edgesmith.core.task import Split
from edgesmith.core.values import Arrays, TensorSpec
from edgesmith.exporters import from_torch
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.graph.canonical import canonicalise
from edgesmith.exporters.graph.graph_index import GraphIndex, replaced, with_own_vectors
from edgesmith.exporters.int8 import placement, qdq
from edgesmith.exporters.sessions import taps
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession
from edgesmith.exporters.targets.onnxruntime_cpu import OnnxRuntimeCpu

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion_mnist"
SAMPLES, BATCH = 512, 32
COMBINATIONS: tuple[tuple[str, ...], ...] = (
    ("equalize",),
    ("bias-correction",),
    ("round",),
    ("equalize", "bias-correction"),
    ("equalize", "round"),
    ("round", "bias-correction"),
    ("equalize", "round", "bias-correction"),
)
OF_THE_VIT: tuple[tuple[str, ...], ...] = (
    ("smooth",),
    ("bias-correction",),
    ("round",),
    ("smooth", "bias-correction"),
    ("smooth", "round"),
    ("smooth", "round", "bias-correction"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=("relu6", "relu6-rescaled", "relu-rescaled", "vit", "vit-rescaled"))
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--factor", type=float, default=16.0)
    parser.add_argument("--epochs", type=int, default=4, help="of the vit")
    parser.add_argument("--checkpoint", type=Path, help="of the vit: used where it is there, else written")
    options = parser.parse_args()
    sys.path.insert(0, str(EXAMPLE))
    data = importlib.import_module("images").splits()
    model = network(options, data["train"])
    combinations = OF_THE_VIT if options.network.startswith("vit") else COMBINATIONS
    with tempfile.TemporaryDirectory() as folder:
        print_table(model, combinations, data["train"], data[options.split], Path(folder) / "model.onnx")


def print_table(
    model: onnx.ModelProto, combinations: Sequence[tuple[str, ...]], images: Split, judged: Split, path: Path
) -> None:
    onnx_file.save(model, path)
    reference = scores(path, judged)
    print(f"float: {100 * reference.mean():.2f} %\n")
    print("| weights | recover | accuracy | drop in points, 95 % | of the loss recovered | seconds |")
    print("|---|---|---|---|---|---|")
    lost = 0.0
    for weights, names in (("per-channel", ()), ("per-tensor", ()), *(("per-tensor", c) for c in combinations)):
        seconds = quantize(model, names, weights == "per-tensor", images, path)
        found = scores(path, judged)
        drop = paired_drop(METRICS["accuracy"], reference, found, 0.95)
        lost = drop.value if weights == "per-tensor" and not names else lost
        share = f"{100 * (1 - drop.value / lost):.0f} %" if names and lost >= 0.02 else "n/a"
        told = f"{100 * drop.value:.2f} ({100 * drop.low:.2f} to {100 * drop.high:.2f}) | {share} | {seconds:.1f}"
        print(f"| {weights} | {', '.join(names) or '-'} | {100 * found.mean():.2f} % | {told} |", flush=True)


def scores(path: Path, split: Split) -> np.ndarray:
    """1 for every image that the file gets right."""
    return scores_of(METRICS["accuracy"], predict(OnnxRuntimeSession(path), split, 250), labels_of(split))


def network(options: argparse.Namespace, images: Split) -> onnx.ModelProto:
    """The canonical float graph."""
    name = options.network
    if name.startswith("vit"):
        module = vit(options.epochs, options.checkpoint)
    else:
        module = importlib.import_module("networks").MobileNet()
        importlib.import_module("train").load("mobilenet", module)
    spec = TensorSpec(name="image", dtype="float32", shape=("batch", 1, 28, 28))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        from_torch.export(module, next(batches(images)), (spec,), ("logits",), path)
        model = canonicalise(onnx_file.load(path))
    if name.startswith("relu-"):
        for node in model.graph.node:
            if node.op_type == "Clip":
                node.op_type = "Relu"
                del node.input[1:]
    model = with_own_vectors(model)
    if name == "vit-rescaled":
        return with_outliers(model, options.factor)
    return rescaled(model, images, options.factor) if name.endswith("-rescaled") else model


def with_outliers(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """Normalized channels multiplied by random factors from 1 on and divided again by the products that read them."""
    graph, rng = GraphIndex(model), np.random.default_rng(0)
    values: dict[str, np.ndarray] = {}
    for site in recover_smooth.sites(model):
        width = len(graph.constant(site.affine[0]))  # type: ignore[arg-type]  # a site's are constants
        values |= recover_smooth.rescaled(site, factor ** -rng.uniform(0, 1, width), graph)
    return replaced(model, values)


def vit(epochs: int, checkpoint: Path | None) -> nn.Module:
    """The vision transformer, trained here unless the checkpoint is there."""
    file = importlib.import_module("recovery_vit")
    if checkpoint is None or not checkpoint.exists():
        fresh: nn.Module = file.trained(epochs)
        if checkpoint is not None:
            safetensors.torch.save_file(fresh.state_dict(), checkpoint)
        return fresh
    module: nn.Module = file.ViT()
    module.load_state_dict(safetensors.torch.load_file(checkpoint))
    return module.eval()


def rescaled(model: onnx.ModelProto, images: Split, factor: float) -> onnx.ModelProto:
    """Channels divided by random factors and multiplied again by the next layer; none grows past a Clip's bound."""
    found = recover_equalize.pairs(model)
    values, rng = recover_equalize.constants(model, found), np.random.default_rng(0)
    ranges = taps.channel_ranges(model, batches(images), recover_equalize.tensors(model))
    for pair in found:
        peaks = np.maximum(ranges[pair.first.output[0]][1].astype(np.float64), 0)
        scale = factor ** rng.uniform(-1, 1, len(peaks))
        scale = np.where(peaks > pair.bound, 1.0, np.maximum(scale, peaks / pair.bound))
        recover_equalize.rescale(pair, scale, values)
    return replaced(model, values)


def quantize(model: onnx.ModelProto, names: Sequence[str], per_tensor: bool, images: Split, path: Path) -> float:
    """Write the INT8 file; returns the seconds that took, recovery included."""
    start = time.monotonic()
    dialect = OnnxRuntimeCpu().dialects()[0]
    model, _ = recover.before_ranges(names, model, lambda: batches(images), "cpu", "recover")
    placed = placement.place(model)
    seen = taps.observe(model, batches(images), placement.tensors_to_observe(placed))
    params = qdq.weight_params(model, placed, per_tensor) | {
        name: qdq.activation_params(found.low, found.high, "min-max") for name, found in seen.items()
    }
    model, _ = recover.after_ranges(names, model, placed, params, dialect, lambda: batches(images), "cpu", "recover")
    OnnxRuntimeCpu().write(model, params, dialect, path)
    return time.monotonic() - start


def batches(images: Split) -> Iterator[Arrays]:
    """The calibration samples."""
    chosen = np.random.default_rng(0).permutation(len(images))[:SAMPLES]
    for start in range(0, SAMPLES, BATCH):
        yield images.batch(chosen[start : start + BATCH])[0]


if __name__ == "__main__":
    main()
