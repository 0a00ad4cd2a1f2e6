"""ONNX Runtime's GPU providers: legal files without one, exact reasons, and a run where there is one."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgesmith.core.errors import QuantizationError
from edgesmith.exporters.engines import cuda_driver
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession
from edgesmith.exporters.targets.onnxruntime_gpu import OnnxRuntimeGpu
from edgesmith.exporters.targets.targets import TARGETS

from ..conftest import Network
from ..graphs import U8

NAMES = ("onnxruntime-cuda", "onnxruntime-tensorrt")


@pytest.mark.parametrize("name", NAMES)
def test_why_nothing_can_be_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "load", lambda: None)
    assert TARGETS[name].unmeasurable() == "no CUDA device"
    monkeypatch.setattr(cuda_driver, "load", object)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    device = name.removeprefix("onnxruntime-")
    assert TARGETS[name].unmeasurable() == (
        f"this ONNX Runtime {onnxruntime.__version__} cannot run on '{device}': pip install onnxruntime-gpu"
    )


def test_the_tensorrt_provider_takes_what_tensorrt_takes(vgg: Network, tmp_path: Path) -> None:
    target = OnnxRuntimeGpu(name="onnxruntime-tensorrt", device="tensorrt")
    assert target.rules() == TARGETS["tensorrt"].rules() and target.dialects() == TARGETS["tensorrt"].dialects()
    with pytest.raises(QuantizationError, match=r"^target 'onnxruntime-tensorrt' would refuse the file: "):
        target.write(vgg.model, vgg.params, U8, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_on_the_gpu(name: str, digits: Network, tmp_path: Path) -> None:
    """Needs onnxruntime-gpu in place of onnxruntime, and TensorRT beside it."""
    target = TARGETS[name]
    artifact = target.write(digits.model, digits.params, target.dialects()[0], tmp_path / "model.onnx")
    (here,), (there,) = (
        session.run(digits.feed).values()
        for session in (OnnxRuntimeSession(artifact.path), target.open(artifact.path, 1))
    )
    assert (here.argmax(1) == there.argmax(1)).mean() >= 0.99
    np.testing.assert_allclose(there, here, atol=0.1 * np.abs(here).max())
