"""`edgesmith inspect` on the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...core.values import TensorSpec
from ...exporters.linting.lint import refusals
from . import words
from .inspection import Inspection, Layer

_SHOWN = 20  # lines of a list, unless all are asked for


def print_inspection(found: Inspection, console: Console, everything: bool) -> None:
    """Print what was found. Names of the user's are printed as they are, never as markup."""

    def say(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    opset = "" if found.opset is None else f", opset {found.opset}"
    say(f"{found.model} ({found.kind}{opset})")
    for title, specs in (("inputs", found.inputs), ("outputs", found.outputs)):
        say(f"{title}: {', '.join(map(_spec, specs))}")
    say(f"{words.amount(found.macs)} multiply-adds of one sample, {words.amount(found.params)} parameters")
    _print_layers(found, console, everything)
    _print_groups(found, console, everything)
    _print_closeness(found, console, everything)
    if found.kind != "onnx":
        return
    parts = [f"{ops.op} {ops.int8} of {ops.total}" for ops in found.quantized]
    say(f"INT8: {', '.join(parts) or 'nothing'}; written as {found.dialect}")
    if found.in_float:
        say("planned in INT8, and run in float by ONNX Runtime on this machine:")
        for line in cut([f"  {name}" for name in found.in_float], everything):
            say(line)
    if found.unknown_operators:
        say(f"operators outside ONNX's own set: {', '.join(found.unknown_operators)}")
    for target in found.targets:
        refused = refusals(target.findings)
        say(
            f"{target.target}: {'would refuse it:' if refused else 'takes it, but:' if target.findings else 'takes it'}"
        )
        for line in cut([f"  {finding.severity}: {finding.text}" for finding in target.findings], everything):
            say(line)


def cut(lines: Sequence[str], everything: bool) -> list[str]:
    """The first lines, and how many more there are."""
    if everything or len(lines) <= _SHOWN:
        return list(lines)
    return [*lines[:_SHOWN], f"  ... {len(lines) - _SHOWN} more (--all)"]


def _print_layers(found: Inspection, console: Console, everything: bool) -> None:
    table = Table(title=Text("Layers"), title_justify="left", title_style="bold")
    table.add_column("name", overflow="fold")
    table.add_column("kind", overflow="fold")
    table.add_column("output", no_wrap=True)
    for column in ("MACs", "parameters"):
        table.add_column(column, justify="right", no_wrap=True)
    shown = found.layers if everything else found.layers[:_SHOWN]
    for layer in shown:
        table.add_row(*map(Text, _cells(layer, found)))
    console.print(table)
    if len(shown) < len(found.layers):
        console.print(f"... {len(found.layers) - len(shown)} more (--all)", markup=False, highlight=False)


def _cells(layer: Layer, found: Inspection) -> tuple[str, ...]:
    shape = "" if layer.shape is None else "x".join(map(str, layer.shape))
    macs = "" if layer.macs == 0 else words.amount(layer.macs) + _share(layer.macs, found.macs)
    params = f"{layer.params:,}{_share(layer.params, found.params)}" if layer.params else ""
    return layer.name, layer.kind, shape, macs, params


def _share(part: int | None, whole: int | None) -> str:
    return f" ({100 * part / whole:4.1f} %)" if part and whole else ""


def _print_groups(found: Inspection, console: Console, everything: bool) -> None:
    if found.kind != "torch":
        return
    lines = []
    for group in sorted(found.groups, key=lambda group: bool(group.refused)):
        others = [layer for layer in group.layers if layer != group.root]
        coupled = f", together with {', '.join(others)}" if others else ""
        verdict = f"not pruned: {group.refused}" if group.refused else "can be pruned"
        rows = f" of {group.rows} rows" if group.rows > 1 else ""
        lines.append(f"  {group.root}: {group.channels} channels{rows}{coupled}: {verdict}")
    console.print(Text(f"Coupled channels: {len(lines)} groups"), style="bold")
    for line in cut(lines, everything):
        console.print(Text(line), soft_wrap=True)


def _print_closeness(found: Inspection, console: Console, everything: bool) -> None:
    if not found.closeness:
        return
    console.print(Text("Signal to noise against the original, errors of the layers before included"), style="bold")
    lines = [f"  {each.layer} ({each.operator}): {each.snr_db:.1f} dB" for each in found.closeness]
    for line in cut(lines, everything):
        console.print(Text(line), soft_wrap=True)


def _spec(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} ({', '.join(map(str, spec.shape))})"
