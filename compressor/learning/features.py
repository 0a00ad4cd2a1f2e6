"""Feature transfer: layers inside a student follow a teacher's, through adapters that are thrown away afterwards."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from ...core.errors import RecipeError
from ...core.tables import resolve
from ..candidate import Candidate
from ..stage import Context
from .feature_layers import Layer, Pair, pair
from .feature_losses import FEATURES, FeatureLoss
from .padding import standing
from .training import Objective

_CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureKeys:
    """Recipe keys of a stage whose teachers also teach features."""

    features: str | None = None  # in `feature_losses.FEATURES`; None: outputs alone
    feature_weight: Annotated[float, Field(gt=0)] = 1.0
    feature_layers: Mapping[str, str] = dataclasses.field(default_factory=dict)  # student's -> teacher's; none: found

    def check_features(self, teachers: Sequence[str], where: str) -> None:
        """Refuse settings that mean nothing.

        Raises:
            RecipeError: an unknown loss, layers without one, layers named for several teachers.
        """
        if self.features is not None:
            resolve(self.features, FEATURES, f"{where}.features")
        else:
            for name in ("feature_layers", "feature_weight"):
                if getattr(self, name) != (1.0 if name == "feature_weight" else {}):
                    raise RecipeError(f"{where}.{name}: only features reads it; set features to one of the losses")
        if self.feature_layers and len(teachers) > 1:
            raise RecipeError(f"{where}.feature_layers: names one teacher's layers, and there are {len(teachers)}")


def pairs_with(keys: FeatureKeys, student: Candidate, teacher: str, context: Context) -> list[Pair]:
    """The layers that learn from the teacher called `teacher`.

    Raises:
        RecipeError: it is a file, which shows no layers; or see `feature_layers.pair`.
    """
    model = context.named(teacher)
    if not isinstance(model, Candidate):
        raise RecipeError(f"{context.where}.features: teacher '{teacher}' is an ONNX file, which shows no layers")
    return pair(student, model, keys.feature_layers, context.where)


class Adapter(nn.Module):
    """Makes a student's feature the shape of a teacher's: resized, then a 1x1 convolution or a linear layer.

    Called with the feature and the size of the teacher's, which follows the inputs. Returns `(N, positions, channels)`;
    without `project` the number of channels stays.
    """

    def __init__(self, student: Layer, teacher: Layer, project: bool) -> None:
        super().__init__()
        self._axis = student.axis + 1
        self._size = None if student.size == teacher.size else teacher.size
        self.project: nn.Module = nn.Identity()
        if project and student.channels != teacher.channels:
            axes = len(student.size) if student.axis == 0 else 0  # 0: channels are last, or there is nothing else
            channels = student.channels, teacher.channels
            self.project = _CONVOLUTIONS[axes](*channels, 1) if axes else nn.Linear(*channels)

    def forward(self, x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        first = x.movedim(self._axis, 1)
        if first.shape[2:] != torch.Size(size):
            first = functional.interpolate(first, list(size), mode=_MODES[len(size)], align_corners=False)
            x = first.movedim(1, self._axis)
        return as_positions(self.project(x), self._axis)

    def __str__(self) -> str:
        parts = [] if self._size is None else [f"resized to {'x'.join(map(str, self._size))}"]
        if isinstance(self.project, nn.Linear):
            parts.append(f"{self.project.in_features} to {self.project.out_features} channels by a linear layer")
        elif not isinstance(self.project, nn.Identity):
            parts.append(f"{self.project.in_channels} to {self.project.out_channels} channels by a 1x1 convolution")
        return f" ({', '.join(parts)})" if parts else ""


def as_positions(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Features as float32 `(N, positions, channels)`; `axis` of `x` are the channels."""
    moved = x.movedim(axis, -1).float()
    return moved.reshape(len(moved), -1, moved.shape[-1])


class Learner(nn.Module):
    """A student with its adapters, so that one optimizer and one checkpoint hold both."""

    def __init__(self, student: nn.Module, adapters: Sequence[Adapter]) -> None:
        super().__init__()
        self.student, self.adapters = student, nn.ModuleList(adapters)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.student(*inputs)


class Transfer:
    """One training's feature transfer.

    Args:
        student: what is trained, whose value is `value`.
        teachers: those opened for the lesson, by name; they are asked within it.
        shares: what each counts.
    """

    def __init__(
        self,
        keys: FeatureKeys,
        student: nn.Module,
        value: Candidate,
        teachers: Mapping[str, nn.Module],
        shares: Mapping[str, float],
        context: Context,
    ) -> None:
        self._keys, self._shares = keys, shares
        self._loss: FeatureLoss = resolve(keys.features or "", FEATURES, f"{context.where}.features")
        self._pairs = [
            (name, found) for name in teachers for found in pairs_with(keys, value, name, context)
        ]  # (teacher, pair)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.machine.seed)  # the same adapters, whatever was drawn before
            adapters = [Adapter(p.student, p.teacher, self._loss.same_channels) for _, p in self._pairs]
        self.learner = Learner(student, adapters)
        self._student = _Taps(student, [p.student.name for _, p in self._pairs])
        self._teachers = {
            name: _Taps(module, [p.teacher.name for owner, p in self._pairs if owner == name])
            for name, module in teachers.items()
        }

    def added_to(self, outputs: Objective) -> Objective:
        """The lesson on outputs, in which every model runs once, and the features that were seen meanwhile."""

        def objective(
            model: nn.Module, inputs: Mapping[str, torch.Tensor], labels: torch.Tensor | None, labelled: int
        ) -> torch.Tensor:
            total = outputs(model, inputs, labels, labelled)
            for (name, found), adapter in zip(self._pairs, self.learner.adapters, strict=True):
                seen = self._teachers[name].found[found.teacher.name]
                axis = found.teacher.axis + 1
                size = seen.shape[1:axis] + seen.shape[axis + 1 :]
                own, real = adapter(self._student.found[found.student.name], size), standing(inputs, size)
                part = self._loss.between(own, as_positions(seen, axis), real)
                pairs = sum(owner == name for owner, _ in self._pairs)
                total = total + self._keys.feature_weight * self._shares[name] * part / pairs
            return total

        return objective

    def note(self) -> str:
        """Which layers learnt from which, and through what."""
        several = len(self._teachers) > 1
        pairs = [
            f"{found.student.name} <- {f'{name}: ' if several else ''}{found.teacher.name}{adapter}"
            for (name, found), adapter in zip(self._pairs, self.learner.adapters, strict=True)
        ]
        return f"features ({self._keys.features}): {', '.join(pairs)}"

    def close(self) -> nn.Module:
        """The student without anything that was added to it."""
        for taps in (self._student, *self._teachers.values()):
            taps.remove()
        return self.learner.student


class _Taps:
    """Keeps what some layers returned last."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        self.found: dict[str, torch.Tensor] = {}
        self._hooks = [module.get_submodule(name).register_forward_hook(self._keep(name)) for name in set(names)]

    def _keep(self, name: str) -> Any:
        def hook(layer: nn.Module, inputs: object, output: torch.Tensor) -> None:
            self.found[name] = output

        return hook

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self.found.clear()
