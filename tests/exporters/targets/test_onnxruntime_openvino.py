"""OpenVINO inside ONNX Runtime: the same files as for OpenVINO itself, an exact reason, and a run."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgesmith.benches.device import on_device
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession
from edgesmith.exporters.targets.targets import TARGETS

from ..conftest import Network

TARGET = TARGETS["onnxruntime-openvino"]


def test_its_files_are_openvinos() -> None:
    openvino = TARGETS["openvino"]
    assert (TARGET.dialects(), TARGET.rules(), TARGET.channel_multiple) == (
        openvino.dialects(), openvino.rules(), openvino.channel_multiple,
    )  # fmt: skip


def test_why_nothing_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    reason = f"this ONNX Runtime {onnxruntime.__version__} cannot run on 'openvino'"
    assert TARGET.unmeasurable() == f"{reason}: pip install onnxruntime-openvino"
    assert on_device.unmeasurable(TARGET.name) == f"{reason}; pip install onnxruntime-openvino"


THERE = """
import sys
import numpy as np
from edgesmith.benches.timing import timing_loop
from edgesmith.exporters.targets.targets import TARGETS

target, feed = TARGETS["onnxruntime-openvino"], dict(np.load("feed.npz"))
assert target.unmeasurable() is None
for name in sys.argv[1:]:
    (found,) = target.open(name, 1).run(feed).values()
    timing_loop.opener(target.name)(name, 1).bind(feed)()
    np.save(f"{name}.npy", found)
"""


@pytest.mark.long
def test_openvino_runs_its_files(digits: Network, tmp_path: Path) -> None:
    """Fetches the package, which takes the place of onnxruntime, for a process of its own."""
    package = tmp_path / "package"
    fetch = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(package)]
    subprocess.run([*fetch, "onnxruntime-openvino==1.24.1"], check=True)
    names = [f"{each.name}.onnx" for each in TARGET.dialects()]
    for dialect, name in zip(TARGET.dialects(), names, strict=True):
        TARGET.write(digits.model, digits.params, dialect, tmp_path / name)
    np.savez(tmp_path / "feed.npz", **digits.feed)
    environment = {**os.environ, "PYTHONPATH": str(package)}
    subprocess.run([sys.executable, "-c", THERE, *names], cwd=tmp_path, env=environment, check=True)
    for name in names:
        (here,) = OnnxRuntimeSession(tmp_path / name, exact=True).run(digits.feed).values()
        there = np.load(f"{tmp_path / name}.npy")
        assert (here.argmax(1) == there.argmax(1)).mean() >= 0.99
        np.testing.assert_allclose(there, here, atol=0.1 * np.abs(here).max())
