"""Which of several plans for one time learns best: what training gives back is in no damage that is measured before it.

The damage of a block and that of channels are not alike in this: training gives back much of the one and little of the
other, by how much depends on the network. So plans are made with the damage of blocks at several prices, each is
trained for a little, and validation data choose.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from ...core.errors import TrainingError
from ..candidate import Candidate
from ..learning.finetune import Finetune
from ..learning.short_trainings import best_on_validation
from ..stage import Context
from .latency_allocation import Damage
from .latency_model import Plan

PRICES = (1.0, 0.25, 4.0)  # of a block, over its damage before training


def priced(damage: Damage, price: float) -> Damage:
    """The same with every block at that price."""
    return dataclasses.replace(damage, blocks={block: price * each for block, each in damage.blocks.items()})


def best(plans: Sequence[Plan], without: Callable[[Plan], Candidate], epochs: int, context: Context) -> Plan:
    """The plan whose network is best on validation data after so many epochs on the labels.

    Args:
        plans: different ones; of equals the first is taken.
        without: plan -> the network that it leaves.

    Raises:
        TrainingError: all diverge.
    """
    named = {f"{number} ({_text(plan)})": plan for number, plan in enumerate(plans, 1)}

    def trained(plan: Plan, trial: Context) -> Candidate:
        candidate = without(plan)  # a killed run may have found other plans: each has a checkpoint of its own
        short = Finetune(id="trial", epochs=epochs, mixed_precision="auto")
        return short.run(candidate, trial.within(f"trial-{candidate.digest()[:12]}"))

    trials = {name: functools.partial(trained, plan) for name, plan in named.items()}
    chosen, tried = best_on_validation(trials, context)
    if chosen is None:
        raise TrainingError(
            f"{context.where}.trial_epochs: every plan diverges as `finetune` trains by itself; leave trial_epochs out"
        )
    context.notes.append(f"plan {chosen.split()[0]}, the best after {epochs} epoch(s) {tried}")
    return named[chosen]


def _text(plan: Plan) -> str:
    return f"without {' and '.join(plan.gone)}" if plan.gone else "with every block"
