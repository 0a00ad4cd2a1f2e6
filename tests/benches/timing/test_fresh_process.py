"""A fresh process: memory follows what a model holds and cancels the runtime, its start has its parts, failures say so."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgesmith.benches.timing import child, fresh_probe, fresh_process, timing_loop
from edgesmith.benches.timing.contender import Contender
from edgesmith.benches.timing.fresh_probe import maxrss_bytes
from edgesmith.benches.timing.fresh_process import measure, measure_one, succeeded
from edgesmith.core.errors import MeasurementError
from edgesmith.core.values import Artifact, TensorSpec
from tests.benches.models import WIDTH, chain, write

MB = 1_000_000


def test_a_planted_initializer_is_read_as_what_it_is(tmp_path: Path) -> None:
    """50 MB as one matrix, and as twelve; at its peak a process has the file's bytes too, or some of them."""
    one, twelve = chain(tmp_path / "one.onnx", 1, width=3536), chain(tmp_path / "twelve.onnx", 12, width=1024)
    for path, width, planted in ((one, 3536, 50.0), (twelve, 1024, 50.3)):
        found = measure_one(path, {"x": np.zeros((1, width), np.float32)}, repeats=1)
        assert found.held_memory.value / MB == pytest.approx(planted, abs=2)
        assert found.held_memory.value < found.peak_memory.value < 2.2 * planted * MB


def test_a_small_model_costs_little_and_starts_sooner(tmp_path: Path) -> None:
    small, large = chain(tmp_path / "small.onnx", 2), chain(tmp_path / "large.onnx", 600)
    rounds: list[tuple[int, int]] = []
    feed = {"x": np.zeros((1, WIDTH), np.float32)}
    tiny, big = map(succeeded, measure([small, large], feed, progress=lambda *now: rounds.append(now)))
    assert rounds == [(1, 3), (2, 3), (3, 3)]
    for found in (tiny.peak_memory, tiny.held_memory):  # a session alone takes some 40 MB
        assert 0 <= found.low <= found.value <= found.high < 3 * MB
    for name in ("open_ms", "steady_ms"):
        less, more = getattr(tiny.start, name), getattr(big.start, name)
        assert 0 < less.low <= less.value <= less.high
        assert 3 * less.value < more.value
    assert tiny.start.import_ms.value > 10 * tiny.start.steady_ms.value


def test_the_parts_of_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part lasts as long as it should, by a clock that only the session moves."""
    now = 0.0

    class Session:
        inputs = (TensorSpec(name="x", dtype="float32", shape=(1,)),)
        foreign_bytes, foreign_seconds = 3 * MB, 2.0
        calls = 0

        def run(self, feed: dict[str, np.ndarray]) -> None:
            nonlocal now
            assert list(feed) == ["x"]
            self.calls += 1
            now += 0.5 if self.calls == 1 else 0.002

    def opened(path: str, threads: int) -> Session:
        nonlocal now
        assert (path, threads) == ("a.onnx", 4)
        now += 2.125  # 2 s of them for what is not the model's
        return Session()

    clock = SimpleNamespace(perf_counter=lambda: now, perf_counter_ns=lambda: round(now * 1e9))
    monkeypatch.setattr(fresh_probe, "time", clock)
    monkeypatch.setitem(timing_loop.SESSIONS, "spy", opened)
    monkeypatch.setattr(fresh_probe, "peak_bytes", lambda: 10 * MB)
    monkeypatch.setattr(fresh_probe, "held_bytes", lambda: 7 * MB)
    found = fresh_probe.start("spy", "a.onnx", 4, None)
    assert found == pytest.approx(
        {
            "import_ms": 0,
            "open_ms": 125,
            "first_ms": 500,
            "steady_ms": 2,
            "peak_bytes": 7 * MB,
            "held_bytes": 4 * MB,
        }
    )


def test_the_arena_is_what_the_runtime_says_or_the_reason(tmp_path: Path) -> None:
    path, feed = chain(tmp_path / "a.onnx", 3, width=1024), {"x": np.zeros((2, 1024), np.float32)}
    found = measure_one(path, feed, repeats=1)
    assert found.arena is not None and found.arena_reason == ""
    assert found.arena.used_bytes == 3 * 1024 * 4096 + 3 * 2 * 4096  # weights, and three results of two samples
    assert found.arena.used_bytes <= found.arena.held_bytes
    assert fresh_process._arena(no_process, "openvino", path) == {
        "arena_reason": "of the runtimes only ONNX Runtime says what its arena holds"
    }


def no_process(*_: Any, **more: Any) -> None:
    pytest.fail("asks a process what is known without")


def test_an_arena_that_cannot_be_read_loses_no_other_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = child.run

    def crashed(program: str, job: dict[str, Any], *rest: Any) -> str:
        if job["ask"] == "arena":
            raise MeasurementError("fresh_probe: the process was ended by signal 11; files: a.onnx\n  Fatal")
        return run(program, job, *rest)

    monkeypatch.setattr(fresh_process.child, "run", crashed)
    found = measure_one(chain(tmp_path / "a.onnx", 1), {"x": np.zeros((1, WIDTH), np.float32)}, repeats=1)
    assert (found.arena, found.arena_reason) == (None, "fresh_probe: the process was ended by signal 11; files: a.onnx")
    assert found.peak_memory.value > 0


def test_a_gpus_memory_and_time_above_the_empty_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a probe that says what a GPU's would: the empty session's context and workspace are no cost of the model."""
    base = {"import_ms": 1.0, "open_ms": 2.0, "first_ms": 3.0, "steady_ms": 4.0, "peak_bytes": 9, "held_bytes": 8}

    graphs = [{"graph_ms": 1.2}, {"graph_reason": "CUDA driver: cuStreamEndCapture: out of memory (error 2)"}]

    def said(program: str, job: dict[str, Any], *_: Any) -> str:
        if job["ask"] == "arena":
            return json.dumps({"held_bytes": 2, "used_bytes": 1})
        graph = graphs.pop(0) if job["own_feed"] else {}
        taken = 350 * MB if job["own_feed"] else 300 * MB
        return json.dumps({**base, "device_bytes": taken, "device_ms": 1.5, **graph})

    monkeypatch.setattr(fresh_process.child, "run", said)
    model = Contender(label="a", session="onnxruntime-cuda", path=tmp_path / "a.onnx", file=tmp_path / "a.onnx")
    found = succeeded(measure([model], {"x": np.zeros(1)}, repeats=2)[0])
    assert found.device_memory is not None and found.device_memory.value == 50 * MB
    assert found.start.device_ms is not None and found.start.device_ms.value == 1.5
    assert (found.start.graph_ms, found.start.graph_reason[:32]) == (None, "CUDA driver: cuStreamEndCapture:")


