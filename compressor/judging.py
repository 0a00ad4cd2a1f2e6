"""Original and final on the test split, measured and held to the limits; no measurement is made twice."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..benches.gates.judge import judge
from ..benches.metrics.groups import GroupLoss
from ..core.limits import Verdict
from ..exporters.targets.targets import TARGETS
from . import measuring, predictions
from .auditing import Once, Pair, corruption_losses
from .evaluation import task_metrics
from .measuring import Costs, Outcome
from .progress import Progress
from .recipe import Recipe
from .schema import plain

_COSTS = 4  # of what is measured of the pair; a release that measures more raises it


def judged(pair: Pair, recipe: Recipe, out: Path, once: Once, progress: Progress) -> tuple[Outcome, Verdict]:
    """Predictions, time and memory of both, and the verdict; where the time decides nothing, it is measured for longer.

    Args:
        out: the run directory, where the predictions are left for `edgesmith gate` and `audit`.
        once: `RunDirectory.once`.
    """
    how = pair.key | {"measure": plain(recipe.measure), "confidence": recipe.limits.confidence, "costs": _COSTS}
    measured = (pair.original, pair.final, pair.task)
    kept, higher_is_better = out / predictions.PREDICTIONS, task_metrics(pair.task)[0].higher_is_better

    def predict(folder: Path, work: Path) -> dict[str, Any]:
        predictions.keep_predictions(*measured, pair.threads, folder)
        return {}

    def costs_of(place: str, measure: Callable[[], Costs]) -> Costs:
        done = once(place, how, lambda folder, work: measuring.costs_to_json(measure()))
        return measuring.costs_from_json(done.facts)

    def held(costs: Costs) -> tuple[Outcome, Verdict]:
        found = measuring.outcome(pair.original, pair.final, costs, pair.task, recipe.limits, kept, corruptions)
        return found, judge(recipe.limits, found.evidence, higher_is_better)

    done = once("measurements/predictions", pair.key, predict)
    shutil.copyfile(done.path / predictions.PREDICTIONS, kept)
    corruptions = _corruptions(pair, recipe, once, progress)
    costs = costs_of("measurements/costs", lambda: measuring.measure_costs(*measured, recipe, pair.threads, progress))
    found, verdict = held(costs)
    if measuring.wants_another_look(verdict, recipe):
        progress.say("  the time decides no limit yet: measuring for longer")

        def longer() -> Costs:
            return measuring.look_again(costs, *measured, recipe, pair.threads, progress)

        found, verdict = held(costs_of("measurements/costs-longer", longer))
    return found, verdict


def _corruptions(pair: Pair, recipe: Recipe, once: Once, progress: Progress) -> tuple[GroupLoss, ...]:
    """What was lost under each corruption; measured where a limit asks for it and the target is here."""
    if recipe.limits.corruption_drop is None or TARGETS[pair.final.target].unmeasurable() is not None:
        return ()
    progress.say("measuring both on corrupted test data")
    return corruption_losses(pair, once, recipe.limits.confidence, progress)
