"""Paired latency in the real runtime: honest on identical files, right on a known ratio, clean when it fails."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.benches.timing import latency, throughput_loop, timing_loop
from edgesmith.benches.timing.latency import compare, rotating_feeds
from edgesmith.core.errors import DataError, MeasurementError, UsageError
from edgesmith.core.task import ArraySplit
from edgesmith.core.values import Artifact
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession
from tests.benches.models import WIDTH, chain

RNG = np.random.default_rng(0)


def feed(batch: int) -> dict[str, np.ndarray]:
    return {"x": RNG.standard_normal((batch, WIDTH)).astype(np.float32)}


@pytest.mark.alone
def test_identical_files_show_no_speed_up_and_half_the_layers_show_two(tmp_path: Path) -> None:
    whole, half = chain(tmp_path / "whole.onnx", 16), chain(tmp_path / "half.onnx", 8)
    done: list[tuple[int, int]] = []
    small, large = compare(
        [whole, whole, half],
        {1: feed(1), 16: [feed(16), feed(16)]},
        seconds=2.0,
        progress=lambda finished, all_: done.append((finished, all_)),
    )
    assert done == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert (small.batch, large.batch, large.threads, large.restarts) == (1, 16, 1, 5)
    for result in (small, large):
        same, twice = result.speedup
        assert same.low <= 1.0 <= same.high
        assert same.value == pytest.approx(1.0, abs=0.08)
        # Half the products, the same fixed cost of a call: a little under, or through better caching over, 2.
        assert 1.6 < twice.value < 2.6
        assert 1.2 < twice.low < twice.value < twice.high
        assert 0 < result.noise_floor < 0.5
        baseline, _, faster = result.latency
        assert baseline.p90 is not None and baseline.p90 > baseline.p50
        assert baseline.low <= baseline.p50 <= baseline.high
        assert baseline.p50 / faster.p50 == pytest.approx(twice.value, rel=0.3)
    # Milliseconds: a chain of 16 products of 16 x 128 x 128 takes some 0.1 ms, not 100 and not 0.0001.
    assert 0.01 < large.latency[0].p50 < 10


@pytest.mark.parametrize(
    ("calls", "most"), [(28, 0.75), (30, 0.9), (298, 0.95), (300, 0.99), (2990, 0.99), (3000, 0.999)]
)
def test_percentiles_of_single_calls(calls: int, most: float) -> None:
    """1 to 3 ms, evenly, in two restarts: each quantile is where it must be, and a tail needs enough calls."""
    times = np.linspace(1.0, 3.0, calls)
    found = latency._latency([{"k": times[::2]}, {"k": times[1::2]}], "k", 0.95)
    shares = [share for share, _ in found.quantiles]
    assert shares == [share for share in latency.SHARES if share <= most or share == 1]
    assert (found.calls, found.p50) == (calls, pytest.approx(2.0))
    tails = {0.9: found.p90, 0.99: found.p99, 0.999: found.p999}
    assert tails == {share: pytest.approx(1 + 2 * share) if share <= most else None for share in tails}
    assert [value for _, value in found.quantiles] == pytest.approx([1 + 2 * share for share in shares], abs=1e-9)


@pytest.mark.parametrize(
    ("files", "restarts", "text"),
    [
        (1, 5, "a paired measurement needs at least 2 files, got 1"),
        (2, 4, "restarts: 4 cannot give an interval at 95% confidence; use at least 5"),
    ],
)
def test_too_few_to_say_anything(files: int, restarts: int, text: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        compare([Path("a.onnx")] * files, {1: feed(1)}, restarts=restarts)


def test_targets_that_cannot_be_timed_or_paired() -> None:
    def artifact(target: str) -> Artifact:
        return Artifact(
            path=Path("a"), target=target, dialect="float", precision="float32", inputs=(), outputs=(), digest=""
        )

    with pytest.raises(MeasurementError, match=r"^target 'tflite' cannot be timed here; timed are: onnxruntime-arm, "):
        compare([artifact("tflite"), artifact("tflite")], {1: feed(1)})
    with pytest.raises(UsageError, match=r"^files of different targets cannot be paired: onnxruntime-cpu, tensorrt$"):
        compare([Path("a.onnx"), artifact("tensorrt")], {1: feed(1)})


def test_feeds_must_agree() -> None:
    with pytest.raises(DataError, match=r"^batch 2: inputs \['y'\] differ from \['x'\]$"):
        compare([Path("a.onnx")] * 2, {1: feed(1), 2: {"y": np.zeros((2, 1))}})
    with pytest.raises(DataError, match=r"^a measurement needs at least one batch size, and inputs for each$"):
        compare([Path("a.onnx")] * 2, {1: []})


def test_a_crash_brings_the_end_of_its_stderr(tmp_path: Path) -> None:
    whole = chain(tmp_path / "whole.onnx", 1)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(MeasurementError) as caught:
        compare([whole, broken], {1: feed(1)}, seconds=0.1)
    first, *rest = str(caught.value).splitlines()
    assert first == f"timing_loop: the process ended with code 1; files: {whole}, {broken}"
    assert 1 <= len(rest) <= 12
    assert "broken.onnx" in rest[-1] or any("broken.onnx" in line for line in rest)


@pytest.mark.alone
def test_a_process_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    whole = chain(tmp_path / "whole.onnx", 1)
    start = time.monotonic()
    with pytest.raises(
        MeasurementError, match=r"^timing_loop: no result after 0\.5 s, the process was stopped; files: "
    ):
        compare([whole, whole], {1: feed(1)}, seconds=500.0, timeout=0.5)
    assert time.monotonic() - start < 5


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def _wait(condition: Callable[[], bool], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_no_measurement_outlives_who_asked_for_it(tmp_path: Path, signal_number: signal.Signals) -> None:
    whole = chain(tmp_path / "whole.onnx", 1)
    program = textwrap.dedent(f"""
        import numpy, pathlib
        from edgesmith.benches.timing.latency import compare
        feed = {{"x": numpy.zeros((1, {WIDTH}), "float32")}}
        compare([pathlib.Path({str(whole)!r})] * 2, {{1: feed}}, seconds=5000.0)
    """)
    # A session of its own: the signal must reach the parent alone.
    environment = os.environ | {"TMPDIR": str(tmp_path)}  # what a killed parent cannot remove
    with subprocess.Popen(
        [sys.executable, "-c", program], start_new_session=True, stderr=subprocess.PIPE, env=environment
    ) as parent:
        assert _wait(lambda: bool(_children(parent.pid)))
        (child,) = _children(parent.pid)
        time.sleep(1.5)  # into the measuring loop
        os.kill(parent.pid, signal_number)
        parent.communicate(timeout=15)
        assert parent.returncode == -signal_number
        assert _wait(lambda: not _alive(child))


def test_the_child_imports_no_training_library() -> None:
    code = (
        "import sys; from edgesmith.benches.timing import timing_loop; import edgesmith.exporters.sessions.ort_session;"
        "print(sorted({'torch', 'onnx', 'pydantic', 'rich', 'jinja2'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_feeds_take_turns_through_the_split() -> None:
    split = ArraySplit({"x": np.arange(10)})
    feeds = rotating_feeds(split, [1, 4, 16], rotate=3)
    assert [one["x"].tolist() for one in feeds[1]] == [[0], [1], [2]]
    assert [one["x"].tolist() for one in feeds[4]] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [one["x"].tolist() for one in feeds[16]] == [[*range(10), *range(6)]]


def test_quads_balance_a_drift_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that slows down by 40 % meanwhile, sequential means would be wrong; quads are not."""
    clock = Clock()
    monkeypatch.setattr(timing_loop, "time", clock)
    runners = [[clock.runner(cost_ms)] for cost_ms in (1.0, 0.5, 1.0)]
    singles, quads = timing_loop._measure(runners, 2.0, np.random.default_rng(0), os.getppid())
    assert np.exp(np.median(quads[1])) == pytest.approx(2.0, rel=2e-3)
    assert np.exp(np.median(quads[2])) == pytest.approx(1.0, rel=2e-3)
    assert np.max(singles[0]) / np.min(singles[0]) > 1.2
    assert quads[0] == []