def test_what_is_read_of_a_gpu_and_why_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter((1_000, 1_700))
    monkeypatch.setattr(fresh_probe, "Gpu", lambda: SimpleNamespace(memory_bytes=lambda: next(used)))
    assert fresh_probe._DeviceMemory("onnxruntime-cuda").taken() == {"device_bytes": 700}
    assert fresh_probe._DeviceMemory("onnxruntime-cpu").taken() == {}

    def missing() -> None:
        raise MeasurementError("nvidia-ml-py is not installed: pip install nvidia-ml-py")

    monkeypatch.setattr(fresh_probe, "Gpu", missing)
    reason = "nvidia-ml-py is not installed: pip install nvidia-ml-py"
    assert fresh_probe._DeviceMemory("tensorrt").taken() == {"device_reason": reason}


@pytest.mark.gpu
def test_an_initializer_on_the_gpu_is_read_as_what_it_is(tmp_path: Path) -> None:
    path = chain(tmp_path / "one.onnx", 1, width=3536)
    model = Contender(label="one", session="onnxruntime-cuda", path=path, file=path)
    found = succeeded(measure([model], {"x": np.zeros((1, 3536), np.float32)}, repeats=1)[0])
    assert found.device_memory is not None and 45 * MB < found.device_memory.value < 150 * MB  # its arena doubles


def test_the_feed_itself_cancels_out(tmp_path: Path) -> None:
    """40 MB of input to a model that reads one number of it."""
    nodes = [
        helper.make_node("Constant", [], ["zero"], value=helper.make_tensor("v", TensorProto.INT64, [1], [0])),
        helper.make_node("Gather", ["x", "zero"], ["y"], axis=1),
    ]
    path = write(tmp_path / "first.onnx", nodes, [], {"x": (TensorProto.FLOAT, ["batch", "n"])}, {"y": ["batch", 1]})
    assert measure_one(path, {"x": np.zeros((1, 10_000_000), np.float32)}, repeats=1).peak_memory.value < 6 * MB


def test_a_model_that_cannot_run_is_an_error_with_its_reason(tmp_path: Path) -> None:
    path = chain(tmp_path / "model.onnx", 1)
    with pytest.raises(MeasurementError, match=r"^fresh_probe: the process ended with code 1; files: .*model\.onnx\n"):
        measure_one(path, {"wrong": np.zeros((1, 128), np.float32)})


def test_a_target_without_a_runtime_here() -> None:
    artifact = Artifact(
        path=Path("x"), target="tflite", dialect="s8", precision="int8", inputs=(), outputs=(), digest=""
    )
    with pytest.raises(
        MeasurementError, match=r"^target 'tflite' cannot be measured here; measured are: onnxruntime-arm, "
    ):
        measure_one(artifact, {"x": np.zeros(1)})


def test_units() -> None:
    assert maxrss_bytes(2048, "darwin") == 2048
    assert maxrss_bytes(2048, "freebsd14") == 2048 * 1024


def test_the_peak_is_in_bytes_and_does_not_fall_again() -> None:
    code = (
        "import numpy; from edgesmith.benches.timing.fresh_probe import peak_bytes; before = peak_bytes();"
        "block = numpy.ones(8_000_000); del block; print(peak_bytes() - before)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 60 * MB < int(run.stdout) < 70 * MB


def test_what_the_allocator_keeps_for_later_is_not_held() -> None:
    code = (
        "from edgesmith.benches.timing.fresh_probe import held_bytes, resident_bytes; before = held_bytes();"
        "blocks = [bytes(60_000) for _ in range(600)]; last = bytes(60_000); del blocks;"
        "print(resident_bytes() - before, held_bytes() - before)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, held = map(int, run.stdout.split())
    assert kept > 20 * MB  # most of the 36 MB below `last`, which keeps them from going back
    assert held < 3 * MB
