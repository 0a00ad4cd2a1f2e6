"""What stages were asked for and what they claim, held to the finished artefact and, last of all, to the test data."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..benches.gates.judge import Evidence
from ..core.ledger import Ledger
from ..core.limits import Verdict
from .progress import Progress
from .stage import Stage


def held(
    stages: Sequence[Stage],
    left: Mapping[str, Mapping[str, Any]],
    evidence: Evidence,
    verdict: Verdict,
    ledger: Ledger,
    tested: Callable[[int, Stage], list[str]],
    progress: Progress,
) -> tuple[Verdict, Ledger]:
    """The verdict with what stages have missed, and the ledger with what they say now.

    Args:
        left: stage id -> what its `run` left in `Context.for_verdict`; of a stage that left nothing nothing is said.
        evidence: what the verdict rests on.
        tested: (number of a stage, the stage) -> its `after_verdict`.
    """
    for number, stage in enumerate(stages):
        if not left[stage.id]:
            continue
        notes: list[str] = []
        if not any(later.takes() == "nothing" for later in stages[number + 1 :]):  # else another network is judged
            notes, missed = stage.held(left[stage.id], evidence)
            verdict = dataclasses.replace(verdict, results=(*verdict.results, *missed))
        notes = [*notes, *tested(number, stage)]
        for note in notes:
            progress.say(f"  {stage.id}: {note}")
        ledger = ledger.with_notes(stage.id, notes)
    return verdict, ledger
