"""The composite action: its shell steps run as GitHub runs them, on a finished run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from edgesmith.core.errors import ExitCode

ACTION = Path(__file__).parents[2] / ".github/actions/gate/action.yml"
RUN = Path("runs/small")


def step(action: dict[str, Any], given: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the only step with `${{ inputs.NAME }}` filled in, by bash -eo pipefail as GitHub's runner does."""
    inputs = {name: given.get(name, each.get("default")) for name, each in action["inputs"].items()}
    (only,) = action["runs"]["steps"]
    assert only["shell"] == "bash"
    assert "${{" not in only["run"], "an input within a script is code of whoever sets it"
    variables = {
        name: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda match: inputs[match[1]], text)
        for name, text in only["env"].items()
    }
    Path("bin").mkdir(exist_ok=True)
    program = Path("bin/edgesmith")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edgesmith "$@"\n')
    program.chmod(0o755)
    Path("step.sh").write_text(only["run"])
    environment = {
        **os.environ,
        **variables,
        "PATH": f"{Path('bin').resolve()}:{os.environ['PATH']}",
        "GITHUB_OUTPUT": str(Path("output.txt").resolve()),
        "GITHUB_STEP_SUMMARY": str(Path("summary.md").resolve()),
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "step.sh"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def action() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(ACTION.read_text())
    return found


def test_green_then_red(finished: Path, action: dict[str, Any]) -> None:
    given = {
        "run": str(RUN),
        "baseline": "the bar/report.json",
        "ratchet": "true",
        "margins": "drop=0.02\n\nfile=0.5\n",
    }
    done = step(action, given)
    assert done.returncode == ExitCode.PASS, done.stderr
    assert Path("the bar/report.json").read_text()
    assert done.stdout.startswith(
        "::notice title=edgesmith gate::small: every limit is kept, proven at 95 %25 confidence\n"
    )
    _, stop, *table, again = done.stdout.splitlines()
    word = stop.removeprefix("::stop-commands::")  # a task called "\n::error::" is a name in a table, and nothing more
    assert stop.startswith("::stop-commands::") and again == f"::{word}::" and len(table) > 5
    assert Path("summary.md").read_text().startswith("### ✅ small on onnxruntime-cpu: pass\n")

    shutil.copy("task.py", RUN / "artifacts/tensorrt/model.onnx")
    done = step(action, given)
    assert done.returncode == ExitCode.LIMIT_MISSED
    assert done.stdout.startswith(
        "::error title=fail%3A file%3A tensorrt::artifacts/tensorrt/model.onnx is the int8 file"
    )
    assert "the bar/report.json stays as it is: the gate says fail" in " ".join(done.stdout.split())
    assert Path("output.txt").read_text() == "status=pass\nstatus=fail\n"
    assert "### ❌ small on onnxruntime-cpu: fail\n" in Path("summary.md").read_text()
    root = ElementTree.parse("edgesmith-gate.xml").getroot()
    assert root.get("failures") == "1"


def test_what_cannot_be_judged_is_red_too(finished: Path, action: dict[str, Any]) -> None:
    done = step(action, {"run": "$(touch oops)"})
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.startswith("RunDirectoryError: $(touch oops): not a finished run")
    assert done.stdout.startswith("::error title=RunDirectoryError::$(touch oops): not a finished run")
    assert Path("output.txt").read_text() == "status=error\n"
    assert not Path("oops").exists()
