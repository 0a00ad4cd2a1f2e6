"""Every calibrator on the Fashion-MNIST networks: ``python benches/results/calibrators.py resnet20 mobilenet``.

All layers in INT8, one scale per output channel, 512 calibration samples in batches of 32, in every dialect of
`onnxruntime-cpu` and `tensorrt`, run in ONNX Runtime on the 10,000 test images. The data: see examples/fashion_mnist.
"""

import collections
import importlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgesmith.calibration.calibrators import CALIBRATORS
from edgesmith.compressor.data import any_inputs, feeds, sample_indices
from edgesmith.compressor.int8.calibrate import calibrate
from edgesmith.core.values import Arrays
from edgesmith.exporters import from_torch
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.graph.canonical import canonicalise
from edgesmith.exporters.int8 import qdq
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession
from edgesmith.exporters.targets.targets import TARGETS

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion_mnist"


def logits(path: Path, images: Sequence[Arrays]) -> np.ndarray:
    """Outputs of a file, `(N, 10)`."""
    session = OnnxRuntimeSession(path)
    return np.concatenate([session.run(batch)["logits"] for batch in images])


def measure(name: str, folder: Path) -> None:
    """Print one line for each calibrator and dialect."""
    sys.path.insert(0, str(EXAMPLE))
    task = getattr(importlib.import_module("task"), name)()
    module = task.model()
    task.load_weights(module)
    path = folder / "float.onnx"
    from_torch.export(module.eval(), any_inputs(task), task.input_specs(), task.outputs, path)
    model = canonicalise(onnx_file.load(path))
    samples = list(feeds(task.train, sample_indices(task.train, 512), 32))
    everything = np.arange(len(task.test))
    images, labels = list(feeds(task.test, everything, 500)), task.test.batch(everything)[1]
    original = logits(path, images)
    print(f"{name}: {(original.argmax(1) == labels).mean():.4f} in float")
    for rule in CALIBRATORS:
        for target in ("onnxruntime-cpu", "tensorrt"):
            dialects, started = TARGETS[target].dialects(), time.process_time()
            found = calibrate(model, samples, rule, dialects=dialects)
            seconds = time.process_time() - started
            taken = collections.Counter(each.rule for each in found.ranges).most_common()
            for dialect in dialects:
                file = folder / "int8.onnx"
                onnx_file.save(qdq.write_qdq(model, found.params, dialect, found.keep_float), file)
                changed = logits(file, images)
                snr = 10 * np.log10((original**2).sum() / ((original - changed) ** 2).sum())
                accuracy = (changed.argmax(1) == labels).mean()
                print(f"  {rule:14} {dialect.name:13} {snr:5.1f} dB  {accuracy:.4f}  {seconds:.2f} s of CPU  {taken}")


if __name__ == "__main__":
    for each in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as scratch:
            measure(each, Path(scratch))
