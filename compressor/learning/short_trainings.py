"""Which of several short trainings ends best: validation data choose."""

import dataclasses
from collections.abc import Callable, Mapping

from ...core.errors import TrainingError
from ...exporters.sessions.torch_session import TorchSession
from ..candidate import Candidate
from ..evaluation import evaluate, task_metrics
from ..stage import Context


def best_on_validation(
    trials: Mapping[str, Callable[[Context], Candidate]], context: Context
) -> tuple[str | None, str]:
    """The one whose network is best, the first of equals; one that diverges is out.

    Args:
        trials: name -> trains in a context whose notes are thrown away.

    Returns:
        Its name, None where all diverge; and what each came to, in words.
    """
    task, scores = context.task, dict[str, float]()
    metric = task_metrics(task)[0]
    for name, trained in trials.items():
        try:
            module = trained(dataclasses.replace(context, notes=[])).module().to(context.machine.device)
        except TrainingError as error:
            context.progress.say(f"  {name}: {error}")
            continue
        session = TorchSession(module, task.input_specs(), task.outputs)
        scores[name] = evaluate(session, task.split("validation", context.where), (metric,))[metric.name]
        context.progress.say(f"  {name}: {metric.name} {scores[name]:.4f} on validation")
    tried = ", ".join(f"{name} {scores[name]:.4f}" if name in scores else f"{name} diverges" for name in trials)
    best = (max if metric.higher_is_better else min)(scores, key=lambda name: scores[name], default=None)
    return best, f"({metric.name} on validation): {tried}"
