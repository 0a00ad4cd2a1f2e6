"""The terminal summary and its words, as a newcomer reads them."""

import dataclasses
import io

import pytest
from rich.console import Console

from edgesmith.benches.report import report_words, words
from edgesmith.benches.report.report import MetricValue, Report, SpeedUp, Throughput
from edgesmith.benches.report.terminal import print_report
from edgesmith.benches.timing.fresh_process import Arena
from edgesmith.core.values import Interval
from tests.benches.sample_report import make_report


def printed(report: Report, width: int = 160) -> str:
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=width))
    return stream.getvalue()


def line_with(text: str, *parts: str) -> bool:
    return any(all(part in line for part in parts) for line in text.splitlines())


def test_tables_come_in_order_and_the_verdict_last() -> None:
    text = printed(make_report())
    places = [text.index(part) for part in ("original against compressed", "Stage by stage", "Limits", "VERDICT:")]
    assert places == sorted(places)
    assert text.splitlines()[-1] == (
        "VERDICT: unproven - no limit is missed, but 1 of 6 limits (drop) is not proven at 95 % confidence"
    )
    assert line_with(text, "accuracy", "98.33 %", "98.06 %", "-0.28 points (at most 1.08 lost at 95 %)")
    assert line_with(text, "latency, batch 32", "9.70 ms", "2.69 ms", "3.60x faster (3.35 to 3.82)")
    assert line_with(text, "open the file", "8.53 ms", "3.27 ms", "2.60x faster")
    assert line_with(text, "first call", "1.24 ms", "0.393 ms", "no difference that could be measured")
    assert line_with(text, "memory held", "1.71 MB", "655 kB", "2.60x less")
    assert line_with(text, "file size", "1.12 MB", "137 kB", "8.20x smaller")
    assert line_with(text, "unproven", "loss of accuracy at most 1 point", "0.28 points (-0.53 to 1.08)")
    assert line_with(text, "pass", "speed-up at least 2x", "3.10x (2.88 to 3.29)", "batch 1, the worst of 1, 32")
    assert "Most of the loss of accuracy came from: prune + distill" in text
    assert "tensorrt (artifacts/tensorrt.onnx, s8-symmetric): not measured: no CUDA device" in text
    assert (
        "engine artifacts/tensorrt.engine, cast to FP16: built by tensorrt-rtx 1.7.1.116, 68.4 kB of weights; "
        "it proves that it builds, and no speed"
    ) in text
    command = "trtexec --onnx=tensorrt.onnx --saveEngine=tensorrt.engine --stronglyTyped"
    note = "(TensorRT 10.0 to 10.11 needs --int8 in place of --stronglyTyped)"
    assert f"  on the device: {command} {note}" in printed(make_report(), width=40).splitlines(), "copied in one piece"


def test_the_arena_is_two_rows_or_a_reason() -> None:
    report = make_report()
    assert "arena" not in printed(report)  # of a version that did not measure it
    reason = "ONNX Runtime 1.24.0 says nothing of it in a profile; 1.32 does"
    sides = {name: dataclasses.replace(getattr(report, name), arena_reason=reason) for name in ("original", "final")}
    assert f"arena: not measured: {reason}" in printed(dataclasses.replace(report, **sides)).splitlines()
    for name, held, used in (("original", 2_097_152, 1_200_000), ("final", 1_048_576, 400_000)):
        arena = Arena(held_bytes=held, used_bytes=used)
        sides[name] = dataclasses.replace(getattr(report, name), arena=arena)
    text = printed(dataclasses.replace(report, **sides))
    assert line_with(text, "arena, held", "2.10 MB", "1.05 MB", "2.00x less")
    assert line_with(text, "arena, in use", "1.20 MB", "400 kB", "3.00x less")
    assert "arena: " not in text


def test_a_gpus_memory_is_a_row_or_a_reason() -> None:
    report = make_report()
    assert "GPU" not in printed(report)  # a CPU's run
    reason = "nvidia-ml-py is not installed: pip install nvidia-ml-py"
    silent = dataclasses.replace(report, final=dataclasses.replace(report.final, device_reason=reason))
    assert f"memory of the GPU: not measured: {reason}" in printed(silent).splitlines()
    sides = {}
    for name, size, took in (("original", 80_000_000, 0.6), ("final", 20_000_000, 0.2)):
        side = getattr(report, name)
        start = dataclasses.replace(side.start, device_ms=Interval(value=took, low=took, high=took))
        if name == "final":
            start = dataclasses.replace(start, graph_ms=start.device_ms)
        sides[name] = dataclasses.replace(side, device_memory_bytes=size, start=start)
    text = printed(dataclasses.replace(report, **sides))
    assert line_with(text, "memory of the GPU", "80.0 MB", "20.0 MB", "4.00x less")
    assert line_with(text, "later call, on the GPU alone", "0.600 ms", "0.200 ms", "3.00x faster")
    assert "CUDA graph" not in text, "the original cannot be one"


