"""Several contenders in one table: what is measured of each, what is said of one that cannot be measured."""

import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from edgesmith.benches.report.side_by_side_table import print_side_by_side
from edgesmith.benches.timing import fresh_process
from edgesmith.benches.timing.contender import Contender
from edgesmith.benches.timing.fresh_process import Arena, FreshProcess, Start
from edgesmith.benches.timing.latency import Latency
from edgesmith.benches.timing.side_by_side import Rate, Row, SideBySide, Timing, measure, steps
from edgesmith.core.errors import MeasurementError
from edgesmith.core.values import Interval
from tests.benches.models import WIDTH, chain

FEEDS = {4: [{"x": np.zeros((4, WIDTH), np.float32)}]}


def contender(path: Path, label: str, **keys: object) -> Contender:
    return Contender(**{"label": label, "session": "onnxruntime-cpu", "path": path, "file": path, **keys})


@pytest.mark.alone
def test_two_that_work_and_two_that_do_not(tmp_path: Path) -> None:
    slow, fast = chain(tmp_path / "slow.onnx", 16), chain(tmp_path / "fast.onnx", 4)
    all_ = [
        contender(slow, "slow"),
        contender(slow, "absent", session="gpu", reason="no CUDA device"),
        contender(slow, "broken", session="tests.benches.no_such_module:open", optional=True),
        contender(fast, "fast"),
    ]
    done: list[tuple[int, int]] = []
    result = measure(all_, FEEDS, concurrency=[2], seconds=0.5, progress=lambda *now: done.append(now))
    assert done == [(number, 13) for number in range(1, steps(concurrency=[2]) + 1)]
    assert [row.label for row in result.rows] == ["slow", "absent", "broken", "fast"]
    first, absent, broken, last = result.rows
    assert first.file_bytes == slow.stat().st_size
    assert first.peak_memory is not None and last.peak_memory is not None
    assert first.peak_memory.value > last.peak_memory.value  # 12 more matrices of 64 kB, held at least once
    assert first.held_memory is not None and last.held_memory is not None
    assert first.held_memory.value > last.held_memory.value
    assert first.arena is not None and last.arena is not None
    assert first.arena.used_bytes - last.arena.used_bytes == 12 * WIDTH * WIDTH * 4
    assert first.start is not None and 0 < first.start.open_ms.low <= first.start.open_ms.high
    assert (absent.reason, absent.peak_memory, absent.start, absent.timings) == ("no CUDA device", None, None, ())
    assert broken.reason.startswith("broken failed: edgesmith.core.errors.RecipeError: session: cannot import 'tests.")
    (baseline,), (timing,) = first.timings, last.timings
    assert (baseline.batch, baseline.speedup) == (4, None)
    assert timing.speedup is not None and 2.0 < timing.speedup.value < 6.0
    (rate,), (faster,) = first.throughput, last.throughput
    assert (rate.batch, rate.concurrency, rate.ratio) == (4, 2, None)
    assert faster.ratio is not None and 1.5 < faster.ratio.value < 8.0
    assert rate.per_second.low <= rate.per_second.value < faster.per_second.value
    assert (absent.throughput, absent.throughput_reason) == ((), "no CUDA device")
    assert json.loads(json.dumps(asdict(result), allow_nan=False))["rows"][3]["timings"][0]["batch"] == 4


def test_one_alone_is_no_comparison(tmp_path: Path) -> None:
    path = chain(tmp_path / "a.onnx", 1)
    with pytest.raises(MeasurementError) as caught:
        measure([contender(path, "a"), contender(path, "b", reason="no CUDA device")], FEEDS)
    assert str(caught.value) == ("a comparison needs two that can be measured here, found 1; b: no CUDA device")


