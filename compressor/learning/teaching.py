"""Teachers: which models teach, how much each counts, and the objective they set a student."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from ...benches.metrics.accuracy import predict
from ...core.errors import DataError, RecipeError, TaskError
from ...core.task import ArraySplit, Task
from ...core.values import Session
from ...exporters.sessions.ort_session import OnnxRuntimeSession
from ...exporters.sessions.torch_session import copied, forward
from ..candidate import Candidate
from ..data import batches
from ..model_graph import graph_of
from ..stage import Context, Graph
from ..task_file import run_user_code
from .distillation import LogitMSE, measure_of, objective, soft_part
from .losses import named_loss
from .padding import standing
from .remembered import remembered
from .training import Objective, require_training_data
from .training_data import TrainingData, check_lengths

Tensors = Mapping[str, torch.Tensor]
_JUDGED_AT_ONCE = 64  # validation samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """A model that answers input tensors with the first output, without gradients."""

    ask: Callable[[Tensors], torch.Tensor]
    module: nn.Module | None = None  # None: a file, of which only outputs are seen

    def __call__(self, inputs: Tensors) -> torch.Tensor:
        return self.ask(inputs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taught:
    """Recipe keys of every stage in which models teach."""

    teacher: str | None = None  # "original", the id of an earlier stage, or a name in the task's models; None: original
    teachers: tuple[str, ...] = ()  # several, in place of `teacher`
    teacher_weights: Literal["equal", "competence"] = "equal"
    loss: str | None = None  # in `distillation.DISTILLATIONS`; None: kd for classes, else the task's own
    loss_options: Mapping[str, float] = dataclasses.field(default_factory=dict)
    temperature: Annotated[float, Field(gt=0)] = 4.0
    weight: Annotated[float, Field(gt=0)] = 1.0  # lambda: of the teachers' part in the loss

    def teacher_names(self) -> tuple[str, ...]:
        """Who teaches, as `Context.named` knows them."""
        return self.teachers or (self.teacher or "original",)

    def check_teaching(self, task: Task, where: str) -> None:
        """Refuse settings and data no lesson can be given with.

        Raises:
            RecipeError, TaskError: see `Stage.check`.
        """
        if self.teacher is not None and self.teachers:
            raise RecipeError(f"{where}: set teacher or teachers, not both")
        if len(set(self.teachers)) != len(self.teachers):
            raise RecipeError(f"{where}.teachers: {list(self.teachers)} names one twice")
        if self.teacher_weights == "competence" and len(self.teachers) < 2:
            raise RecipeError(f"{where}.teacher_weights: 'competence' compares teachers; name several in teachers")
        measure = measure_of(self.loss, self.loss_options, task, where)
        if self.temperature != Taught.temperature and (measure is None or isinstance(measure, LogitMSE)):
            reason = "the task's own loss compares numbers" if measure is None else "'mse' compares the logits"
            raise RecipeError(f"{where}.temperature: {reason}, and nothing is softened; leave it out")
        require_training_data(task, where, labels=False)
        check_lengths(task, where)

    def samples_taught(self, task: Task) -> int:
        """Labelled ones and others."""
        return sum(len(split) for split in (task.train, task.unlabelled) if split is not None)


def check_answers(names: Sequence[str], student: Candidate, context: Context) -> None:
    """Refuse before any work a teacher that answers in another shape than the student, unless it is yet to be made.

    Raises:
        DataError: which, and both shapes.
    """
    teachers = {name: context.named(name) for name in names}
    there = {name: each for name, each in teachers.items() if isinstance(each, Candidate) or each.path != Path()}
    own = _shape(student, context, "the student") if there else torch.Size()
    for name, model in there.items():
        if isinstance(model, Candidate):
            shape = _shape(model, context, f"teacher '{name}'")
        else:
            graph_of(model.path, context.task, name)  # refuses a pickle, and a truncated or hostile file
            shape = open_teacher(model, context)(copied(student.example)).shape
        _check_shapes(name, own, shape, context)


def _shape(model: Candidate, context: Context, who: str) -> torch.Size:
    """Of what it answers to two samples."""
    outputs, where = context.task.outputs, f"{context.where}: {who}"

    def ask() -> torch.Tensor:
        try:
            with torch.no_grad():
                return forward(model.module().eval(), copied(model.example), outputs)[outputs[0]]
        except TaskError as error:  # says what the model returns, not which one
            raise TaskError(f"{where}: {error}") from error

    answer: torch.Tensor = run_user_code(ask, where)
    return answer.shape


def _check_shapes(name: str, student: torch.Size, teacher: torch.Size, context: Context) -> None:
    if student != teacher:
        raise DataError(
            f"{context.where}: output '{context.task.outputs[0]}' is {tuple(student)} for the student, "
            f"{tuple(teacher)} for teacher '{name}'; they must agree"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lesson:
    """The objective, and who teaches with what share; shares add up to 1."""

    objective: Objective
    teachers: Mapping[str, Teacher]
    shares: Mapping[str, float]

    def note(self) -> str:
        """For the ledger: "taught by original"."""
        if len(self.shares) == 1:
            return f"taught by {next(iter(self.shares))}"
        return "taught by " + ", ".join(f"{name} ({share:.2f})" for name, share in self.shares.items())


def lesson_of(stage: Taught, context: Context, data: TrainingData | None = None) -> Lesson:
    """`loss(y, s) + weight * sum_k share_k * measure(s, t_k)`, and of samples without labels the second part alone.

    Every teacher is asked about the very tensors the student gets: same augmentation, same crop (consistent views,
    Beyer et al., CVPR 2022), each about a copy, so that a model that changes its input changes nobody else's.

    Args:
        data: what the student sees, where that is the same in every epoch: the teachers are asked about it once.
    """
    loss, output = named_loss(context.task), context.task.outputs[0]
    measure = measure_of(stage.loss, stage.loss_options, context.task, context.where)
    said = f"{context.where}: the task's loss with a teacher's output for the labels (or compare: loss = \"mse\")"
    soft_loss = named_loss(context.task, said)
    teachers = {name: open_teacher(context.named(name), context) for name in stage.teacher_names()}
    shares = _shares(teachers, stage.teacher_weights, context)
    if data is not None:
        teachers = {
            name: dataclasses.replace(teacher, ask=remembered(teacher.ask, data, context, name))
            for name, teacher in teachers.items()
        }

    def taught(model: nn.Module, inputs: Tensors, labels: torch.Tensor | None, labelled: int) -> torch.Tensor:
        targets = {name: teacher(copied(inputs)) for name, teacher in teachers.items()}
        answers = forward(model, inputs, context.task.outputs)[output]
        real, soft = standing(inputs, answers.shape[2:]), torch.zeros((), device=answers.device)
        for name, target in targets.items():
            _check_shapes(name, answers.shape, target.shape, context)
            part = soft_part(measure, answers, target, labels, soft_loss, stage.temperature, real)
            soft = soft + shares[name] * part
        return objective(answers, stage.weight * soft, labels, labelled, loss)

    return Lesson(objective=taught, teachers=teachers, shares=shares)


def open_teacher(model: Candidate | Graph, context: Context, output: str | None = None) -> Teacher:
    """A module or a file as a teacher, on the machine's device; `output` is what it is asked for, None: the first."""
    outputs = context.task.outputs
    output = output or outputs[0]
    if isinstance(model, Candidate):
        module = model.module().to(context.machine.device).eval()

        def ask_module(inputs: Tensors) -> torch.Tensor:
            with torch.no_grad():
                return forward(module, inputs, outputs)[output].float()

        return Teacher(ask=ask_module, module=module)
    path, exact = model.trained or model.path, model.trained is not None
    session: Session = OnnxRuntimeSession(path, device=context.machine.device, exact=exact)
    names = [spec.name for spec in session.outputs]
    if output not in names:
        raise RecipeError(
            f"{context.where}.teacher: {path} has the outputs {names}, but the task's first is '{output}'"
        )

    def ask_session(inputs: Tensors) -> torch.Tensor:
        device = next(iter(inputs.values())).device
        asked = ArraySplit({name: tensor.cpu().numpy() for name, tensor in inputs.items()})
        answers = predict(session, asked, len(asked))  # at the batch that a file may be fixed to
        return torch.tensor(answers[output], device=device)

    return Teacher(ask=ask_session)


