"""A gate on the terminal, what is red first."""

from rich.console import Console
from rich.text import Text

from ..report import words
from ..report.terminal import STYLES, add_row, new_table
from .gate_check import Check, Gate

TITLES = {"file": "Files", "limit": "Limits of the run", "baseline": "Against the last release"}
_ORDER = {"fail": 0, "unproven": 1, "pass": 2}


def worst_first(checks: tuple[Check, ...]) -> list[Check]:
    """Failed ones, unproven ones, the rest; each kind in the order it was checked in."""
    return sorted(checks, key=lambda each: _ORDER[each.status])


def sentence(gate: Gate) -> str:
    """The status and why, in one line."""
    at = f"at {words.percent(gate.confidence)} confidence"
    if gate.status == "pass":
        than = "" if gate.baseline is None else ", and nothing is worse than the last release beyond its margin"
        return f"every limit is kept{than}, proven {at}"
    names = [each.id for each in gate.checks if each.status == gate.status]
    how = "failed" if gate.status == "fail" else "unproven"
    return f"{len(names)} of {len(gate.checks)} checks {how} ({', '.join(names)})"


def print_gate(gate: Gate, console: Console) -> None:
    """One table per group, the verdict last."""
    for group, title in TITLES.items():
        found = worst_first(tuple(each for each in gate.checks if each.group == group))
        if group == "file" and all(each.status == "pass" for each in found):
            console.print(Text(f"{len(found)} files are what the run wrote and what they are called"))
            continue
        if not found:
            continue
        title = f"{title}: {gate.baseline}" if group == "baseline" else title
        table = new_table(title, "", "promise", "measured", "note")
        for each in found:
            add_row(table, each.status, each.promise, each.found, each.note)
        console.print(table)
    if gate.ratchet:
        console.print(Text(gate.ratchet))
    console.print(Text.assemble((f"GATE: {gate.status}", STYLES[gate.status]), f" - {sentence(gate)}"))
