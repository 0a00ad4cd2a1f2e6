"""A finished run at the gate: what the command says of it, as JSON and on one screen."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.cli import main
from edgesmith.core.errors import ExitCode
from tests.cli.planted import Weights

RUN = Path("runs/small")
BASELINE = Path("last/report.json")


def gate(capsys: pytest.CaptureFixture[str], code: int, *options: str, baseline: bool = True) -> dict[str, Any]:
    given = ["--baseline", str(BASELINE)] if baseline else []
    assert main(["gate", str(RUN), *given, "--json", *options]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def red(found: dict[str, Any]) -> dict[str, str]:
    """What is not passed: "group: name" -> status, what was found and the note."""
    return {
        f"{each['group']}: {each['name']}": f"{each['status']}: {each['found']}; {each['note']}"
        for each in found["checks"]
        if each["status"] != "pass"
    }


def on_one_screen(capsys: pytest.CaptureFixture[str], code: int, check: str, *said: str) -> None:
    """What a person sees: 40 lines of 80 columns, in which the failed check stands last and its reason in the table."""
    assert main(["gate", str(RUN), "--baseline", str(BASELINE)]) == code
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 80
    rows: list[list[str]] = []
    for line in lines:
        if line.startswith("│"):
            cells = [cell.strip() for cell in line.strip("│").split("│")]
            if cells[0]:
                rows.append(cells)
            else:  # a cell that goes on
                rows[-1] = [" ".join((a, b)).strip() for a, b in zip(rows[-1], cells, strict=True)]
    red = [" ".join(row) for row in rows if row[0] != "pass"]
    for table in "\n".join(lines).split("┡")[1:]:
        statuses = re.findall(r"^│ (\w+)", table, re.MULTILINE)
        assert statuses == sorted(statuses, key=["fail", "unproven", "pass"].index), "what is red comes first"
    for words in said:
        assert any(words in row for row in red), f"{words!r} is not in {red}"
    verdict = " ".join(" ".join(lines).split("GATE: ")[1].split())
    assert check in verdict


def nudge(weights: Weights) -> None:
    """Another file that answers the same."""
    weights["module.head.bias"] *= np.float32(1.0001)


def refusal(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["gate", str(RUN), *options]) == ExitCode.USAGE
    return capsys.readouterr().err.strip()
