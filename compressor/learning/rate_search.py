"""Which learning rate: each is tried for a few epochs from the same start, and validation data choose."""

import dataclasses
from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from ...core.errors import RecipeError, TrainingError
from ...exporters.sessions.torch_session import TorchSession
from ..candidate import Candidate
from ..evaluation import evaluate, task_metrics
from ..stage import Context
from .training import Training


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateSearchKeys:
    """Recipe keys of the search."""

    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = ()  # to choose from, in place of learning_rate
    search_epochs: Annotated[int, Field(ge=1)] = 1  # of each

    def check_search(self, training: Training, where: str) -> None:
        """Refuse a search of nothing, or beside a rate that is set.

        Raises:
            RecipeError: names the key.
        """
        if self.learning_rates and training.learning_rate != Training.learning_rate:
            raise RecipeError(f"{where}: set learning_rate or learning_rates, not both")
        if len(self.learning_rates) == 1:
            raise RecipeError(f"{where}.learning_rates: one rate leaves no choice; set learning_rate = ... instead")
        if len(set(self.learning_rates)) < len(self.learning_rates):
            raise RecipeError(f"{where}.learning_rates: {list(self.learning_rates)} names a rate twice")
        if self.search_epochs != 1 and not self.learning_rates:
            raise RecipeError(f"{where}.search_epochs: nothing reads it without learning_rates")

    def best_rate(self, trained: Callable[[float, Context], Candidate], context: Context) -> float:
        """The rate whose training ends best on validation data; one that diverges is out.

        Args:
            trained: rate and context -> what the trial comes to; called with a context whose notes are thrown away.

        Raises:
            TrainingError: all diverge.
        """
        task = context.task
        metric = task_metrics(task)[0]
        scores: dict[float, float] = {}
        for rate in self.learning_rates:
            trial = dataclasses.replace(context.within(f"rate-{rate:g}"), notes=[])
            try:
                module = trained(rate, trial).module().to(context.machine.device)
            except TrainingError as error:
                context.progress.say(f"  learning rate {rate:g}: {error}")
                continue
            session = TorchSession(module, task.input_specs(), task.outputs)
            scores[rate] = evaluate(session, task.split("validation", context.where), (metric,))[metric.name]
            context.progress.say(f"  learning rate {rate:g}: {metric.name} {scores[rate]:.4f} on validation")
        if not scores:
            raise TrainingError(f"{context.where}.learning_rates: every one diverges; give lower ones")
        best = (max if metric.higher_is_better else min)(scores, key=lambda rate: scores[rate])
        tried = ", ".join(
            f"{rate:g} {scores[rate]:.4f}" if rate in scores else f"{rate:g} diverges" for rate in self.learning_rates
        )
        context.notes.append(f"learning rate {best:g}, the best of ({metric.name} on validation): {tried}")
        return best
