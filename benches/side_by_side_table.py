"""The comparison of `side_by_side` on the terminal: one column for each contender."""

from rich.console import Console
from rich.text import Text

from . import words
from .report import SpeedUp
from .side_by_side import Row, SideBySide, Timing
from .terminal import add_row, new_table


def print_side_by_side(result: SideBySide, console: Console) -> None:
    """Print a column for each contender that was measured, then the files, what was not measured and why, the noise."""
    measured = [one for one in result.rows if one.timings]
    table = new_table(f"Side by side, {result.threads} thread(s)", "", *(one.label for one in measured))
    for column in table.columns:
        column.overflow = "fold"  # a name cut short is no name
    add_row(table, "file size", *(words.size(one.file_bytes) for one in measured))
    add_row(table, "peak memory", *(_memory(one) for one in measured))
    for place, (batch, floor) in enumerate(result.noise_floor.items()):
        timings = [one.timings[place] for one in measured]
        table.add_section()
        add_row(table, f"batch {batch}", *(_speed(timing, floor) for timing in timings))
        for title, name in (("median", "p50"), ("p90", "p90"), ("p99", "p99")):
            add_row(table, f"  {title}", *(words.milliseconds(getattr(timing.latency, name)) for timing in timings))
    console.print(table)
    for one in result.rows:
        ending = f" ({words.size(one.file_bytes)}): not measured: {one.reason}" if one.reason else ""
        console.print(Text(f"{one.label}: {one.path}{ending}"), soft_wrap=True)
    floors = ", ".join(f"{100 * floor:.1f} % at batch {batch}" for batch, floor in result.noise_floor.items())
    console.print(Text(f"The first against itself: up to {floors} apart (noise floor)."), soft_wrap=True)


def _memory(one: Row) -> str:
    if one.peak_memory is None:
        return words.NOT_MEASURED
    low, high = (words.size(bound) for bound in (one.peak_memory.low, one.peak_memory.high))
    return f"{words.size(one.peak_memory.value)} ({low} to {high})"


def _speed(timing: Timing, floor: float) -> str:
    found = timing.speedup
    if found is None:
        return "baseline"
    return words.speed_change(
        SpeedUp(batch=timing.batch, median=found.value, low=found.low, high=found.high, noise_floor=floor)
    )
