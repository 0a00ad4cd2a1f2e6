"""What `edgesmith quantize` did, on the terminal."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from ...calibration.ranges import TensorRange, notable
from . import words
from .int8_report import Decision, Quantized
from .terminal import add_row, new_table

_FEW = 25  # layers shown unless all are asked for


def print_quantized(found: Quantized, console: Console, everything: bool) -> None:
    """Layers, then both files side by side, then the outcome."""
    if found.decisions:
        console.print(_layers(found, everything))
        left = len(found.decisions) - _FEW
        if left > 0 and not everything:
            console.print(Text(f"and {left} more; --all shows them"))
    if found.ranges:
        console.print(Text(words.ranges_sentence(found.ranges)))
        shown = [each for each in found.ranges if everything or notable(each)]
        if shown:
            console.print(_ranges(shown))
    if found.quality is not None:
        console.print(_files(found))
    for line in found.notes:
        console.print(Text(line))
    for line in found.tried:
        console.print(Text(f"tried: {line}"))
    if found.out is None:
        console.print(Text.assemble(("REFUSED", "bold red"), f": {found.reason}; nothing was written"))
    elif found.status == "unproven":
        console.print(Text.assemble(("UNPROVEN", "bold yellow"), f": {found.reason}; wrote {found.out}"))
    else:
        console.print(Text.assemble(("WRITTEN", "bold green"), f": {found.out} ({found.dialect})"))


def _layers(found: Quantized, everything: bool) -> object:
    table = new_table(
        f"{found.model} on {found.target}, layer by layer",
        "layer",
        "operator",
        "alone",
        "float",
        "INT8",
        "runs in",
    )
    shown = found.decisions if everything else sorted(found.decisions, key=_interest)[:_FEW]
    for decision in shown:
        add_row(
            table,
            decision.node,
            decision.operator,
            words.decibels(decision.alone_db),
            words.microseconds(decision.float_ms),
            words.microseconds(decision.int8_ms),
            words.layer_sentence(decision),
        )
    return table


def _ranges(shown: Sequence[TensorRange]) -> object:
    table = new_table("Ranges", "tensor", "rule", "range", "clipped", "unused", "moved")
    for each in shown:
        ends = f"{words.significant(each.low)} to {words.significant(each.high)}"
        add_row(
            table, each.tensor, each.rule, ends, words.share(each.clipped), words.share(each.unused),
            words.share(each.moved),
        )  # fmt: skip
    return table


def _interest(decision: Decision) -> tuple[bool, float]:
    """What stays in float first, then what costs most."""
    return decision.int8, math.inf if decision.alone_db is None else decision.alone_db


def _files(found: Quantized) -> object:
    quality = found.quality
    assert quality is not None
    table = new_table(f"On {found.runs['test']} runs that nothing was chosen with", "", "original", "INT8", "change")
    if found.metric is not None and quality.original is not None and quality.changed is not None and quality.drop:
        change = f"{quality.drop.value:.4f} lost ({quality.drop.low:.4f} to {quality.drop.high:.4f})"
        add_row(table, found.metric, f"{quality.original:.4f}", f"{quality.changed:.4f}", change)
    for output in quality.outputs:
        if output.snr_db is not None:
            add_row(table, f"output {output.output}", "", "", f"signal to noise {words.decibels(output.snr_db)}")
        if output.agreement is not None:
            same = f"{100 * output.agreement:.2f} % of {output.answers:,} answers the same"
            add_row(table, f"answers of {output.output}", "", "", same)
    if found.speedup is not None and found.original_ms is not None:
        speed = f"{found.speedup.value:.2f}x ({found.speedup.low:.2f} to {found.speedup.high:.2f})"
        add_row(table, "latency", words.milliseconds(found.original_ms), words.milliseconds(found.final_ms), speed)
    if found.final_bytes is not None:
        smaller = words.ratio_change(found.original_bytes, found.final_bytes, "smaller", "larger")
        add_row(table, "file size", words.size(found.original_bytes), words.size(found.final_bytes), smaller)
    return table
