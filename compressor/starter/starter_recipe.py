"""The figures of a generated recipe: how long to train, how much to calibrate, and limits that the data can prove."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ...core.task import Task
from ...core.values import Session
from ...exporters.sessions.ort_session import OnnxRuntimeSession
from ...exporters.sessions.torch_session import TorchSession
from ..evaluation import evaluate, task_metrics
from . import starter_limits
from .starter_data import Sizes
from .starter_sources import Source

_STEPS = 2000  # of training, where the epochs below allow it
_EPOCHS = {"torch": (5, 20), "huggingface": (1, 4)}  # a pretrained transformer forgets with more
_RATES = {"torch": 1e-3, "huggingface": 5e-5}
_BATCHES = {"torch": (1, 32), "huggingface": (1, 8), "onnx": (1, 32)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What the recipe's template reads besides the source."""

    trains: bool
    drop: float
    drop_comment: tuple[str, ...]
    epochs: int
    batch_size: int
    learning_rate: float
    samples: int
    macs_ratio: float | None = None
    only: tuple[str, ...] = ()  # layers that pruning is confined to
    no_prune: str = ""  # why there is no prune stage


def plan_for(source: Source, sizes: Sizes, task: Task, module: nn.Module | None) -> Plan:
    """Moderate figures for this model and this much data."""
    trains = source.kind != "onnx"
    batch_size = min(64 if source.kind == "torch" else 16, max(2, sizes.train // 4))
    fewest, most = _EPOCHS.get(source.kind, (0, 0))
    epochs = min(most, max(fewest, round(_STEPS * batch_size / sizes.train)))
    drop, comment = _drop(source, sizes, task, module)
    return Plan(
        trains=trains,
        drop=drop,
        drop_comment=comment,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=_RATES.get(source.kind, 0.0),
        samples=min(512, sizes.train),
    )


def recipe_context(plan: Plan, source: Source, recipe: Path) -> Mapping[str, Any]:
    """What the recipe's template reads."""
    return dataclasses.asdict(plan) | {
        "title": source.reference,
        "recipe": recipe,
        "train_split": "train" if plan.trains else "calibration",
        "batch_sizes": _BATCHES[source.kind],
        "speedup": 1.0,
        "file_ratio": 1.0,
    }


def _drop(source: Source, sizes: Sizes, task: Task, module: nn.Module | None) -> tuple[float, tuple[str, ...]]:
    """The limit on the loss of the main metric, and the comment that says where it comes from."""
    if source.agreement == "closeness":
        return 0.1, ("The answers may be a tenth of their size away from the original's, on average.",)
    if source.probed.problem == "numbers":
        value = _original(task, module)
        drop = starter_limits.drop_of_error(value)
        return drop, (
            f"The original's mean absolute error on validation is {value:.3g}; a tenth of that may be added.",
        )
    drop = starter_limits.drop_of_proportion(sizes.test)
    points = f"{100 * drop:g} point{'' if drop == 0.01 else 's'}"
    lines = [f"{sizes.test:,} test samples can prove a drop of about {points} in {_unit(source)}."]
    if drop > 0.01:
        lines.append(f"A drop of 1 point takes about {starter_limits.samples_for(0.01):,} of them.")
    return drop, tuple(lines)


def _unit(source: Source) -> str:
    if source.agreement:
        return "agreement with the original"
    return "accuracy" if source.probed.problem == "classes" else "mean IoU"


def _original(task: Task, module: nn.Module | None) -> float:
    """The trained original's main metric on the validation split."""
    split, wanted = task.split("validation", "the limit"), task_metrics(task)[:1]
    if module is not None:
        session: Session = TorchSession(module, task.input_specs(), task.outputs)
    else:
        assert isinstance(task.model, (str, Path))  # `init` writes no other
        session = OnnxRuntimeSession(task.model)
    try:
        return evaluate(session, split, wanted)[wanted[0].name]
    finally:
        session.close()
