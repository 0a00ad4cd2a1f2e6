"""Which learning rate: each is tried for a few epochs from the same start, and validation data choose."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from ...core.errors import RecipeError, TrainingError
from ..candidate import Candidate
from ..stage import Context
from .short_trainings import best_on_validation
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
        trials = {f"{rate:g}": functools.partial(_within, trained, rate) for rate in self.learning_rates}
        best, tried = best_on_validation(trials, context)
        if best is None:
            raise TrainingError(f"{context.where}.learning_rates: every one diverges; give lower ones")
        context.notes.append(f"learning rate {best}, the best of {tried}")
        return self.learning_rates[list(trials).index(best)]


def _within(trained: Callable[[float, Context], Candidate], rate: float, trial: Context) -> Candidate:
    return trained(rate, trial.within(f"rate-{rate:g}"))
