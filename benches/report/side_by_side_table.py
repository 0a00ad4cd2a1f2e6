"""The comparison of `side_by_side` on the terminal: one column for each contender."""

from rich.console import Console
from rich.text import Text

from ...core.values import Interval
from ..timing.side_by_side import Row, SideBySide, Timing
from . import words
from .report import SpeedUp
from .terminal import add_row, new_table


def print_side_by_side(result: SideBySide, console: Console) -> None:
    """Print a column for each contender that was measured, then the files, what was not measured and why, the noise."""
    measured = [one for one in result.rows if one.timings]
    table = new_table(f"Side by side, {result.threads} thread(s)", "", *(one.label for one in measured))
    for column in table.columns:
        column.overflow = "fold"  # a name cut short is no name
    add_row(table, "file size", *(words.size(one.file_bytes) for one in measured))
    add_row(table, "peak memory", *(_memory(one.peak_memory) for one in measured))
    add_row(table, "memory held", *(_memory(one.held_memory) for one in measured))
    if any(one.device_memory for one in measured):
        add_row(table, "memory of the GPU", *(_memory(one.device_memory) for one in measured))
    if any(one.arena for one in measured):
        for title, name in (("arena, held", "held_bytes"), ("arena, in use", "used_bytes")):
            add_row(table, title, *(words.size(getattr(one.arena, name, None)) for one in measured))
    for title, name in (("open the file", "open_ms"), ("first call", "first_ms"), ("later call", "steady_ms")):
        add_row(table, title, *(_phase(one, name) for one in measured))
    for title, name in (("  on the GPU alone", "device_ms"), ("  as a CUDA graph", "graph_ms")):
        if any(getattr(one.start, name, None) for one in measured):
            add_row(table, title, *(_phase(one, name) for one in measured))
    for place, (batch, floor) in enumerate(result.noise_floor.items()):
        timings = [one.timings[place] for one in measured]
        table.add_section()
        add_row(table, f"batch {batch}", *(_speed(timing, floor) for timing in timings))
        add_row(table, "  median", *(words.milliseconds(timing.latency.p50) for timing in timings))
        for title, name in (("p90", "p90"), ("p99", "p99"), ("p99.9", "p999")):
            found = (words.tail(getattr(timing.latency, name), timing.latency.calls) for timing in timings)
            add_row(table, f"  {title}", *found)
        for count in result.concurrency:
            add_row(table, f"  {count} at once", *(_rate(one, batch, count) for one in measured))
        if not result.energy_reason:
            add_row(table, "  energy", *(_energy(one, batch, result.concurrency[0]) for one in measured))
    console.print(table)
    for one in result.rows:
        ending = f" ({words.size(one.file_bytes)}): not measured: {one.reason}" if one.reason else ""
        console.print(Text(f"{one.label}: {one.path}{ending}"), soft_wrap=True)
        if one.throughput_reason and not one.reason:
            console.print(Text(f"{one.label}: throughput not measured: {one.throughput_reason}"), soft_wrap=True)
    reasons = {one.arena_reason: one.label for one in reversed(measured) if one.arena_reason}
    for reason, label in reversed(reasons.items()):
        console.print(Text(f"{label}: arena not measured: {reason}"), soft_wrap=True)
    for one in measured:
        if one.device_reason:
            console.print(Text(f"{one.label}: memory of the GPU not measured: {one.device_reason}"), soft_wrap=True)
        if one.start and one.start.graph_reason:
            said = f"{one.label}: as a CUDA graph not measured: {one.start.graph_reason}"
            console.print(Text(said), soft_wrap=True)
    if result.energy_reason:
        console.print(Text(f"Energy: not measured: {result.energy_reason}"), soft_wrap=True)
    if result.clocks:
        console.print(Text(f"GPU clocks: {result.clocks}"), soft_wrap=True)
    floors = ", ".join(f"{100 * floor:.1f} % at batch {batch}" for batch, floor in result.noise_floor.items())
    console.print(Text(f"The first against itself: up to {floors} apart (noise floor)."), soft_wrap=True)


def _memory(found: Interval | None) -> str:
    return words.NOT_MEASURED if found is None else words.spread(found, words.size)


def _phase(one: Row, name: str) -> str:
    """Time of a part of a fresh process's start."""
    found: Interval | None = getattr(one.start, name, None)
    return words.NOT_MEASURED if found is None else words.spread(found, words.milliseconds)


def _rate(one: Row, batch: int, concurrency: int) -> str:
    """Samples per second, and how many times those of the first."""
    found = next((each for each in one.throughput if (each.batch, each.concurrency) == (batch, concurrency)), None)
    if found is None:
        return words.NOT_MEASURED
    text = words.rate(found.per_second.value)
    if found.ratio is None:
        return text
    return f"{text}, {found.ratio.value:.2f}x ({found.ratio.low:.2f} to {found.ratio.high:.2f})"


def _energy(one: Row, batch: int, concurrency: int) -> str:
    """Of one sample, and how much less than the first's."""
    found = next((each for each in one.throughput if (each.batch, each.concurrency) == (batch, concurrency)), None)
    if found is None or found.joules is None:
        return words.NOT_MEASURED
    text = words.joules(found.joules.value)
    return text if found.saving is None else f"{text}, {words.saving(found.saving)}"


def _speed(timing: Timing, floor: float) -> str:
    found = timing.speedup
    if found is None:
        return "baseline"
    return words.speed_change(
        SpeedUp(batch=timing.batch, median=found.value, low=found.low, high=found.high, noise_floor=floor)
    )
