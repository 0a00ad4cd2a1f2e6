"""Peak memory: follows what a model holds, cancels what the runtime takes, says what failed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgesmith.benches.memory import peak_memory, peak_memory_interval
from edgesmith.benches.memory_probe import maxrss_bytes
from edgesmith.core.errors import MeasurementError
from edgesmith.core.values import Artifact
from tests.benches.models import chain, write

MB = 1_000_000


def test_it_counts_weights_and_activations_and_not_the_runtime(tmp_path: Path) -> None:
    # 8 x 1024 x 1024 floats: 33.5 MB of weights, held at least once, at most as file, initialiser and packed copy.
    large = chain(tmp_path / "large.onnx", 8, width=1024)
    found = peak_memory(large, {"x": np.zeros((1, 1024), np.float32)})
    assert 30 * MB < found < 3.5 * 33.6 * MB
    small = chain(tmp_path / "small.onnx", 2, width=16)
    tiny = peak_memory_interval(small, {"x": np.zeros((1, 16), np.float32)}, repeats=3)
    assert 0 <= tiny.low <= tiny.value <= tiny.high < 3 * MB  # a session alone takes some 40 MB


def test_the_feed_itself_cancels_out(tmp_path: Path) -> None:
    """40 MB of input to a model that reads one number of it."""
    nodes = [
        helper.make_node("Constant", [], ["zero"], value=helper.make_tensor("v", TensorProto.INT64, [1], [0])),
        helper.make_node("Gather", ["x", "zero"], ["y"], axis=1),
    ]
    path = write(tmp_path / "first.onnx", nodes, [], {"x": (TensorProto.FLOAT, ["batch", "n"])}, {"y": ["batch", 1]})
    assert peak_memory(path, {"x": np.zeros((1, 10_000_000), np.float32)}) < 6 * MB


def test_a_model_that_cannot_run_is_an_error_with_its_reason(tmp_path: Path) -> None:
    path = chain(tmp_path / "model.onnx", 1)
    with pytest.raises(MeasurementError, match=r"^memory_probe: the process ended with code 1; files: .*model\.onnx\n"):
        peak_memory(path, {"wrong": np.zeros((1, 128), np.float32)})


def test_a_target_without_a_runtime_here() -> None:
    artifact = Artifact(
        path=Path("x"), target="tflite", dialect="s8", precision="int8", inputs=(), outputs=(), digest=""
    )
    with pytest.raises(
        MeasurementError, match=r"^target 'tflite' cannot be measured here; measured are: onnxruntime-arm, "
    ):
        peak_memory(artifact, {"x": np.zeros(1)})


def test_units() -> None:
    assert maxrss_bytes(2048, "darwin") == 2048
    assert maxrss_bytes(2048, "freebsd14") == 2048 * 1024


def test_the_peak_is_in_bytes_and_does_not_fall_again() -> None:
    code = (
        "import numpy; from edgesmith.benches.memory_probe import peak_bytes; before = peak_bytes();"
        "block = numpy.ones(8_000_000); del block; print(peak_bytes() - before)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 60 * MB < int(run.stdout) < 70 * MB
