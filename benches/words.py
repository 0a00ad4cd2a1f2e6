"""Numbers as people read them: the same words stand in the terminal and in the HTML report."""

import collections
from collections.abc import Callable, Sequence

from ..calibration.ranges import TensorRange
from ..core.ledger import LedgerEntry
from ..core.limits import LimitResult
from ..core.values import Interval
from .closeness import ENDS_DB
from .int8_report import Decision
from .report import ArtifactResult, EngineResult, MetricValue, Report, SpeedUp

NOT_MEASURED = "not measured"

# Limit name -> (what it is of, which side of the limit is kept).
_PROMISES = {
    "drop": ("loss of {metric}", "at most"),
    "metric": ("{metric}", "at least"),
    "class_drop": ("loss of {metric} in every class", "at most"),
    "slice_drop": ("loss of {metric} in every slice", "at most"),
    "corruption_drop": ("loss of {metric} under every corruption", "at most"),
    "disparity": ("growth of the gap in {metric} between groups", "at most"),
    "speedup": ("speed-up", "at least"),
    "latency_ms": ("latency", "at most"),
    "peak_memory_ratio": ("peak memory", "at most"),
    "peak_memory_bytes": ("peak memory", "at most"),
    "file_ratio": ("file size", "at most"),
    "file_bytes": ("file size", "at most"),
    "macs_ratio": ("MACs", "at most"),
    "params_ratio": ("parameters", "at most"),
}

_LOSSES = ("drop", "class_drop", "slice_drop", "corruption_drop", "disparity")