class Clock:
    """Stands for the module `time`: only running a model lets it pass, 1 % slower every 50 ms."""

    def __init__(self) -> None:
        self.now = 0.0

    def runner(self, cost_ms: float) -> Callable[[], None]:
        def run() -> None:
            self.now += cost_ms / 1e3 * (1 + self.now / 5.0)

        return run

    def perf_counter(self) -> float:
        return self.now

    def perf_counter_ns(self) -> int:
        return round(self.now * 1e9)


def test_blocks_last_about_three_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(timing_loop, "time", clock)
    assert timing_loop._runs_per_block([clock.runner(0.05)]) == pytest.approx(60, abs=1)
    assert timing_loop._runs_per_block([clock.runner(100.0)]) == 1


class _Spy:
    """A session that says what was asked of it."""

    def __init__(self, path: str, log: list[str]) -> None:
        self.path, self.log = path, log

    def bind(self, feed: Mapping[str, np.ndarray]) -> Callable[[], None]:
        return lambda: time.sleep(0.001)

    def close(self) -> None:
        self.log.append(f"close {self.path}")


def test_the_baseline_is_loaded_twice_and_everything_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    loaded: list[str] = []

    def open_spy(path: str, threads: int) -> _Spy:
        loaded.append(path)
        return _Spy(path, log)

    monkeypatch.setitem(timing_loop.SESSIONS, "spy", open_spy)
    np.savez(tmp_path / "feeds.npz", **{"1.0.0": np.zeros(1)})
    job = {
        "files": ["a", "b"],
        "targets": ["spy", "spy"],
        "threads": 1,
        "seconds": 0.0,
        "seed": 3,
        "parent": os.getppid(),
        "inputs": ["x"],
        "batches": [{"batch": 1, "feeds": 1}],
        "feeds": str(tmp_path / "feeds.npz"),
    }
    results = timing_loop.run_job(job)
    assert sorted(loaded) == ["a", "a", "b"]
    assert sorted(log[-3:]) == ["close a", "close a", "close b"]
    assert len(results["quads.1.1"]) == len(results["quads.1.2"]) == timing_loop.MIN_ROUNDS
    assert len(results["quads.1.0"]) == 0


@pytest.mark.alone
def test_our_own_part_of_a_call_of_one_millisecond_is_below_one_percent(tmp_path: Path) -> None:
    """A runtime that takes no time at all: what is left of a call is ours, and has to stay below 10 us."""

    class Nothing:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            return lambda *_: self if name == "io_binding" else [np.zeros((1, WIDTH))]

    session = OnnxRuntimeSession(chain(tmp_path / "a.onnx", 1))
    session._session = Nothing()
    runners = [session.bind(feed(1)) for _ in range(4)]
    # The quicker ones: what a busy machine adds is not ours.
    assert np.quantile(timing_loop._block(runners, 2000, 0), 0.25) < 0.01 * 1e6
    with ThreadPoolExecutor(1) as pool:
        rates = [throughput_loop.window(runners[:1], pool, 2).rate for _ in range(50)]
    assert max(rates) > 1e3 / 0.01