def _shares(teachers: Mapping[str, Teacher], weights: str, context: Context) -> dict[str, float]:
    """What each teacher counts: the same, or in inverse proportion to its loss on validation.

    Weighing by the inverse of the squared error is what combines independent estimates best (Bates & Granger, 1969).
    """
    if weights == "equal":
        return {name: 1 / len(teachers) for name in teachers}
    losses = {name: _validation_loss(teacher, context) for name, teacher in teachers.items()}
    for name, value in losses.items():
        if not value >= 0:
            raise DataError(
                f"{context.where}.teacher_weights: the loss of teacher '{name}' on validation is {value:g}; "
                "'competence' needs losses that are not negative"
            )
    smallest = 1e-9 + 1e-3 * max(losses.values())  # a teacher without any loss does not silence the others
    inverse = {name: 1 / max(value, smallest) for name, value in losses.items()}
    return {name: value / sum(inverse.values()) for name, value in inverse.items()}


def _validation_loss(teacher: Teacher, context: Context) -> float:
    loss, total, count = named_loss(context.task).hard, 0.0, 0
    samples = len(context.task.split("validation", context.where))
    for inputs, labels in batches(context, "validation", samples, _JUDGED_AT_ONCE):
        if labels is None:
            raise DataError(f"{context.where}.teacher_weights: 'competence' needs labels, and 'validation' has none")
        total, count = total + float(loss(teacher(inputs), labels)) * len(labels), count + len(labels)
    return total / count
