"""Numbers as people read them: the same words stand in the terminal and in the HTML report."""

import collections
from collections.abc import Callable, Sequence

from ...calibration.ranges import TensorRange
from ...core.values import Interval
from ..metrics.closeness import ENDS_DB
from .int8_report import Decision
from .report import ArtifactResult, EngineResult, MetricValue, SpeedUp

NOT_MEASURED = "not measured"


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


def rate(per_second: float) -> str:
    """Samples per second.

    >>> rate(4009.3), rate(2.512)
    ('4,009/s', '2.51/s')
    """
    return f"{significant(per_second)}/s"


def gain(found: Interval) -> str:
    """A ratio of two rates: `1.72x more (1.40 to 2.28)`; says so where the interval holds both directions."""
    return _paired(found, "more", "fewer")


def saving(found: Interval) -> str:
    """`2.10x less (2.00 to 2.20)`; says so where the interval holds both directions."""
    return _paired(found, "less", "more")


def _paired(found: Interval, above: str, below: str) -> str:
    low, high = found.low, found.high
    if low <= 1 <= high:
        return f"no difference that could be measured ({low:.2f}x to {high:.2f}x)"
    if found.value >= 1:
        return f"{_times(found.value)} {above} ({_factor(low)} to {_factor(high)})"
    return f"{_times(1 / found.value)} {below} ({_factor(1 / high)} to {_factor(1 / low)})"


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
    """`8.20x smaller`, `1.30x larger`, `unchanged`; `hardly larger` where the ratio would read 1.00x."""
    if original is None or final is None:
        return NOT_MEASURED
    if original == final:
        return "unchanged"
    if min(original, final) <= 0:
        return f"{less if final < original else more}, too small to give a ratio"
    ratio, word = (original / final, less) if final < original else (final / original, more)
    return f"hardly {word}" if _times(ratio) == _times(1.0) else f"{_times(ratio)} {word}"


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


def _scaled(count: float, units: tuple[str, ...]) -> str:
    step = 0
    while abs(count) >= 999.5 and step < len(units) - 1:
        count, step = count / 1000, step + 1
    return f"{count:,.0f} {units[0]}" if step == 0 else f"{significant(count)} {units[step]}"


def _factor(value: float) -> str:
    return f"{value:.2f}" if value < 10 else significant(value)


def _times(value: float) -> str:
    return f"{_factor(value)}x"