def test_sessions_that_take_one_call_at_a_time_have_no_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is timed: an engine beside one file alone."""
    path = Path("a.onnx")
    monkeypatch.setattr(fresh_process, "measure", lambda files, *_, **__: [FRESH for _ in files])
    with pytest.raises(MeasurementError) as caught:
        measure([contender(path, "engine", session="tensorrt"), contender(path, "b")], FEEDS, concurrency=[2])
    assert str(caught.value) == (
        "throughput needs two whose sessions several threads can call, found 1; "
        "engine: an engine's session runs one call at a time; leave out the concurrency"
    )


def test_a_failure_that_is_not_optional_is_an_error(tmp_path: Path) -> None:
    path = chain(tmp_path / "a.onnx", 1)
    with pytest.raises(MeasurementError, match=r"^fresh_probe: the process ended with code 1; files: "):
        measure([contender(path, "a", session="tests.no_such_module:open"), contender(path, "b")], FEEDS)


START = Start(
    import_ms=Interval(value=900, low=800, high=1000),
    open_ms=Interval(value=12, low=11.5, high=14),
    first_ms=Interval(value=1.5, low=0.9, high=2),
    steady_ms=Interval(value=0.45, low=0.42, high=0.5),
)
MEMORY = Interval(value=177e6, low=176e6, high=178e6)
FRESH = FreshProcess(peak_memory=MEMORY, held_memory=MEMORY, start=START)


def sample() -> SideBySide:
    def timing(p50: float, speedup: Interval | None) -> tuple[Timing, ...]:
        tail, calls = (4.0, 3000) if p50 == 1 else (None, 1024)
        times = Latency(p50=p50, p90=2 * p50, p99=3 * p50, low=p50, high=p50, p999=tail, calls=calls)
        return (Timing(batch=8, latency=times, speedup=speedup),)

    def rates(per_second: float, ratio: Interval | None) -> tuple[Rate, ...]:
        found = Interval(value=per_second, low=0.9 * per_second, high=1.1 * per_second)
        return (Rate(batch=8, concurrency=4, per_second=found, ratio=ratio),)

    eager = Row(
        label="torch eager",
        path="[b]a",
        file_bytes=689_000,
        peak_memory=MEMORY,
        held_memory=MEMORY,
        start=START,
        timings=timing(1, None),
        reason="",
        throughput=rates(8_000, None),
        arena_reason="only ONNX Runtime says",
    )
    final = replace(
        eager,
        label="final, u8",
        path="b",
        timings=timing(0.4, Interval(value=2.5, low=2.4, high=2.6)),
        throughput=rates(24_240, Interval(value=3.03, low=2.9, high=3.1)),
        arena=Arena(held_bytes=1_050_392, used_bytes=30_488),
        arena_reason="",
        device_memory=MEMORY,
        start=replace(
            START,
            device_ms=Interval(value=0.3, low=0.3, high=0.4),
            graph_ms=Interval(value=0.2, low=0.2, high=0.2),
        ),
    )
    engine = replace(
        eager,
        label="engine",
        path="c",
        device_reason="NVML does not start: none",
        throughput=(),
        throughput_reason="an engine's session runs one call at a time",
    )
    absent = Row(
        label="torch.compile",
        path="a",
        file_bytes=689_000,
        peak_memory=None,
        held_memory=None,
        start=None,
        timings=(),
        reason="no compiler",
    )
    return SideBySide(
        clocks="watched",
        energy_reason="no energy counter: none",
        threads=2,
        restarts=5,
        concurrency=(4,),
        noise_floor={8: 0.0123},
        rows=(eager, absent, final, engine),
    )


def printed(width: int) -> list[str]:
    stream = io.StringIO()
    print_side_by_side(sample(), Console(file=stream, width=width))
    return stream.getvalue().splitlines()


def test_the_table() -> None:
    lines = printed(160)
    assert lines[0].strip() == "Side by side, 2 thread(s)"
    cells = {row[0]: row[1:] for line in lines if "│" in line and (row := [c.strip() for c in line.split("│")[1:-1]])}
    assert cells == {
        "file size": ["689 kB"] * 3,
        "peak memory": ["177 MB (176 to 178)"] * 3,
        "memory held": ["177 MB (176 to 178)"] * 3,
        "memory of the GPU": ["not measured", "177 MB (176 to 178)", "not measured"],
        "on the GPU alone": ["not measured", "0.300 ms (0.300 to 0.400)", "not measured"],
        "as a CUDA graph": ["not measured", "0.200 ms (0.200 to 0.200)", "not measured"],
        "arena, held": ["not measured", "1.05 MB", "not measured"],
        "arena, in use": ["not measured", "30.5 kB", "not measured"],
        "open the file": ["12.0 ms (11.5 to 14.0)"] * 3,
        "first call": ["1.50 ms (0.900 to 2.00)"] * 3,
        "later call": ["0.450 ms (0.420 to 0.500)"] * 3,
        "batch 8": ["baseline", "2.50x faster (2.40 to 2.60)", "baseline"],
        "median": ["1.00 ms", "0.400 ms", "1.00 ms"],
        "p90": ["2.00 ms", "0.800 ms", "2.00 ms"],
        "p99": ["3.00 ms", "1.20 ms", "3.00 ms"],
        "p99.9": ["4.00 ms", "not measured: 1,024 calls", "4.00 ms"],
        "4 at once": ["8,000/s", "24,240/s, 3.03x (2.90 to 3.10)", "not measured"],
    }
    assert lines[-10:] == [
        "torch eager: [b]a",
        "torch.compile: a (689 kB): not measured: no compiler",
        "final, u8: b",
        "engine: c",
        "engine: throughput not measured: an engine's session runs one call at a time",
        "torch eager: arena not measured: only ONNX Runtime says",
        "engine: memory of the GPU not measured: NVML does not start: none",
        "Energy: not measured: no energy counter: none",
        "GPU clocks: watched",
        "The first against itself: up to 1.2 % at batch 8 apart (noise floor).",
    ]


def test_eighty_columns_cut_no_name_short() -> None:
    table = [line for line in printed(80) if line.startswith(("│", "┃"))]
    assert max(map(len, table)) <= 80
    assert not [line for line in table if "…" in line]
