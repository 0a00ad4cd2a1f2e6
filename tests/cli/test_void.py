"""A GPU that is slowed down in every run: whatever command measures ends as unproven, with the reason and the remedy."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.benches.timing import latency
from edgesmith.cli import main
from edgesmith.core.errors import ExitCode

RUN = Path("runs/small")
FINAL = "artifacts/onnxruntime-cpu/model.onnx"
SAID = (
    "VoidError: the GPU was slowed down (hardware thermal slowdown) in 5 of 5 runs, which says nothing of the models, so "
    "that nothing is proven; cool it, or lock clocks that it can keep (nvidia-smi --lock-gpu-clocks=MIN,MAX), and run the "
    "same command again"
)


@pytest.fixture
def hot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every timing process comes back and says that it was slowed down: no such GPU is at hand."""
    real = latency.child.run

    def run(program: str, job: dict[str, Any], folder: Path, threads: int, timeout: float) -> str:
        if not program.endswith("timing_loop"):
            return real(program, job, folder, threads, timeout)
        np.savez(job["result"], slowdowns=0x40, clocks="watched")
        return ""

    monkeypatch.setattr(latency.child, "run", run)


COMMANDS: dict[str, list[str]] = {
    "bench": ["bench", str(RUN / "measurements/00-original/model.onnx"), str(RUN / FINAL)],
    "verify": ["verify", str(RUN), "--measure"],
    "compress": ["compress", "recipe.toml", "--set", "measure.restarts=5", "--set", "measure.seconds=0.3"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_void_is_unproven(name: str, finished: Path, hot: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A guide's few restarts (3, or 2 of the ledger's glance) are void as a release's five are."""
    code = main([*COMMANDS[name], "--json"])
    said = capsys.readouterr()
    assert (code, re.sub(r"[23] of [23]", "5 of 5", said.err.splitlines()[-1])) == (ExitCode.UNPROVEN, SAID)
    tree = json.loads(said.out)
    assert (tree["error"], tree["exit_code"]) == ("VoidError", 4)
