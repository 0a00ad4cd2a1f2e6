"""Fusion: the predictions of several models as one graph, which goes through the rest of a recipe like any other."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ...benches.metrics import accuracy
from ...core import digest
from ...core.errors import DataError, RecipeError
from ...core.files import as_file_name
from ...core.tables import unknown
from ...core.task import Split, Task
from ...core.values import TensorSpec
from ...exporters.from_sklearn import is_estimator
from ...exporters.graph import compose, onnx_file
from ..stage import Context, Graph, Probe, Stage
from .exclusion import Exclusion
from .fuse_checks import (
    check_apart,
    check_estimator,
    check_file,
    check_order,
    check_same_width,
    check_threshold,
    check_unit,
    member_rows,
)
from .fuse_judge import Judge, answers, check_computes, rules_kept
from .fused import Fused, said
from .fusing import (
    FUSIONS,
    Mean,
    Smoothing,
    folds,
    needs_sklearn,
    selected,
)
from .hierarchy import Hierarchy
from .label_by_label import EachLabel, best_of_each_label, each_label_apart
from .member_graphs import member_graphs
from .member_outputs import LABELS, Form, Logarithms, LogOdds, Unchanged, fusible, kinds_of, of_classes, write_stack
from .preparation import Preparation, check_prepare
from .recalibrate import CALIBRATIONS, best_calibration

_BEST = "best"  # of all calibrations
_EACH_CLASS = ("stacking", "platt", "isotonic", _BEST)  # rules and calibrations that learn something of every class
_UNKNOWN = (
    "not checked: whether members learnt from the validation samples, as the task has no 'train' split to compare "
    "with; if they did, the figures above flatter them, and the test data will say so"
)
Fit = Callable[[np.ndarray, np.ndarray], Fused]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fuse(Stage):
    """Fuse the predictions of models into one ONNX graph; what a rule has to learn, it learns on validation data."""

    name: ClassVar[str] = "fuse"
    accepts: ClassVar[Literal["candidate", "graph", "nothing"]] = "nothing"
    returns: ClassVar[Literal["candidate", "graph"]] = "graph"

    members: tuple[str, ...] = ()  # "original", ids of earlier stages, names in the task's models
    gives: str | Mapping[str, str] = ""  # in `member_outputs.KINDS`, of all members or by name
    prepare: Mapping[str, Preparation] = dataclasses.field(default_factory=dict)  # member -> what its input becomes
    rule: str = "mean"  # in `fusing.FUSIONS`
    select: bool = False  # greedy selection with replacement: who adds nothing is left out
    folds: Annotated[int, Field(ge=2)] = 5  # of the validation data, for what is learnt on it
    calibration: str | None = None  # in `recalibrate.CALIBRATIONS`, or "best": makes them as sure as they are right
    exclusive: tuple[tuple[str, ...], ...] = ()  # groups of labels of which at most one is true
    implies: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # label -> what it implies
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of a prediction that is spread evenly
    returns_logits: bool = True  # logarithms of classes' probabilities, log-odds of labels'; False: the probabilities

    def check(self, task: Task, where: str) -> None:
        """See `Stage.check`."""
        if self.rule not in FUSIONS:
            raise unknown(self.rule, FUSIONS, f"{where}.rule")
        if self.calibration is not None and self.calibration not in (_BEST, *CALIBRATIONS):
            raise unknown(self.calibration, (*CALIBRATIONS, _BEST), f"{where}.calibration")
        if len(self.members) < 2:
            raise RecipeError(f"{where}.members: fusing takes at least two models; got {list(self.members)}")
        if len(set(self.members)) != len(self.members):
            raise RecipeError(f"{where}.members: {list(self.members)} names one twice")
        check_prepare(self.prepare, self.members, task.input_specs(), where)
        kinds = self._kinds(where)
        if "numbers" in kinds.values():
            self._check_numbers(where)
        if not self.returns_logits and LABELS in kinds.values():
            check_threshold(task, where)
        if len(task.outputs) > 1:
            raise RecipeError(
                f"{where}: the task has the outputs {', '.join(task.outputs)}, and what is fused is one; name that "
                "alone in the task's outputs (several go side by side through 'combine')"
            )
        if self.rule == "stacking":
            needs_sklearn(where)
        self._known(task, where)
        if self.select or self.calibration is not None or FUSIONS[self.rule].fit is not None:
            check_apart(task, where)
        for name in self.members:
            model = task.model if name == "original" else task.models.get(name)
            if is_estimator(model):
                check_estimator(name, model, kinds[name], task, where)

    def needs(self) -> tuple[str, ...]:
        """See `Stage.needs`."""
        return self.members

    def rehearse(self, value: Any, context: Context) -> Graph:
        """See `Stage.rehearse`."""
        return Graph(path=Path(), digest="")

    def estimate(self, task: Task, probe: Probe) -> float:
        """See `Stage.estimate`."""
        samples = len(task.split("validation", self.name))
        return 5.0 + sum(probe.export + samples * probe.named(name) for name in self.members)

    def run(self, value: Any, context: Context) -> Graph:
        """See `Stage.run`."""
        graphs = member_graphs(self.members, context, prepare=self.prepare)
        stack, labels = self._stack(graphs, context)
        judge = Judge(context, self._form(context.where))
        fused, held_out = self._chosen(stack, labels, judge, context)
        fused = self._finished(fused, held_out, labels, judge, context)
        if context.for_verdict:
            for step in fused.after:
                held_out = step(held_out)
            best = stack[:, self.members.index(context.for_verdict["best"])]
            context.for_verdict["gain"] = judge.compare(held_out, best, labels).gain.value
        path = self._write(graphs, fused, stack.shape[2], context)
        check_computes(path, self._form(context.where), fused(stack), context)
        return Graph(path=path, digest=digest.of_file(path))

    def after_verdict(self, value: Graph, context: Context) -> list[str]:
        """See `Stage.after_verdict`: whether the test data agree that the fusion is better than the best member."""
        best, gain = context.for_verdict["best"], context.for_verdict["gain"]
        split, judge = context.task.split("test", context.where), Judge(context, self._form(context.where))
        labels, graphs = self._labels(split, context.where), member_graphs((best,), context, prepare=self.prepare)
        rows = self._answers_of(best, graphs[best], split, context)
        rows = rows.reshape(len(rows), -1).astype(np.float64)
        alone = judge.scores(fusible(rows, self._kinds(context.where)[best]), labels)
        found = judge.compared(judge.scores_of_file(answers(value.path, split, context), labels), alone)
        agrees = "agree" if gain * found.gain.value > 0 or gain == found.gain.value == 0 else "do not agree"
        proven = "" if found.gain.low > 0 or found.gain.high < 0 else ", and prove neither"
        test = f"{found.gain.value:.4f} ({found.gain.low:.4f} to {found.gain.high:.4f})"
        return [
            f"fused beside the best member, {best}: gain {gain:.4f} on validation, {test} on test: the test data "
            f"{agrees}{proven}"
        ]

    def _kinds(self, where: str) -> dict[str, str]:
        return kinds_of(self.gives, self.members, where)

    def _shares(self, where: str) -> bool:
        return of_classes(self._kinds(where))

    def _labels_apart(self, where: str) -> bool:
        """Whether there are several labels, each of which is a yes or a no."""
        return LABELS in self._kinds(where).values()

    def _check_soft(self, where: str) -> None:
        """Refuse labels between 0 and 1 where something is learnt that takes each for a class."""
        learns = not FUSIONS[self.rule].numbers and FUSIONS[self.rule].fit is not None
        for key, given in (("rule", self.rule if learns else None), ("calibration", self.calibration)):
            if given is not None:
                raise DataError(
                    f"{where}.{key}: '{given}' learns from labels of 0 or 1, and some lie between; leave it out"
                )

    def _check_numbers(self, where: str) -> None:
        if not FUSIONS[self.rule].numbers:
            known = ", ".join(sorted(name for name, rule in FUSIONS.items() if rule.numbers))
            raise RecipeError(f"{where}.rule: '{self.rule}' fuses probabilities; for numbers: {known}")
        for key in ("calibration", "smoothing"):
            if getattr(self, key):
                raise RecipeError(f"{where}.{key}: numbers have none; leave it out")

    def _known(self, task: Task, where: str) -> list[Exclusion | Hierarchy]:
        """What is known of the labels, in the order in which none undoes another."""
        for key in ("exclusive", "implies"):
            if getattr(self, key) and self._shares(where):
                raise RecipeError(
                    f"{where}.{key}: a sample of one class is of no other that it could imply or exclude; this is for "
                    'several labels, gives = "label-logits", or for "numbers"'
                )
            if getattr(self, key) and not task.classes:
                raise RecipeError(
                    f"{where}.{key}: the task does not say what the columns are called; set classes= in the task"
                )
            if getattr(self, key) and len(task.classes) == 1:
                raise RecipeError(
                    f"{where}.{key}: a rule speaks of two columns, and the task has one, '{task.classes[0]}', which "
                    "says yes or no and so excludes its contrary as it is; leave it out"
                )
        known: list[Exclusion | Hierarchy] = []
        if self.exclusive:
            implied = {name for names in self.implies.values() for name in names}
            known.append(Exclusion.of(self.exclusive, task.classes, implied, f"{where}.exclusive"))
        if self.implies:
            known.append(Hierarchy.of(self.implies, task.classes, f"{where}.implies"))
        return known

    def _form(self, where: str) -> Form:
        """What the graph gives of what was fused."""
        if not self.returns_logits or "numbers" in self._kinds(where).values():
            return Unchanged()
        return Logarithms() if self._shares(where) else LogOdds()

    def _stack(self, graphs: Mapping[str, Any], context: Context) -> tuple[np.ndarray, np.ndarray]:
        """What the members say of the validation samples, `(N, members, C)`, and the labels."""
        split = context.task.split("validation", context.where)
        kinds, task, where = self._kinds(context.where), context.task, context.where
        for name, model in graphs.items() if self._shares(where) else ():
            check_file(name, model, task, where)
        rows = {name: self._rows(name, model, split, context) for name, model in graphs.items()}
        check_same_width({name: array.shape[1] for name, array in rows.items()}, task, kinds, where)
        labels = self._labels(split, where)
        for name, array in rows.items():
            if self._shares(where):
                check_order(name, array, labels, task, where)
            elif self.exclusive:
                check_unit(name, array, where)
        return np.stack(list(rows.values()), axis=1), labels

    def _rows(self, name: str, model: Any, split: Split, context: Context) -> np.ndarray:
        kind = self._kinds(context.where)[name]
        return member_rows(name, self._answers_of(name, model, split, context), kind, context.where)

    def _answers_of(self, name: str, model: Any, split: Split, context: Context) -> np.ndarray:
        path = context.work / f"member-{as_file_name(name)}.onnx"
        onnx_file.save(model, path)
        return answers(path, split, context)

    def _labels(self, split: Split, where: str) -> np.ndarray:
        """Classes `(N,)`, or numbers `(N, C)`."""
        labels = accuracy.labels_of(split)
        if not self._shares(where):
            rows = labels.reshape(len(labels), -1).astype(np.float64)
            if LABELS in self._kinds(where).values() and not ((rows >= 0) & (rows <= 1)).all():
                raise DataError(
                    f"{where}: labels go from {rows.min():g} to {rows.max():g}; beside {LABELS} they are 0 or 1, "
                    "(N, labels)"
                )
            if self._labels_apart(where) and not np.isin(rows, (0, 1)).all():
                self._check_soft(where)
            return rows
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise DataError(f"{where}: fusing classes needs integer labels (N,), got {labels.dtype} {labels.shape}")
        return labels

    def _fit(self, score: Callable[[np.ndarray, np.ndarray], float], where: str) -> Fit:
        """From a stack and labels to what is fused: selection first, then what the rule learns."""
        rule, shares = FUSIONS[self.rule], self._shares(where)
        if self._labels_apart(where) and not rule.numbers:
            rule = each_label_apart(rule)

        def fit(stack: np.ndarray, labels: np.ndarray) -> Fused:
            weights = np.full(stack.shape[1], 1 / stack.shape[1])
            if self.select:
                weights = selected(stack, rule.make or Mean, lambda fused: score(fused, labels))
            kept = np.flatnonzero(weights)
            if rule.fit is None:
                assert rule.make is not None
                return Fused(tuple(map(int, kept)), rule.make(weights[kept]))
            found = rule.fit(stack[:, kept], labels, shares)
            if isinstance(found, Mean):
                kept, found = kept[found.weights > 0], Mean(found.weights[found.weights > 0])
            return Fused(tuple(map(int, kept)), found)

        return fit

    def _chosen(
        self, stack: np.ndarray, labels: np.ndarray, judge: Judge, context: Context
    ) -> tuple[Fused, np.ndarray]:
        """The rule's fusion; or the best member alone where what was learnt is no better than that.

        Returns:
            It, and what it says of every sample having learnt nothing from it, `(N, C)`.
        """
        fit = self._fit(judge.score, context.where)
        scores = [judge.score(stack[:, member], labels) for member in range(len(self.members))]
        best = int(np.argmax(scores))
        learns = self.select or FUSIONS[self.rule].fit is not None
        if learns:  # first, since it refuses what nothing can be learnt from
            held_out, fits = self._held_out(fit, stack, labels, context)
        fused = fit(stack, labels)
        if not learns:
            held_out, fits = fused(stack), [fused]
        comparison = judge.compare(held_out, stack[:, best], labels)
        metric, sign = judge.metric, judge.sign
        context.for_verdict.update(best=self.members[best])
        each = ", ".join(f"{name} {sign * score:.4f}" for name, score in zip(self.members, scores, strict=True))
        how = f"out of fold ({self.folds} folds) " if learns else ""
        context.notes.append(
            f"{metric.name} on validation: {each}; fused {how}{comparison.values[0]:.4f}; gain over the best, "
            f"{self.members[best]}, {comparison.shown('fused')}"
        )
        if context.task.train is None and (learns or self.calibration is not None):
            context.notes.append(_UNKNOWN)
        worse = min(judge.score(fused(stack), labels), sign * comparison.values[0]) < scores[best]
        if learns and worse:
            context.notes.append(f"'{self.rule}' is not better than {self.members[best]}, which is taken alone instead")
            context.for_verdict.clear()  # nothing is claimed that test data could speak for
            return Fused((best,), Mean(np.ones(1))), stack[:, best]
        context.notes.append(said(fused, fits, self.members))
        return fused, held_out

    def _held_out(
        self, fit: Fit, stack: np.ndarray, labels: np.ndarray, context: Context
    ) -> tuple[np.ndarray, list[Fused]]:
        """Every sample as it is fused by what was learnt without its fold, and what was learnt each time."""
        made, fits = np.empty((len(stack), stack.shape[2])), []
        for part in self._parts(labels, stack.shape[2], context):
            rest = np.setdiff1d(np.arange(len(stack)), part)
            fits.append(fit(stack[rest], labels[rest]))
            made[part] = fits[-1](stack[part])
        return made, fits

    def _parts(self, labels: np.ndarray, width: int, context: Context) -> list[np.ndarray]:
        classes: list[int] | None = None
        if self._shares(context.where):
            every = self.rule in _EACH_CLASS or self.calibration in _EACH_CLASS
            classes = list(range(width)) if every else np.unique(labels).tolist()
        try:
            return folds(labels, self.folds, context.machine.seed, classes)
        except ValueError as error:
            raise DataError(f"{context.where}.folds: validation: {error}") from error

    def _finished(
        self, fused: Fused, held_out: np.ndarray, labels: np.ndarray, judge: Judge, context: Context
    ) -> Fused:
        """With calibration, smoothing, and what is known of the labels, which nothing after it may undo."""
        if self.calibration is not None:
            names = list(CALIBRATIONS) if self.calibration == _BEST else [self.calibration]
            parts = self._parts(labels, held_out.shape[1], context)
            choose = best_of_each_label if self._labels_apart(context.where) else best_calibration
            best, found, losses = choose(names, held_out, labels, parts, judge.score)
            each = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
            context.notes.append(f"calibration, log loss on validation out of fold: {each}; taken: {best}")
            if found is not None:
                fused = dataclasses.replace(fused, after=(*fused.after, found))
        if self.smoothing:
            spread = Smoothing(self.smoothing)
            smoothing = EachLabel(spread, held_out.shape[1]) if self._labels_apart(context.where) else spread
            fused = dataclasses.replace(fused, after=(*fused.after, smoothing))
        known = self._known(context.task, context.where)
        if known:
            for step in fused.after:
                held_out = step(held_out)
            fused = dataclasses.replace(fused, after=(*fused.after, *known))
            context.notes.append(rules_kept(known, held_out, labels, judge))
        return fused

    def _write(self, graphs: Mapping[str, Any], fused: Fused, width: int, context: Context) -> Path:
        task, nodes = context.task, compose.Nodes()
        kinds, output = self._kinds(context.where), task.outputs[0]
        chosen = [self.members[member] for member in fused.members]
        outputs = {f"{name}/{output}": kinds[name] for name in chosen}
        flat = [f"{name}/{output}" for name in chosen if len(onnx_file.specs(graphs[name])[1][0].shape) == 1]
        stack = write_stack(nodes, outputs, width, flat)
        made = fused.combination.write(nodes, stack, width)
        for step in fused.after:
            made = step.write(nodes, made)
        made = self._form(context.where).write(nodes, made)
        members = {name: graphs[name] for name in chosen}
        whole = TensorSpec(name=output, dtype="float32", shape=("batch", width))
        model = compose.joined(members, task.input_specs(), nodes, {made: whole})
        path = context.work / "model.onnx"
        onnx_file.save(model, path)
        return path