def test_throughput_is_a_row_for_each_case_or_a_reason() -> None:
    report = make_report()
    assert "at once" not in printed(report)  # nobody asked for it
    reason = "an engine's session runs one call at a time"
    text = printed(dataclasses.replace(report, throughput_reason=reason))
    assert f"throughput: not measured: {reason}" in text.splitlines()

    def case(batch: int, ratio: tuple[float, float, float]) -> Throughput:
        value, low, high = ratio
        before = Interval(value=4009.3, low=4000.0, high=4020.0)
        after = Interval(value=4009.3 * value, low=4000 * low, high=4020 * high)
        found = Interval(value=value, low=low, high=high)
        return Throughput(
            batch=batch, concurrency=4, threads=1, original=before, final=after, ratio=found, noise_floor=0.02
        )

    cases = (case(1, (1.7, 1.4, 2.28)), case(32, (0.5, 0.4, 0.625)), case(64, (1.0, 0.9, 1.1)))
    text = printed(dataclasses.replace(report, throughput=cases))
    assert line_with(text, "4 at once, batch 1 ", "4,009/s", "6,816/s", "1.70x more (1.40 to 2.28)")
    assert line_with(text, "4 at once, batch 32", "4,009/s", "2,005/s", "2.00x fewer (1.60 to 2.50)")
    assert line_with(text, "4 at once, batch 64", "no difference that could be measured (0.90x to 1.10x)")


def test_energy_is_a_row_or_a_reason() -> None:
    report = dataclasses.replace(make_report(), energy_reason="no energy counter: /sys/class/powercap is not there")
    text = printed(report).splitlines()
    assert "energy: not measured: no energy counter: /sys/class/powercap is not there" in text
    sides = {}
    for name, value in (("original", 0.0123), ("final", 0.0041)):
        joules = Interval(value=value, low=value, high=value)
        sides[name] = dataclasses.replace(getattr(report, name), joules=joules)
    measured = dataclasses.replace(
        report, **sides, energy_saving=Interval(value=3.0, low=2.8, high=3.2), energy_reason=""
    )
    assert line_with(printed(measured), "energy per sample", "12.3 mJ", "4.10 mJ", "3.00x less (2.80 to 3.20)")
    assert "energy: " not in printed(measured)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ((2.0, 1.9, 2.1), "2.00x less (1.90 to 2.10)"),
        ((0.5, 0.4, 0.625), "2.00x more (1.60 to 2.50)"),
        ((1.1, 0.9, 1.3), "no difference that could be measured (0.90x to 1.30x)"),
    ],
)
def test_a_saving_in_words(found: tuple[float, float, float], text: str) -> None:
    assert words.saving(Interval(value=found[0], low=found[1], high=found[2])) == text


def test_pass_and_fail_sentences() -> None:
    passed = printed(make_report(drop_limit=0.03)).splitlines()[-1]
    assert passed == "VERDICT: pass - every limit is kept, proven at 95 % confidence"
    failed = printed(make_report(drop_limit=-0.02)).splitlines()[-1]
    assert failed == "VERDICT: fail - 1 of 6 limits (drop) is missed, proven at 95 % confidence"


def test_eighty_columns_are_enough() -> None:
    lines = printed(make_report(), width=80).splitlines()
    assert max(len(line) for line in lines if not line.startswith("  on the device: ")) <= 80


def test_markup_of_the_user_is_text() -> None:
    report = dataclasses.replace(make_report(task="[red]x[/red]"), guilty_stage="[bold]y[/]")
    assert "[red]x[/red] on onnxruntime-cpu" in printed(report)
    assert "came from: [bold]y[/]" in printed(report)


def _up(median: float, low: float, high: float) -> SpeedUp:
    return SpeedUp(batch=1, median=median, low=low, high=high, noise_floor=0.01)


@pytest.mark.parametrize(
    ("speedup", "text"),
    [
        (_up(3.1, 2.9, 3.3), "3.10x faster (2.90 to 3.30)"),
        (_up(0.5, 0.4, 0.8), "2.00x slower (1.25 to 2.50)"),
        (_up(1.02, 0.98, 1.05), "no difference that could be measured (0.98x to 1.05x)"),
        (None, "not measured"),
    ],
)
def test_speed_in_words(speedup: SpeedUp | None, text: str) -> None:
    assert words.speed_change(speedup) == text


@pytest.mark.parametrize(
    ("original", "final", "text"),
    [
        (820, 100, "8.20x smaller"),
        (100, 130, "1.30x larger"),
        (5, 5, "unchanged"),
        (100_000, 99_990, "hardly smaller"),
        (None, 5, "not measured"),
        (5, 0, "smaller, too small to give a ratio"),
    ],
)
def test_ratio_in_words(original: int | None, final: int | None, text: str) -> None:
    assert words.ratio_change(original, final, "smaller", "larger") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04237, "0.0424"), (12.345, "12.3"), (1234.5, "1,234"), (0.9999, "1.00"), (0, "0"), (-0.5, "-0.500")],
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert words.significant(value) == text


@pytest.mark.parametrize(
    ("count", "text"), [(950, "950 B"), (999_600, "1.00 MB"), (1_086_400, "1.09 MB"), (None, "not measured")]
)
def test_sizes(count: int | None, text: str) -> None:
    assert words.size(count) == text


def test_a_gain_and_a_metric_that_should_be_low() -> None:
    report = make_report()
    gained = dataclasses.replace(report, drop=Interval(value=-0.01, low=-0.02, high=-0.004))
    assert report_words.metric_change(gained, "accuracy") == "+1.00 points (at least 0.40 gained at 95 %)"
    even = dataclasses.replace(report, drop=Interval(value=0.00001, low=-0.01, high=0.01))
    assert report_words.metric_change(even, "accuracy").startswith("+0.00 points")
    error = MetricValue(value=0.5, low=0.4, high=0.6, higher_is_better=False, kind="mean")
    sides = {name: dataclasses.replace(report.final, metrics={"mae": error}) for name in ("original", "final")}
    worse = dataclasses.replace(report, main_metric="mae", drop=Interval(value=0.02, low=0.01, high=0.03), **sides)
    assert report_words.metric_change(worse, "mae") == "+0.0200 (at most 0.0300 worse at 95 %)"
