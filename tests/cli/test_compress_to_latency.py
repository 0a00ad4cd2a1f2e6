"""`edgesmith compress` with a pruning to a time: what is measured is kept for the machine, what was asked is held."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgesmith.cli import main
from edgesmith.compressor.edit import Edit
from edgesmith.compressor.pruning.prune_to_latency import Planner
from edgesmith.core.errors import ExitCode
from tests.quick import BRIEF

from .test_compress_like import PRUNED_TO_LATENCY


class Plans:
    """In the place of `Planner.edits`: asks for measured times, and leaves what was asked for."""

    def __init__(self) -> None:
        self.measured, self.asked = 0, 1e6

    def edits(self, planner: Planner, *_: Any) -> tuple[Edit, ...]:
        found = planner._context.deployment.once({"plans": []}, self.measure)
        assert found == {"times": [0.5, 0.25]}
        planner._context.for_verdict["asked"] = {"key": "latency_ms", "value": self.asked}
        return (planner._groups[0].edit([1]),)

    def measure(self, work: Path) -> dict[str, Any]:
        self.measured += 1
        return {"times": [0.5, 0.25]}


@pytest.fixture
def plans(project: Path, monkeypatch: pytest.MonkeyPatch) -> Plans:
    (project / "recipe.toml").write_text(PRUNED_TO_LATENCY)
    made = Plans()
    monkeypatch.setattr(Planner, "edits", lambda planner, *given: made.edits(planner, *given))
    return made


def test_widths_are_measured_once_for_the_machine_and_what_was_asked_is_held(
    plans: Plans, project: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for out, plans.asked, code in (("one", 1e6, ExitCode.PASS), ("two", 1e-6, ExitCode.LIMIT_MISSED)):
        assert main(["compress", "recipe.toml", "--out", out, *BRIEF]) == code
    (kept,) = (tmp_path / "cache" / "edgesmith" / "latency").iterdir()
    said = f"latencies of other widths found before of the same networks on this machine: {kept}; delete it to measure "
    assert [line for line in capsys.readouterr().err.splitlines() if "found before" in line] == [f"{said}them anew"]
    assert plans.measured == 1
    met, missed = (json.loads((project / out / "report.json").read_text()) for out in ("one", "two"))
    assert (met["verdict"], [each["name"] for each in met["limits"]]) == ("pass", ["file_ratio"])
    assert missed["verdict"] == "fail"
    assert [(each["name"], each["status"]) for each in missed["limits"]] == [
        ("file_ratio", "pass"),
        ("asked_latency", "fail"),
    ]
    assert (
        missed["limits"][1]["note"] == "stage 'prune' was asked for latency_ms = 1e-06, of which 5 % more is let pass"
    )
    for report, value in ((met, "1e+06"), (missed, "1e-06")):
        (note,) = (note for note in report["stages"][1]["notes"] if "finished" in note)
        assert note.startswith(f"latency_ms {value} asked, the finished artefact has ")
    # The other commands read that report, and the limit the recipe did not set.
    assert main(["gate", "two", "--json"]) == ExitCode.LIMIT_MISSED
    (check,) = (each for each in json.loads(capsys.readouterr().out)["checks"] if each["name"] == "asked_latency")
    assert check["status"] == "fail"
    assert check["promise"] == "latency, beside what a pruning was asked for at most 1.05e-06 ms"
    assert main(["verify", "two"]) == ExitCode.PASS
