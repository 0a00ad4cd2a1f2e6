"""How a student follows a teacher's outputs: the distillation losses by name, and the objective they are part of.

Each is a frozen dataclass whose fields are what `loss_options` may set. It is called with the student's and the
teacher's logits as rows `(R, C)`, a row for every sample and position, with the class of every row `(R,)` (the label,
or the teacher's first class where there is none) and the temperature, and returns a scalar.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.nn import functional

from ...core.errors import RecipeError
from ...core.tables import resolve
from ...core.task import Task
from ..schema import parse
from .losses import NamedLoss, named_loss, of_users

Measure = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
_Weight = Annotated[float, Field(ge=0)]
_SMALL = 1e-8  # keeps a constant row's correlation finite


def divergence(log_student: torch.Tensor, log_teacher: torch.Tensor) -> torch.Tensor:
    """`KL(t || s)` of every row of log-probabilities `(R, C)`; `(R,)`. A class of probability 0 adds nothing."""
    each = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True)
    return each.masked_fill(log_teacher == -torch.inf, 0.0).sum(1)


def pearson(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation of every row of `(R, C)`; `(R,)`."""
    return functional.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1, eps=_SMALL)


def others(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The logits `(R, C)` without each row's own class; `(R, C - 1)`."""
    index = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, index + (index >= classes[:, None]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class KD:
    """`T^2 * KL(t || s)` of the softened outputs (Hinton et al., 2015); the factor keeps the gradient's size."""

    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, classes: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        log_student, log_teacher = (functional.log_softmax(z / temperature, dim=1) for z in (student, teacher))
        return temperature**2 * divergence(log_student, log_teacher).mean()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DKD:
    """Decoupled: `T^2 * (alpha * TCKD + beta * NCKD)` (Zhao et al., CVPR 2022, eq. 7).

    TCKD is the divergence of (own class, all others), NCKD that among the others. KD is TCKD + (1 - p) NCKD with the
    teacher's probability p of the class: what a sure teacher knows of the others hardly counts there.
    """

    alpha: _Weight = 1.0
    beta: _Weight = 8.0

    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, classes: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        rest = [functional.log_softmax(others(z, classes) / temperature, dim=1) for z in (student, teacher)]
        own = [_own_or_other(z / temperature, classes) for z in (student, teacher)]
        return temperature**2 * (self.alpha * divergence(*own) + self.beta * divergence(*rest)).mean()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DIST:
    """`T^2 * (beta * inter + gamma * intra)`, one minus the correlation of rows and of columns (Huang et al., 2022).

    Of softened probabilities. Only relations count: what a sample is like more than what else, and, within a batch,
    which samples are more like a class. A far stronger teacher need not be matched in value.
    """

    beta: _Weight = 1.0
    gamma: _Weight = 1.0

    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, classes: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        s, t = (functional.softmax(z / temperature, dim=1) for z in (student, teacher))
        inter, intra = 1 - pearson(s, t).mean(), 1 - pearson(s.T, t.T).mean()
        return temperature**2 * (self.beta * inter + self.gamma * intra)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NKD:
    """Normalized (Yang et al., ICCV 2023): `-t log s` of the own class and `-gamma * T^2 * sum N(t) log N(s)`.

    N divides the probabilities of the other classes by their sum, so that both add up to one and the student is not
    pulled away from its own class to match them.
    """

    gamma: _Weight = 1.5

    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, classes: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        log_s, t = functional.log_softmax(student, dim=1), functional.softmax(teacher, dim=1)
        own = -(t * log_s).gather(1, classes[:, None]).mean()
        rest_s = functional.log_softmax(others(student, classes) / temperature, dim=1)
        rest_t = functional.softmax(others(teacher, classes) / temperature, dim=1)
        rest = (rest_t * rest_s).masked_fill(rest_t == 0, 0.0)  # a class that both rule out is 0 times infinity
        return own - self.gamma * temperature**2 * rest.sum(1).mean()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitMSE:
    """Mean squared difference of the logits (Ba & Caruana, 2014); the temperature has no meaning.

    Twice KD's limit for T -> infinity, but that KD does not see what is added to a whole row (Kim et al., 2021).
    """

    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, classes: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        return functional.mse_loss(student, teacher)


DISTILLATIONS: dict[str, type[Any]] = {"kd": KD, "dkd": DKD, "dist": DIST, "nkd": NKD, "mse": LogitMSE}


def measure_of(name: str | None, options: Mapping[str, float], task: Task, where: str) -> Measure | None:
    """The loss `name` with its options; None: a teacher's output is a label to the task's own loss, as in regression.

    Args:
        name: in the table or "package.module:attribute"; None: "kd" for classes.
        where: the stage, in front of errors.

    Raises:
        RecipeError: a name in no table, an option the loss does not have, or logits where the task has none.
    """
    task_loss = named_loss(task)
    if not task_loss.classes and isinstance(task.loss, str) and (name is not None or options):
        raise RecipeError(
            f"{where}.loss: '{task.loss}' has no classes; the teacher's output is a label to it: leave loss out"
        )
    if name is None and not task_loss.classes:
        if options:
            raise RecipeError(f"{where}.loss_options: they belong to a loss; name it with loss")
        return None
    entry: Any = resolve(name or "kd", DISTILLATIONS, f"{where}.loss")
    if options and not (dataclasses.is_dataclass(entry) and dataclasses.fields(entry)):
        raise RecipeError(f"{where}.loss_options: '{name or 'kd'}' has no options")
    if isinstance(entry, type) and dataclasses.is_dataclass(entry):
        entry = parse(entry, options, f"{where}.loss_options")
    found: Measure = entry if name is None or name in DISTILLATIONS else of_users(entry, f"{where}.loss: '{name}'")
    return found


def as_rows(output: torch.Tensor) -> torch.Tensor:
    """Logits `(N, C, ...)` as float32 rows `(N * positions, C)`."""
    return output.float().movedim(1, -1).reshape(-1, output.shape[1])


def classes_of(teacher: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """The class of each row of `as_rows(teacher)`: its label, or the teacher's first class where there is none."""
    guessed = teacher.argmax(1)
    if labels is None or labels.is_floating_point() or labels.shape[1:] != guessed.shape[1:]:
        return guessed.reshape(-1)
    known = torch.cat([labels.long(), guessed[len(labels) :]])
    return torch.where(known >= 0, known, guessed).reshape(-1)


def soft_part(
    measure: Measure | None,
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor | None,
    loss: NamedLoss,
    temperature: float,
    real: torch.Tensor | None = None,
) -> torch.Tensor:
    """How far the student's outputs `(N, ...)` are from the teacher's.

    Args:
        real: which positions of logits `(N, C, ...)` count, `(N, ...)`; None: all.
    """
    if measure is None:
        return loss.hard(student, loss.as_label(teacher))
    rows = [as_rows(student), as_rows(teacher), classes_of(teacher, labels)]
    if real is not None:
        rows = [each[real.reshape(-1)] for each in rows]
    return measure(rows[0], rows[1], rows[2], temperature)


def objective(
    student: torch.Tensor, soft: torch.Tensor, labels: torch.Tensor | None, labelled: int, loss: NamedLoss
) -> torch.Tensor:
    """`loss(y, s) + soft`; the first `labelled` samples have labels, the others the soft part alone.

    Args:
        student: outputs `(N, ...)`.
        soft: what the teachers' part of the loss came to, a scalar.
        labels: `(labelled, ...)`, or None where there are none.
    """
    if labels is None or labelled == 0:
        return soft
    # The hard part is a mean over all samples of which only some have labels, so that both parts weigh per sample.
    return loss.hard(student[:labelled], labels) * (labelled / len(student)) + soft


def _own_or_other(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Log-probabilities `(R, 2)` of each row's class and of all others together."""
    pair = [logits.gather(1, classes[:, None]), others(logits, classes).logsumexp(1, keepdim=True)]
    return functional.log_softmax(torch.cat(pair, 1), dim=1)
