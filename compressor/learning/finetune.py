"""Training on the task's own labels."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from ...benches.metrics.accuracy import labels_of, predict
from ...core.errors import RecipeError
from ...core.task import Task
from ...exporters.sessions.torch_session import Tensors, TorchSession, forward
from ..candidate import Candidate
from ..evaluation import BATCH
from ..stage import Context, Probe, Stage
from .adapters import AdapterKeys
from .class_balance import balanced, report
from .forgetting import Keeper, KeepKeys
from .frozen import share_trained
from .losses import loss_of_answers, named_loss
from .pseudo_labels import check_pseudo_labels, with_pseudo_labels
from .rate_search import RateSearchKeys
from .trainable import check_labels, check_learns, classes_of, in_range
from .training import Regime, Trained, Training, require_training_data, train
from .training_data import TrainingData, batches_of
from .transfer import TransferKeys, probe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune(AdapterKeys, KeepKeys, TransferKeys, RateSearchKeys, Training, Stage):
    """Train the candidate further with the task's loss; the best epoch on validation is kept."""

    name: ClassVar[str] = "finetune"
    accepts: ClassVar[Literal["candidate", "graph"]] = "candidate"
    returns: ClassVar[Literal["candidate", "graph"]] = "candidate"

    class_weights: Literal["equal", "balanced"] = "equal"  # balanced: rare classes count as much as common ones
    pseudo_labels: Annotated[float, Field(gt=0, le=1)] | None = None  # the least probability of one
    class_report: bool = False  # precision, recall and F1 of every class on validation, in the ledger

    def check(self, task: Task, where: str) -> None:
        """See `Stage.check`."""
        self.check_training(task, where)
        self.check_transfer(self, where)
        self.check_search(self, where)
        self.check_adapter(self, self, where)
        self.check_keep(self.adapter, task, where)
        named = named_loss(task)
        if self.class_weights == "balanced" and not named.classes:
            raise RecipeError(f"{where}.class_weights: 'balanced' is for the loss 'cross-entropy'; leave it out")
        if self.pseudo_labels is not None:
            check_pseudo_labels(task, named.classes, where)
        self._check_classes(task, where)
        _, labels = task.split("validation", where).batch(np.arange(1))
        if self.class_report and not (named.classes and labels is not None and labels.ndim == 1):
            raise RecipeError(f"{where}.class_report: needs the loss 'cross-entropy' and one class for each sample")
        require_training_data(task, where, labels=True)
        samples = self._most_samples(task, where)
        self.check_batches(samples, where)
        self.check_steps(self._steps(samples), where)
        if self.probe_epochs:
            dataclasses.replace(self, epochs=self.probe_epochs, minutes=None).check_batches(samples, where)
        if self.learning_rates:
            self._trial(0.0).check_batches(samples, where)
            self.check_steps(self._trial(0.0)._steps(samples), where, "search_epochs")

    def _check_classes(self, task: Task, where: str) -> None:
        """What counts classes, or adds some, needs labels that are classes; a loss alone takes probabilities too."""
        _, labels = task.split("train", where).batch(np.arange(1))
        asked = {"class_weights": self.class_weights != "equal", "pseudo_labels": self.pseudo_labels is not None}
        for key in (key for key, wanted in asked.items() if wanted and labels is not None and labels.dtype.kind == "f"):
            raise RecipeError(f"{where}.{key}: the labels of 'train' are probabilities; it needs classes (integers)")

    def rehearse(self, value: Candidate, context: Context) -> Candidate:
        """See `Stage.rehearse`: globs, and groups of layers."""
        if self.adapter is None:
            check_learns(value, context.where)
        check_labels(value, context)
        if self.probe_epochs:
            probe(value.module(), value.example, context.task.outputs, context.where)
        if self.adapter is not None:
            self.targets(value.module(), value.example, context.task.outputs, context.where)
        self.regime(value.module(), value.example, context.task.outputs, self.epochs, context.where)
        return value

    def estimate(self, task: Task, probe: Probe) -> float:
        """See `Stage.estimate`."""
        samples = len(task.split("train", self.name))
        samples += len(task.split("unlabelled", self.name)) if self.pseudo_labels is not None else 0
        probing = self.probe_epochs * samples * probe.forward
        trials = len(self.learning_rates) * self._trial(0.0).training_seconds(task, samples, probe)
        asked = self.epochs * samples * probe.forward if self.keep == "lwf" and self.minutes is None else 0.0
        return probing + trials + asked + self.training_seconds(task, samples, probe)

    def run(self, value: Candidate, context: Context) -> Candidate:
        """See `Stage.run`."""
        if self.learning_rates:
            rate = self.best_rate(lambda rate, trial: self._trial(rate).run(value, trial), context)
            return dataclasses.replace(self, learning_rates=(), learning_rate=rate).run(value, context)
        module, outputs = value.module(), context.task.outputs
        learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
        keeper = self.keeper(module, value, context)
        if self.pseudo_labels is not None:
            train = with_pseudo_labels(value, self.pseudo_labels, context)
            self.check_batches(len(train), context.where)
            context = dataclasses.replace(context, task=dataclasses.replace(context.task, train=train))
        if self.probe_epochs:
            rate = self.probe_learning_rate or self.learning_rate
            settings = dataclasses.replace(self, epochs=self.probe_epochs, minutes=None, learning_rate=rate)
            regime = probe(module, value.example, outputs, context.where)
            probed = self._train(module, regime, settings, context.within("probe"), keeper)
            context.notes.append(f"the head alone: {probed.note()}")
            for parameter in learning:
                parameter.requires_grad_(True)
        if self.adapter is not None:
            return self._run_adapted(module, value, context, keeper)
        regime = self.regime(module, value.example, outputs, self.epochs, context.where)
        learns = f", {share_trained(module)}" if self.freeze else ""
        note = self._train(module, regime, self, context, keeper).note() + learns
        return self._reported(Candidate.of(module, value), note, context)

    def _trial(self, rate: float) -> "Finetune":
        """The same for a few epochs at one rate, with everything learning from the first."""
        short = dataclasses.replace(
            self, learning_rates=(), learning_rate=rate, epochs=self.search_epochs, minutes=None
        )
        return dataclasses.replace(short, unfreeze="at-once", probe_epochs=0, class_report=False)

    def _run_adapted(self, module: nn.Module, value: Candidate, context: Context, keeper: Keeper | None) -> Candidate:
        steps = self._steps(len(context.task.split("train", context.where)))
        seed, outputs = context.machine.seed, context.task.outputs
        adapter = self.adapted(module, value.example, outputs, steps, seed, context.where)

        def added(inputs: Tensors, answers: Tensors) -> torch.Tensor | float:
            return adapter.penalty() + (0.0 if keeper is None else keeper(inputs, answers))

        trained = self._train(module, adapter, self, context, added)
        note = f"{trained.note()}, {self.adapter}: {adapter.note()}"
        return self._reported(Candidate.of(adapter.fold(), value), note, context)

    def _most_samples(self, task: Task, where: str) -> int:
        """With every one that pseudo-labels may add."""
        more = len(task.split("unlabelled", where)) if self.pseudo_labels is not None else 0
        return len(task.split("train", where)) + more

    def _steps(self, samples: int) -> int:
        """Of the optimizer, in all epochs."""
        return self.epochs * batches_of(samples, self.batch_size) // self.accumulation

    def _reported(self, trained: Candidate, note: str, context: Context) -> Candidate:
        """With its note, and behind it the classification report, where that is asked for."""
        context.notes.append(note)
        if self.class_report:
            task, split = context.task, context.task.split("validation", context.where)
            session = TorchSession(trained.module().to(context.machine.device), task.input_specs(), task.outputs)
            logits = predict(session, split, BATCH)[task.outputs[0]]
            context.notes.extend(report(logits, labels_of(split), task.classes))
        return trained

    def _train(
        self,
        module: nn.Module,
        regime: Regime,
        settings: Training,
        context: Context,
        added: Callable[[Tensors, Tensors], torch.Tensor | float] | None,
    ) -> Trained:
        """Train in place; `added` of inputs and outputs comes to the task's loss."""
        task, split = context.task, context.task.split("train", context.where)
        balance = None
        if self.class_weights == "balanced":
            balance = balanced(labels_of(split), classes_of(module, context), context.where)
        loss = loss_of_answers(task, balance)

        def objective(m: nn.Module, inputs: Tensors, labels: torch.Tensor | None, labelled: int) -> torch.Tensor:
            answers = forward(m, inputs, task.outputs)
            return loss(answers, labels) + (0.0 if added is None else added(inputs, answers))

        data = TrainingData(in_range(split, module, context))
        return train(module, data, objective, settings, context, regime)
