"""Which of several plans for one time learns best: what training gives back is in no damage that is measured before it.

The damage of a block and that of channels are not alike in this: training gives back much of the one and little of the
other, by how much depends on the network. So plans are made with the damage of blocks at several prices, each is
trained for a little, and validation data choose.
"""

import dataclasses
from collections.abc import Callable, Sequence

from ...exporters.sessions.torch_session import TorchSession
from ..candidate import Candidate
from ..evaluation import evaluate, task_metrics
from ..learning.finetune import Finetune
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
    """
    task, scores = context.task, []
    metric = task_metrics(task)[0]
    for plan in plans:
        candidate = without(plan)
        trial = dataclasses.replace(context.within(f"trial-{candidate.digest()[:12]}"), notes=[])
        module = Finetune(id="trial", epochs=epochs, mixed_precision="auto").run(candidate, trial).module()
        session = TorchSession(module.to(context.machine.device), task.input_specs(), task.outputs)
        scores.append(evaluate(session, task.split("validation", context.where), (metric,))[metric.name])
        context.progress.say(f"  {_text(plan)}: {metric.name} {scores[-1]:.4f} on validation")
    tried = ", ".join(f"{_text(plan)} {score:.4f}" for plan, score in zip(plans, scores, strict=True))
    context.notes.append(f"plans after {epochs} epoch(s) ({metric.name} on validation): {tried}")
    return plans[scores.index((max if metric.higher_is_better else min)(scores))]


def _text(plan: Plan) -> str:
    return f"without {' and '.join(plan.gone)}" if plan.gone else "with every block"
