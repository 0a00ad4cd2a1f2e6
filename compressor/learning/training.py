"""The one training loop: everything that trains goes through `train`, on Accelerate, and can be killed at any step."""

import dataclasses
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import accelerate
import numpy as np
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from pydantic import Field
from torch import nn

from ...core.errors import DataError, RecipeError, TaskError, TrainingError
from ...core.files import write_atomic
from ...core.tables import resolve
from ...core.task import ArraySplit, Metric, Split, Task, has_label
from ...exporters.sessions.torch_session import TorchSession
from ..evaluation import evaluate, task_metrics
from ..stage import Context, Probe
from .budget import Budget, Epochs, Minutes
from .frozen import still_norms
from .optimizers import OPTIMIZERS, SCHEDULES, parameter_groups
from .precision import Precision, chosen
from .training_data import TrainingData, batches_of

CHECKPOINT_SECONDS = 20.0  # at most this much training is lost to a kill
_CHECKED_STEPS = 10  # the loss is read back this often; every step would stall a GPU

# (module, input tensors, labels or None, number of labelled samples, which come first) -> scalar loss
Objective = Callable[[nn.Module, Mapping[str, torch.Tensor], torch.Tensor | None, int], torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Recipe keys that every stage that trains has."""

    epochs: Annotated[int, Field(ge=1)] = 10
    minutes: Annotated[float, Field(gt=0)] | None = None  # in place of epochs
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    optimizer: str = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4  # on weights, not on biases and norms
    schedule: str = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05  # share of all steps
    accumulation: Annotated[int, Field(ge=1)] = 1  # batches per optimizer step
    mixed_precision: Precision | Literal["auto"] = "no"
    channels_last: bool = False  # memory layout of convolutions; often a quarter faster, but a `view` may refuse it
    max_gradient_norm: Annotated[float, Field(gt=0)] | None = None
    patience: Annotated[int, Field(ge=1)] | None = None  # epochs without a better validation metric before it stops
    augment: bool = True  # with the task's augment, where it has one

    def check_training(self, task: Task, where: str) -> None:
        """Refuse settings and data no training can run with.

        Raises:
            RecipeError, TaskError: see `Stage.check`.
        """
        if self.minutes is not None and self.epochs != Training.epochs:
            raise RecipeError(f"{where}: set epochs or minutes, not both")
        resolve(self.optimizer, OPTIMIZERS, f"{where}.optimizer")
        resolve(self.schedule, SCHEDULES, f"{where}.schedule")
        task.split("validation", f"{where}: choosing the best epoch")

    def check_batches(self, samples: int, where: str) -> None:
        """Refuse data that no training can be made of.

        Raises:
            RecipeError: fewer batches than make one step of the optimizer.
            TaskError: a single sample.
        """
        if samples < 2:
            raise TaskError(f"{where}: there is one sample to train on, and a batch has two or more; give more data")
        batches = self.epochs * batches_of(samples, self.batch_size)
        if self.minutes is None and batches < self.accumulation:
            raise RecipeError(
                f"{where}.accumulation: {self.accumulation} batches make one step, and in all epochs there are "
                f"{batches}, so that nothing would be learnt; lower it, or train for longer"
            )

    def training_seconds(self, task: Task, samples: int, probe: Probe, teachers: Sequence[str] = ()) -> float:
        """Estimated seconds of all epochs with their validation, or those of the budget."""
        if self.minutes is not None:
            return 60 * self.minutes
        step = probe.forward + probe.backward + sum(probe.named(name) for name in teachers)
        judged = len(task.split("validation", "choosing the best epoch"))
        return self.epochs * samples * step + (self.epochs + 1) * judged * probe.forward


class Regime:
    """What a stage does around the steps of the loop; this one does nothing."""

    def rate(self, parameter: str) -> float:
        """Factor of the learning rate of the parameter with this qualified name."""
        return 1.0

    def before_epoch(self, epoch: int, done: float) -> None:
        """Called when epoch number `epoch` (from 0) starts or goes on, the module in training mode.

        Args:
            epoch: its number.
            done: the share of the training that was done when it began. What this does may depend on these two alone.
        """

    def after_step(self, step: int) -> None:
        """Called after optimizer step number `step` (from 0), while the gradients are still there."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold beside the module: tensors and plain data."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training came to."""

    best_epoch: int  # 0: no epoch was better than the start
    score: float  # main metric on validation, of the weights kept
    epochs: int  # epochs run, the last one perhaps in part
    minutes: float | None = None  # the budget, where it was one of time
    asked: Precision | Literal["auto"] = "no"  # `mixed_precision`
    precision: Precision = "no"  # what it came to on this device

    def note(self) -> str:
        """For the ledger: "best epoch 3 of 10, in bf16"."""
        clock = f", {self.minutes:g} minutes by the clock: a second run differs" if self.minutes is not None else ""
        numbers = f", in {self.precision}" if self.precision != "no" else ""
        if self.asked == "auto" and self.precision == "no":
            numbers = ", in float32: this device does not compute in bfloat16"
        return f"best epoch {self.best_epoch} of {self.epochs}{numbers}{clock}"


def train(
    module: nn.Module,
    data: TrainingData,
    objective: Objective,
    settings: Training,
    context: Context,
    regime: Regime | None = None,
) -> Trained:
    """Train in place; ends with the weights of the best epoch on validation (epoch 0, the start, included).

    Parameters that need no gradient when it starts are never touched and get no optimizer state; batch norms of a part
    that does not learn keep their statistics.

    A checkpoint goes into `context.work` every `CHECKPOINT_SECONDS`; one found there is where it goes on. Data order,
    augmentation and dropout depend on (seed, epoch, step) alone, so the result equals that of a run never killed; but
    not where the budget is time: then a run goes on with what is left of it.

    Raises:
        TrainingError: the loss is no longer finite.
    """
    if context.machine.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError(f"{context.where}: --device cuda, but there is no CUDA device; use --device cpu")
    loop = _Loop(module, data, objective, settings, context, regime or Regime())
    loop.run()
    module.load_state_dict(loop.best_state)
    module.cpu().to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]  # see above
    return Trained(
        best_epoch=loop.best_epoch,
        score=loop.best_score,
        epochs=loop.epoch,
        minutes=settings.minutes,
        asked=settings.mixed_precision,
        precision=chosen(settings.mixed_precision, context.machine.device),
    )


class _Loop:
    """State of one training; everything in `_save` comes back after a kill."""

    def __init__(
        self,
        module: nn.Module,
        data: TrainingData,
        objective: Objective,
        settings: Training,
        context: Context,
        regime: Regime,
    ) -> None:
        self._data, self._objective, self._settings, self._context = data, objective, settings, context
        self._regime = regime
        if settings.channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub lacks this one
        AcceleratorState._reset_state(True)  # it keeps precision and device per process; each stage chooses its own
        self._accelerator = accelerate.Accelerator(
            cpu=context.machine.device == "cpu",
            mixed_precision=chosen(settings.mixed_precision, context.machine.device),
            gradient_accumulation_steps=settings.accumulation,
        )
        module.to(self._accelerator.device)  # Accelerate moves a model once; the head's probe has trained it before
        self._steps = data.steps(settings.batch_size)
        self._budget: Budget = (
            Epochs(settings.epochs, self._steps, settings.accumulation)
            if settings.minutes is None
            else Minutes(settings.minutes)
        )
        optimizer = resolve(settings.optimizer, OPTIMIZERS, f"{context.where}.optimizer")(
            parameter_groups(module, settings.weight_decay, settings.learning_rate, regime.rate), settings.learning_rate
        )
        shape = resolve(settings.schedule, SCHEDULES, f"{context.where}.schedule")
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self._budget.warm(step, settings.warmup) * shape(self._budget.done(step))
        )
        self._model, self._optimizer, self._scheduler = self._accelerator.prepare(module, optimizer, scheduler)
        self._module = module
        self._file = context.work / "training.pt"
        self.epoch, self._step, self._stale = 0, 0, 0
        self.best_epoch, self.best_score = 0, float("nan")
        self.best_state: dict[str, torch.Tensor] = {}

    def run(self) -> None:
        if self._file.exists():
            self._restore()
            self._context.progress.say(f"  going on at epoch {self.epoch + 1}, step {self._step + 1} of {self._steps}")
        else:
            self._judge()
        with self._context.progress.bar(self._context.where, self._budget.progress(0, 0)[1]) as advance:
            while self._budget.left(self.epoch) and not self._tired():
                self._run_epoch(advance)
                self.epoch, self._step = self.epoch + 1, 0
                self._judge()
                self._save()

    def _run_epoch(self, advance: Callable[[int, str], None]) -> None:
        saved = time.monotonic()
        plan = self._data.order(self._context.machine.seed, self.epoch, self._settings.batch_size)
        self._model.train()
        self._regime.before_epoch(self.epoch, self._budget.begun(self.epoch))
        still_norms(self._module)
        while self._step < self._steps and self._budget.left(self.epoch):
            loss = self._train_step(plan[self._step])
            self._step += 1
            if self._step % _CHECKED_STEPS == 1 or self._step == self._steps:
                self._check(loss)
                done, _, place = self._budget.progress(self.epoch, self._step)
                advance(done, f"{place} loss {float(loss):.3f} best {self.best_score:.4f}")
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                self._save()
                saved = time.monotonic()

    def _train_step(self, indices: np.ndarray) -> torch.Tensor:
        seed = np.random.SeedSequence((self._context.machine.seed, self.epoch, self._step)).generate_state(1)[0]
        set_seed(int(seed))  # dropout and the like: nothing random outlives a step
        augment = self._context.task.augment if self._settings.augment else None
        inputs, labels, labelled = self._data.batch(indices, augment, int(seed), self._accelerator.device)
        if self._settings.channels_last:
            inputs = {name: channels_last(tensor) for name, tensor in inputs.items()}
        with self._accelerator.accumulate(self._model):
            with self._accelerator.autocast():
                loss = self._objective(self._model, inputs, labels, labelled)
            if not loss.requires_grad:
                raise TaskError(f"{self._context.where}: no gradient comes from the loss to what learns; {self._why()}")
            self._accelerator.backward(loss)
            if self._accelerator.sync_gradients and self._settings.max_gradient_norm is not None:
                self._accelerator.clip_grad_norm_(self._model.parameters(), self._settings.max_gradient_norm)
            self._optimizer.step()
            self._scheduler.step()
            if self._accelerator.sync_gradients:
                batch = self.epoch * self._steps + self._step
                self._regime.after_step(batch // self._settings.accumulation)
            self._optimizer.zero_grad()
        return loss.detach()

    def _check(self, loss: torch.Tensor) -> None:
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"{self._context.where}: the loss became {float(loss)} at epoch {self.epoch + 1}, step {self._step}; "
                f"lower learning_rate (now {self._settings.learning_rate:g}) or set max_gradient_norm"
            )

    def _judge(self) -> None:
        """Keep the weights if validation says they are the best so far."""
        task = self._context.task
        metric = task_metrics(task)[0]
        session = TorchSession(self._module, task.input_specs(), task.outputs)
        score = self._score(session, metric)
        better = not self.best_state or _is_better(score, self.best_score, metric.higher_is_better)
        self._stale = 0 if better else self._stale + 1
        if better:
            self.best_epoch, self.best_score = self.epoch, score
            self.best_state = {
                name: tensor.detach().cpu().clone() for name, tensor in self._module.state_dict().items()
            }
        self._context.progress.record(
            f"{self._context.where} epoch {self.epoch}: {metric.name} {score:.4f} on validation"
        )

    def _score(self, session: TorchSession, metric: Metric) -> float:
        split = self._context.task.split("validation", self._context.where)
        try:
            return evaluate(session, split, (metric,))[metric.name]
        except DataError as error:
            if not self.best_state:  # the start has a fault of its own
                raise
            raise TrainingError(
                f"{self._context.where}: the network that epoch {self.epoch} left cannot be judged ({error}); lower "
                f"learning_rate (now {self._settings.learning_rate:g}) or set max_gradient_norm"
            ) from error

    def _why(self) -> str:
        """What keeps gradients from what learns."""
        if callable(self._context.task.loss):
            return "make a loss of your own of torch's operations on the outputs, without detach"
        output = self._context.task.outputs[0]
        return f"none of the layers that learn now has a say in output '{output}', so let others learn from the start"

    def _tired(self) -> bool:
        return self._settings.patience is not None and self._stale >= self._settings.patience

    def _save(self) -> None:
        """Write a checkpoint; between two halves of an accumulated step there is nothing to go on from."""
        if not self._accelerator.sync_gradients:
            return
        scaler = self._accelerator.scaler
        state: dict[str, Any] = {
            "model": self._module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "position": (self.epoch, self._step, self._stale),
            "spent": self._budget.spent,
            "regime": self._regime.state(),
            "best": (self.best_epoch, self.best_score, self.best_state),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)  # to memory first: a full disk is then an OSError like any other
        write_atomic(self._file, buffer.getvalue())

    def _restore(self) -> None:
        state = _load(self._file)
        self._module.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        self.epoch, self._step, self._stale = state["position"]
        self._budget.spent = state["spent"]
        self._regime.restore(state["regime"])
        self.best_epoch, self.best_score, self.best_state = state["best"]


def _is_better(score: float, best: float, higher: bool) -> bool:
    """Any number is better than none: a metric may be undefined of a network that has learnt nothing yet."""
    if math.isnan(best):
        return not math.isnan(score)
    return score > best if higher else score < best


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """Images `(N, C, H, W)` in that memory layout; anything else as it is."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _load(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def require_training_data(task: Task, where: str, labels: bool) -> None:
    """Refuse a task without the data a training stage needs.

    Raises:
        TaskError: no `train` split where labels are needed, or neither `train` nor `unlabelled`.
    """
    if labels or task.unlabelled is None:
        split = task.split("train", where)
        if labels and not _any_label(split):
            raise TaskError(f"task '{task.name}': {where} needs labels, and the 'train' split has none")


def _any_label(split: Split) -> bool:
    """Looks at all labels in memory, else at some spread over the split."""
    if isinstance(split, ArraySplit):
        labels = split.labels
    else:
        labels = split.batch(np.linspace(0, len(split) - 1, min(len(split), 256)).astype(np.int64))[1]
    return labels is not None and bool(has_label(labels).any())
