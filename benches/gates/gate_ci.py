"""A gate for a continuous integration: JUnit XML, Markdown for a pull request, annotations of GitHub Actions."""

import re
from xml.etree import ElementTree

from .gate_check import Check, Gate
from .gate_text import TITLES, sentence, worst_first

_MARKS = {"pass": "✅", "fail": "❌", "unproven": "⚠️"}
_FORBIDDEN = re.compile("[^\t\n -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SHOWN = 12  # rows that pass; the others are counted, so that a pull request stays on one screen


def junit(gate: Gate) -> str:
    """JUnit XML: one suite per group, one case per check.

    What failed is a `failure` of type "fail"; what is unproven one of type "unproven", for it stops a release too.
    """
    root = ElementTree.Element("testsuites", {"name": f"edgesmith gate {_clean(gate.task)}", **_counts(gate.checks)})
    for group, title in TITLES.items():
        checks = tuple(each for each in gate.checks if each.group == group)
        if not checks:
            continue
        suite = ElementTree.SubElement(root, "testsuite", {"name": title, **_counts(checks)})
        for each in checks:
            name, owner = _clean(each.name), f"edgesmith.{_clean(gate.task)}.{group}"
            case = ElementTree.SubElement(suite, "testcase", classname=owner, name=name, time="0")
            if each.status != "pass":
                said = ElementTree.SubElement(case, "failure", type=each.status, message=_clean(_reason(each)))
                said.text = _clean(f"promise: {each.promise}\nmeasured: {each.found}\n{each.note}".rstrip())
            ElementTree.SubElement(case, "system-out").text = _clean(f"{each.promise}: {each.found}")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def markdown(gate: Gate) -> str:
    """The verdict and one table, what is red first; at most a dozen rows of what passes."""
    lines = [
        f"### {_MARKS[gate.status]} {_cell(gate.task)} on {_cell(gate.target)}: {gate.status}",
        "",
        f"{_cell(sentence(gate))}.",
        "",
        "| | check | promise | measured | note |",
        "|---|---|---|---|---|",
    ]
    ordered = worst_first(gate.checks)
    # The delta is what a reviewer looks for: comparisons before limits before files.
    order = {"baseline": 0, "limit": 1, "file": 2}
    passed = sorted((each for each in ordered if each.status == "pass"), key=lambda each: order[each.group])
    for each in (*(each for each in ordered if each.status != "pass"), *passed[:_SHOWN]):
        cells = (_MARKS[each.status], each.id, each.promise, each.found, each.note)
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    if len(passed) > _SHOWN:
        lines += ["", f"{len(passed) - _SHOWN} more checks pass."]
    if gate.ratchet:
        lines += ["", f"{_cell(gate.ratchet)}."]
    return "\n".join(lines) + "\n"


def annotations(gate: Gate) -> list[str]:
    """Workflow commands of GitHub Actions: an error for each check that is not passed, or one notice."""
    red = [each for each in worst_first(gate.checks) if each.status != "pass"]
    found = [annotation(f"{each.status}: {each.id}", _reason(each)) for each in red]
    return found or [f"::notice title=edgesmith gate::{_data(f'{gate.task}: {sentence(gate)}')}"]


def annotation(title: str, text: str) -> str:
    """One error as a workflow command."""
    return f"::error title={_property(title)}::{_data(text)}"


def _reason(each: Check) -> str:
    return f"{each.promise}: {each.found}" + (f" - {each.note}" if each.note else "")


def _counts(checks: tuple[Check, ...]) -> dict[str, str]:
    red = sum(each.status != "pass" for each in checks)
    return {"tests": str(len(checks)), "failures": str(red), "errors": "0"}


def _clean(text: str) -> str:
    """Without the characters that XML 1.0 forbids even escaped (its production 2): controls, half of a pair."""
    return _FORBIDDEN.sub("?", text)


def _cell(text: str) -> str:
    """Text that stays one cell, and text: no markup, no line breaks."""
    text = _clean(text)
    for each in "\\`*_[]|#~":
        text = text.replace(each, f"\\{each}")
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())


def _data(text: str) -> str:
    """As a workflow command wants its message."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