def significant(value: float, digits: int = 3) -> str:
    """Rounded to `digits`, never in scientific notation.

    >>> significant(0.04237), significant(12.345), significant(1234.5)
    ('0.0424', '12.3', '1,234')
    """
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])  # after rounding: 0.9999 counts as 1.00
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def milliseconds(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{significant(value)} ms"


def joules(value: float) -> str:
    """Energy of a sample.

    >>> joules(0.0123), joules(4.5e-7)
    ('12.3 mJ', '0.450 uJ')
    """
    for unit, factor in (("J", 1.0), ("mJ", 1e-3)):
        if value >= factor:
            return f"{significant(value / factor)} {unit}"
    return f"{significant(value / 1e-6)} uJ"


def saving(found: Interval) -> str:
    """`2.10x less (2.00 to 2.20)`; says so where the interval holds both directions."""
    low, high = found.low, found.high
    if low <= 1 <= high:
        return f"no difference that could be measured ({low:.2f}x to {high:.2f}x)"
    if found.value >= 1:
        return f"{_times(found.value)} less ({_factor(low)} to {_factor(high)})"
    return f"{_times(1 / found.value)} more ({_factor(1 / high)} to {_factor(1 / low)})"


def tail(value: float | None, calls: int) -> str:
    """A percentile that needs many calls, or how few there were."""
    return f"{NOT_MEASURED}: {calls:,} calls" if value is None else milliseconds(value)


def microseconds(value_ms: float | None) -> str:
    """As fine as a runtime's profiler counts; empty where nothing was timed."""
    return "" if value_ms is None else f"{1000 * value_ms:,.0f} us"


def decibels(value: float | None) -> str:
    """A signal-to-noise ratio; empty where there is none."""
    if value is None:
        return ""
    return "equal" if value == ENDS_DB else f"{value:.1f} dB"


def layer_sentence(layer: Decision) -> str:
    """What a layer runs in, and why where it is float."""
    return "INT8" if layer.int8 else f"float: {layer.why}"


def share(value: float | None) -> str:
    """As a percentage; empty where it is not known.

    >>> share(0.00774), share(0.0)
    ('0.774 %', '0 %')
    """
    return "" if value is None else f"{significant(100 * value)} %"


def ranges_sentence(ranges: Sequence[TensorRange]) -> str:
    """The worst of each kind, and how often each rule was taken."""
    rules = collections.Counter(each.rule for each in ranges)
    counts = ", ".join(f"{rule} {count}" for rule, count in rules.most_common())
    moved = [each.moved for each in ranges if each.moved is not None]
    parts = [
        f"at most {share(max(each.clipped for each in ranges))} of a tensor's values clipped",
        f"{share(max(each.unused for each in ranges))} of its levels unused",
        *([f"moved {share(max(moved))} from half of the samples to all"] if moved else []),
    ]
    return f"ranges of {len(ranges)} tensors ({counts}): {', '.join(parts)}"


def size(count: float | None) -> str:
    """Bytes in decimal units.

    >>> size(950), size(1_086_400)
    ('950 B', '1.09 MB')
    """
    return NOT_MEASURED if count is None else f"{_scaled(count, ('B', 'kB', 'MB', 'GB', 'TB'))}"


def spread(found: Interval, text: Callable[[float], str]) -> str:
    """`12.0 ms (11.5 to 14.0)`: the unit once where it is the same."""
    texts = [text(each) for each in (found.value, found.low, found.high)]
    if len({each.rpartition(" ")[2] for each in texts}) == 1:
        texts[1:] = [each.rpartition(" ")[0] for each in texts[1:]]
    return f"{texts[0]} ({texts[1]} to {texts[2]})"


def amount(count: int | None) -> str:
    """A count of operations or parameters.

    >>> amount(31_000_000)
    '31.0 M'
    """
    return NOT_MEASURED if count is None else _scaled(count, ("", "k", "M", "G", "T")).strip()


def metric_value(metric: MetricValue, value: float | None = None) -> str:
    """A metric's value: proportions as percent."""
    value = metric.value if value is None else value
    return f"{100 * value:.2f} %" if metric.kind == "proportion" else significant(value, 4)


def stage_metrics(report: Report, entry: LedgerEntry) -> list[str]:
    """The main metric of a stage, and that of the old task where there is one."""
    shown = [metric_value(report.original.metrics[report.main_metric], entry.accuracy)]
    if report.old_metric is not None:
        shown.append(metric_value(report.original.metrics[report.old_metric], entry.old))
    return shown


def percent(confidence: float) -> str:
    """A confidence or ratio without needless digits: `95 %`, `99.5 %`."""
    return f"{round(100 * confidence, 2):g} %"


def speed_change(speedup: SpeedUp | None) -> str:
    """`3.10x faster (2.90 to 3.30)`; says so where the interval holds both directions."""
    if speedup is None:
        return NOT_MEASURED
    if speedup.low <= 1 <= speedup.high:
        return f"no difference that could be measured ({speedup.low:.2f}x to {speedup.high:.2f}x)"
    if speedup.median >= 1:
        return f"{_times(speedup.median)} faster ({_factor(speedup.low)} to {_factor(speedup.high)})"
    return f"{_times(1 / speedup.median)} slower ({_factor(1 / speedup.high)} to {_factor(1 / speedup.low)})"


def ratio_change(original: float | None, final: float | None, less: str, more: str) -> str:
    """`8.20x smaller`, `1.30x larger`, `unchanged`."""
    if original is None or final is None:
        return NOT_MEASURED
    if original == final:
        return "unchanged"
    if min(original, final) <= 0:
        return f"{less if final < original else more}, too small to give a ratio"
    return f"{_times(original / final)} {less}" if final < original else f"{_times(final / original)} {more}"


def metric_change(report: Report, name: str) -> str:
    """`-0.28 points (at most 1.08 lost at 95 %)` for the main metric; others without a bound."""
    original, final = report.original.metrics[name], report.final.metrics[name]
    if name != report.main_metric:
        return _signed(final.value - original.value, original)
    text = _signed(-report.drop.value if original.higher_is_better else report.drop.value, original)
    at = f"at {percent(report.confidence)}"
    won, lost = ("gained", "lost") if original.higher_is_better else ("better", "worse")
    if report.drop.high < 0:
        return f"{text} (at least {_unsigned(-report.drop.high, original)} {won} {at})"
    return f"{text} (at most {_unsigned(report.drop.high, original)} {lost} {at})"


def comparison_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """(what, original, compressed, change in words), the main metric first."""
    first, last = report.original, report.final
    names = [report.main_metric, *(name for name in first.metrics if name != report.main_metric)]
    rows = [
        (
            name,
            metric_value(first.metrics[name]),
            metric_value(last.metrics[name]),
            metric_change(report, name),
        )
        for name in names
    ]
    for entry in report.latency:
        rows.append(
            (
                f"latency, batch {entry.batch}",
                milliseconds(entry.original.p50),
                milliseconds(entry.final.p50),
                speed_change(entry.speedup),
            )
        )
    if not report.latency:
        reason = report.unmeasured_reason
        rows.append(("latency", *(2 * (NOT_MEASURED,)), f"not measured: {reason}" if reason else "not measured"))
    rows += _start_rows(report) + _energy_rows(report)
    for name, field, unit, (less, more) in (
        ("peak memory", "peak_memory_bytes", size, ("less", "more")),
        ("memory held", "held_memory_bytes", size, ("less", "more")),
        ("file size", "file_bytes", size, ("smaller", "larger")),
        ("multiply-adds (MACs)", "macs", amount, ("fewer", "more")),
        ("parameters", "parameters", amount, ("fewer", "more")),
    ):
        before, after = getattr(first, field), getattr(last, field)
        rows.append((name, unit(before), unit(after), ratio_change(before, after, less, more)))
    return rows


def _start_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """Opening the file and the first call, in fresh processes; nothing where none was measured."""
    before, after = report.original.start, report.final.start
    if before is None or after is None:
        return []
    return [
        (title, milliseconds(first.value), milliseconds(last.value), _start_change(first, last))
        for title, first, last in (
            ("open the file", before.open_ms, after.open_ms),
            ("first call", before.first_ms, after.first_ms),
        )
    ]


def _energy_rows(report: Report) -> list[tuple[str, str, str, str]]:
    before, after, less = report.original.joules, report.final.joules, report.energy_saving
    if before is None or after is None or less is None:
        return []
    return [("energy per sample", joules(before.value), joules(after.value), saving(less))]


def energy_sentence(report: Report) -> str:
    """Why energy was not measured; empty where it was."""
    return f"energy: {NOT_MEASURED}: {report.energy_reason}" if report.energy_reason else ""


def clocks_sentence(report: Report) -> str:
    """Whether a GPU's clocks were watched; empty where there was no GPU."""
    return next((f"GPU clocks: {each.clocks}" for each in report.latency if each.clocks), "")


def _start_change(first: Interval, last: Interval) -> str:
    """No factor where the two spreads overlap: a few processes cannot tell them apart."""
    if first.low <= last.high and last.low <= first.high:
        return "no difference that could be measured"
    return ratio_change(first.value, last.value, "faster", "slower")


def promise(report: Report, result: LimitResult) -> str:
    """A limit in words, with the number as the recipe gave it: `speed-up at least 2x`."""
    subject, bound = _PROMISES[result.name]
    metric = report.final.metrics[report.main_metric]
    if result.name == "metric" and not metric.higher_is_better:
        bound = "at most"
    limit, unit = _in_unit(report, result.name, result.limit)
    unit = " point" if unit == " points" and limit == 1 else unit
    exact = f"{limit:.9g}{unit}" if not result.name.endswith("_bytes") else size(result.limit)
    return f"{subject.format(metric=report.main_metric)} {bound} {exact}"


def measured(report: Report, result: LimitResult) -> str:
    """What was measured against a limit, with its bounds where they differ: `3.10x (2.88 to 3.29)`."""
    if result.measured is None or result.low is None or result.high is None:
        return NOT_MEASURED
    value, unit = _in_unit(report, result.name, result.measured)
    if result.name.endswith("_bytes"):
        text, low, high = (size(number) for number in (result.measured, result.low, result.high))
    else:
        low, high = (_plain(result.name, _in_unit(report, result.name, end)[0]) for end in (result.low, result.high))
        text = _plain(result.name, value) + unit
    return text if result.low == result.high else f"{text} ({low} to {high})"


def verdict_sentence(report: Report) -> str:
    """The verdict in one sentence."""
    at = f"at {percent(report.confidence)} confidence"
    names = {status: [r.name for r in report.limits if r.status == status] for status in ("fail", "unproven")}
    if report.verdict == "pass":
        return f"every limit is kept, proven {at}"
    if report.verdict == "fail":
        return f"{_of(names['fail'], report)} missed, proven {at}"
    return f"no limit is missed, but {_of(names['unproven'], report)} not proven {at}"


def group_rows(report: Report) -> list[tuple[str, str, str, str, str]]:
    """(group, test samples, original, compressed, loss with its bounds), what lost most first."""
    metric, rows = report.original.metrics[report.main_metric], []
    for group in sorted(report.groups, key=lambda each: -(each.drop.value if each.drop else 0.0)):
        name, count = f"{group.kind} {group.name}", f"{group.samples:,}"
        if group.drop is None or group.original is None or group.final is None:
            rows.append((name, count, "", "", "too few to say"))
            continue
        points = " points" if metric.kind == "proportion" else ""
        value, low, high = (_unsigned(each, metric) for each in (group.drop.value, group.drop.low, group.drop.high))
        sides = metric_value(metric, group.original), metric_value(metric, group.final)
        rows.append((name, count, *sides, f"{value}{points} ({low} to {high})"))
    return rows


def flips_sentence(report: Report) -> str:
    """How many answers changed and which; empty where answers are not right or wrong."""
    if report.flips is None:
        return ""
    found = report.flips

    def some(count: int, examples: tuple[int, ...]) -> str:
        more = ", ..." if count > len(examples) else ""
        return f"{count:,}" + (f" (samples {', '.join(map(str, examples))}{more})" if count else "")

    return (
        f"flips: right to wrong {some(found.lost, found.lost_examples)}, "
        f"wrong to right {some(found.won, found.won_examples)}"
    )


def calibration_sentence(report: Report) -> str:
    """Both sides' calibration error; empty where the output is not one score per class."""
    if report.calibration_error is None:
        return ""
    found = report.calibration_error
    return (
        f"calibration error (ECE, {found.bins} bins): {100 * found.original:.2f} % {report.against}, "
        f"{100 * found.final:.2f} % compressed"
    )


def engine_sentence(engine: EngineResult) -> str:
    """What was built, and what that proves."""
    half = ", cast to FP16" if engine.precision == "float16" else ""
    weights = "" if engine.weights_bytes is None else f", {size(engine.weights_bytes)} of weights"
    return f"engine {engine.path}{half}: built by {engine.tool} {engine.version}{weights}; {engine.proves}"


def device_sentence(artifact: ArtifactResult) -> str:
    """How the engine is built on the device; empty where there is none."""
    if not artifact.device_command:
        return f"on the device: {artifact.device_note}" if artifact.device_note else ""
    note = f" ({artifact.device_note})" if artifact.device_note else ""
    return f"on the device: {artifact.device_command}{note}"


def _of(names: list[str], report: Report) -> str:
    return f"{len(names)} of {len(report.limits)} limits ({', '.join(names)}) {'is' if len(names) == 1 else 'are'}"


def _scaled(count: float, units: tuple[str, ...]) -> str:
    step = 0
    while abs(count) >= 999.5 and step < len(units) - 1:
        count, step = count / 1000, step + 1
    return f"{count:,.0f} {units[0]}" if step == 0 else f"{significant(count)} {units[step]}"


def _factor(value: float) -> str:
    return f"{value:.2f}" if value < 10 else significant(value)


def _times(value: float) -> str:
    return f"{_factor(value)}x"


def _unsigned(value: float, metric: MetricValue) -> str:
    return f"{100 * value:.2f}" if metric.kind == "proportion" else significant(value)


def _signed(change: float, metric: MetricValue) -> str:
    if metric.kind == "proportion":
        return f"{100 * change:+.2f} points"
    return f"{'-' if change < 0 else '+'}{significant(abs(change))}"


def _in_unit(report: Report, name: str, value: float) -> tuple[float, str]:
    """A limit's number in the unit people use, and that unit."""
    proportion = report.final.metrics[report.main_metric].kind == "proportion"
    if name in _LOSSES:
        return (100 * value, " points") if proportion else (value, "")
    if name == "metric":
        return (100 * value, " %") if proportion else (value, "")
    if name.endswith("_ratio"):
        return 100 * value, f" % of {'the original' if report.against == 'original' else report.against}"
    return value, {"speedup": "x", "latency_ms": " ms"}.get(name, "")


def _plain(name: str, value: float) -> str:
    """Two decimals where that is what the unit needs, else three significant digits."""
    return f"{value:.2f}" if name in (*_LOSSES, "metric", "speedup") and abs(value) >= 0.1 else significant(value)
