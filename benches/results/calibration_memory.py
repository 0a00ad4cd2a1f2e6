"""Resident memory of calibration, by number of samples: ``python benches/results/calibration_memory.py``.

A convolutional network of 1.1 M parameters (VGG-like, 3x32x32) is calibrated through `sessions/taps.observe`, as the
quantize stage does it: each count in fresh processes. Printed is what the pass adds to the loaded session: its peak
less what was resident when the first batch was asked for. Samples are drawn batch by batch; data held would count.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

COUNTS, REPEATS, BATCH = (256, 1024, 4096), 5, 32
WIDTHS = (64, 64, 128, 128, 256, 256)


def write_network(path: Path) -> None:
    """Export the network with random weights; memory does not depend on their values."""
    import torch
    from torch import nn

    from edgesmith.core.values import TensorSpec
    from edgesmith.exporters.from_torch import export

    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(zip((3, *WIDTHS), WIDTHS, strict=False)):
        layers += [nn.Conv2d(before, after, 3, 2 if index in (2, 4) else 1, 1), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 10))
    torch.manual_seed(0)
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 3, 32, 32))
    export(network, {"x": np.random.default_rng(0).standard_normal((8, 3, 32, 32), np.float32)}, (spec,), ("y",), path)


def measure(path: Path, count: int) -> tuple[int, int]:
    """Bytes resident with the session loaded, before the first batch, and the peak during the whole pass."""
    from edgesmith.benches.timing.fresh_probe import forget_peak, peak_bytes, resident_bytes
    from edgesmith.exporters.graph import onnx_file
    from edgesmith.exporters.graph.canonical import canonicalise
    from edgesmith.exporters.int8 import placement
    from edgesmith.exporters.sessions import taps

    model = canonicalise(onnx_file.load(path))
    tensors = placement.tensors_to_observe(placement.place(model))
    loaded = 0

    def batches() -> Iterator[dict[str, np.ndarray]]:
        nonlocal loaded
        forget_peak()
        loaded = resident_bytes()
        rng = np.random.default_rng(0)
        for _ in range(0, count, BATCH):
            yield {"x": rng.standard_normal((BATCH, 3, 32, 32), np.float32)}

    taps.observe(model, batches(), tensors)
    return loaded, peak_bytes()


def main() -> None:
    """Print one line for each count."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        write_network(path)
        for count in COUNTS:
            found = []
            for _ in range(REPEATS):
                command = [sys.executable, __file__, str(path), str(count)]
                loaded, peak = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                found.append((loaded / 1e6, peak / 1e6))
            added = sorted(peak - loaded for loaded, peak in found)
            before = statistics.median(loaded for loaded, _ in found)
            print(
                f"{count:5d} samples: {statistics.median(added):.1f} MB above the loaded session "
                f"({added[0]:.1f} to {added[-1]:.1f}), which has {before:.1f} MB",
                flush=True,
            )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]))))
    else:
        main()
