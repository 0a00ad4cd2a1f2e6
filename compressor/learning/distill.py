"""Distillation: a teacher's outputs teach a student, beside the labels or without them (Hinton et al., 2015)."""

import dataclasses
from typing import ClassVar, Literal

from ...core.errors import RecipeError
from ...core.task import Task
from ..candidate import Candidate
from ..compare import compare
from ..stage import Context, Graph, Probe, Stage
from .features import FeatureKeys, Transfer, pairs_with
from .finetune import Finetune
from .mixup import check_mixable, on_mixtures
from .teaching import Taught, check_answers, lesson_of
from .trainable import check_labels, check_learns, in_range
from .training import Training, require_training_data, train
from .training_data import TrainingData


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill(Taught, FeatureKeys, Training, Stage):
    """`L = loss(y, s) + weight * soft(t, s)`; soft is `T^2 * KL(t || s)` or another distillation loss.

    For regression it is the task's own loss with the teacher's output in place of the label. With `features`, layers
    inside follow the teacher's too. With `mixup`, the student learns what the teacher makes of mixtures of two samples,
    without labels (function matching, Beyer et al., CVPR 2022).
    """

    name: ClassVar[str] = "distill"
    accepts: ClassVar[Literal["candidate", "graph"]] = "candidate"
    returns: ClassVar[Literal["candidate", "graph"]] = "candidate"

    student: str | None = None  # a name in the task's models; None: what the stage before gives
    mixup: bool = False  # learn on mixtures of two samples, without labels; pays where epochs are many and images few
    compare: bool = False  # also train without a teacher, from the same start and as long; the better one is kept

    def check(self, task: Task, where: str) -> None:
        """See `Stage.check`."""
        self.check_training(task, where)
        self.check_teaching(task, where)
        self.check_batches(self.samples_taught(task), where)
        self.check_features(self.teacher_names(), where)
        if self.mixup:
            check_mixable(task, where)
        if self.compare:
            require_training_data(task, f"{where}.compare", labels=True)
            self.check_batches(len(task.split("train", where)), where)
        if self.student is not None and self.student not in task.models:
            known = ", ".join(sorted(task.models)) or "none"
            raise RecipeError(f"{where}.student: '{self.student}' is not in the task's models; known: {known}")

    def takes(self) -> Literal["candidate", "graph", "nothing"]:
        """See `Stage.takes`: with a student of its own it is a source."""
        return self.accepts if self.student is None else "nothing"

    def needs(self) -> tuple[str, ...]:
        """See `Stage.needs`."""
        return self.teacher_names() if self.student is None else (*self.teacher_names(), self.student)

    def rehearse(self, value: Candidate, context: Context) -> Candidate:
        """See `Stage.rehearse`: a student of its own takes the input's place; teachers' answers and layers fit."""
        value = value if self.student is None else self._student(context)
        check_learns(value, context.where)
        if not self.mixup or self.compare:
            check_labels(value, context)
        check_answers(self.teacher_names(), value, context)
        if self.features is not None:
            for name in self.teacher_names():
                pairs_with(self, value, name, context)
        return value

    def estimate(self, task: Task, probe: Probe) -> float:
        """See `Stage.estimate`."""
        samples, plain = self.samples_taught(task), 0.0
        if self.compare:
            plain = self.training_seconds(task, len(task.split("train", self.name)), probe)
        if not self._repeats(task):
            return self.training_seconds(task, samples, probe, self.teacher_names()) + plain
        asked = samples * sum(probe.named(name) for name in self.teacher_names())
        return self.training_seconds(task, samples, probe) + asked + plain

    def run(self, value: Candidate, context: Context) -> Candidate:
        """See `Stage.run`."""
        value = value if self.student is None else self._student(context)
        if not self.compare:
            return self._taught(value, context)
        taught = self._taught(value, context.within("taught"))
        plain_context = dataclasses.replace(context.within("plain"), notes=[])
        keys = {field.name: getattr(self, field.name) for field in dataclasses.fields(Training)}
        plain = Finetune(id=self.id, **keys).run(value, plain_context)
        found = compare(taught, plain, context)
        context.notes.append(f"without a teacher: {plain_context.notes[-1]}")
        context.notes.append(found.note("taught", "plain"))
        return taught if found.first_is_better else plain

    def _taught(self, value: Candidate, context: Context) -> Candidate:
        module = value.module()
        labelled = context.task.train if self.mixup else in_range(context.task.train, module, context)
        data = TrainingData(labelled, context.task.unlabelled)
        lesson = lesson_of(self, context, data if self._repeats(context.task) else None)
        learner, objective = module, lesson.objective
        if self.features is not None:
            modules = {name: teacher.module for name, teacher in lesson.teachers.items() if teacher.module is not None}
            transfer = Transfer(self, module, value, modules, lesson.shares, context)
            learner, objective = transfer.learner, transfer.added_to(objective)
        result = train(learner, data, on_mixtures(objective) if self.mixup else objective, self, context)
        mixed = ", on mixtures" if self.mixup else ""
        context.notes.append(f"{lesson.note()}{mixed}, {result.note()}")
        if self.features is not None:
            context.notes.append(transfer.note())
            transfer.close()
        return Candidate.of(module, value)

    def _repeats(self, task: Task) -> bool:
        """Whether every epoch shows the teachers what they have seen, and only what they answer is wanted."""
        unchanged = not self.mixup and (not self.augment or task.augment is None)
        fixed = all(isinstance(size, int) for spec in task.input_specs() for size in spec.shape[1:])
        return unchanged and fixed and self.features is None and (self.epochs > 1 or self.minutes is not None)

    def _student(self, context: Context) -> Candidate:
        assert self.student is not None
        student = context.named(self.student)
        if isinstance(student, Graph):
            raise RecipeError(f"{context.where}.student: '{self.student}' is an ONNX file and cannot be trained")
        return student
