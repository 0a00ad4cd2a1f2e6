"""The example a newcomer runs first, whole, as the README says; only the timing is shorter."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"


@pytest.mark.slow
@pytest.mark.alone
def test_digits_passes_its_limits_in_time(tmp_path: Path) -> None:
    folder = tmp_path / "a copy of digits"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "edgesmith",
        "compress",
        str(folder / "recipe.toml"),
        "--set",
        "measure.seconds=0.2",
    ]
    started = time.monotonic()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - started < 180
    report = json.loads((tmp_path / "runs" / "digits" / "report.json").read_text())
    assert {limit["name"]: limit["status"] for limit in report["limits"]} == {
        "drop": "pass", "speedup": "pass", "file_ratio": "pass",
    }  # fmt: skip
    assert report["original"]["accuracy"] > 0.97
    assert report["final"]["accuracy"] > 0.96
    assert report["speedup"]["low"] > 1.5
    assert "VERDICT: pass" in done.stdout
