"""Which layers of a student learn from which of a teacher: what their outputs are, and how they are paired."""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...core.errors import RecipeError
from ...core.tables import unknown
from ...exporters.sessions.torch_session import copied
from ..candidate import Candidate

_MOST = 3  # pairs in a network whose features all have one size
_ONE_AXIS = (nn.Conv1d, nn.ConvTranspose1d)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """A module whose output is one tensor."""

    name: str
    shape: tuple[int, ...]  # of one sample: (C, H, W), (C, L), (L, C) or (C,)
    axis: int  # of `shape`: the channels
    leaf: bool

    @property
    def channels(self) -> int:
        return self.shape[self.axis]

    @property
    def size(self) -> tuple[int, ...]:
        """Positions: `shape` without channels."""
        return self.shape[: self.axis] + self.shape[self.axis + 1 :]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """The student's layer learns from the teacher's."""

    student: Layer
    teacher: Layer


def layers_of(candidate: Candidate) -> list[Layer]:
    """The layers of a model in the order in which they finish; the outermost of those that return the same tensor.

    What the model itself returns is not among them, nor is a layer that runs more than once. Outputs with three axes
    have their channels last, as tokens do, unless the model has one-dimensional convolutions.
    """
    module, seen, runs = candidate.module(), dict[str, torch.Tensor](), Counter[str]()

    def note(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            runs[name] += 1
            if any(output is given for given in inputs):  # nothing of its own: an empty shortcut
                return
            if isinstance(output, torch.Tensor) and output.is_floating_point() and output.ndim > 1:
                for other in [known for known, tensor in seen.items() if tensor is output]:
                    del seen[other]
                seen[name] = output

        return hook

    for name, layer in module.named_modules():
        if name:
            layer.register_forward_hook(note(name))  # the module is thrown away
    with torch.no_grad():
        returned = torch.utils._pytree.tree_leaves(module(*copied(candidate.example).values()))
    samples = len(next(iter(candidate.example.values())))
    one_axis = any(isinstance(layer, _ONE_AXIS) for layer in module.modules())
    return [
        Layer(
            name=name,
            shape=tuple(tensor.shape[1:]),
            axis=1 if tensor.ndim == 3 and not one_axis else 0,
            leaf=not any(module.get_submodule(name).children()),
        )
        for name, tensor in seen.items()
        if runs[name] == 1 and len(tensor) == samples and not any(tensor is result for result in returned)
    ]


def pair(student: Candidate, teacher: Candidate, named: Mapping[str, str], where: str) -> list[Pair]:
    """The pairs that `named` asks for (student's layer -> teacher's), or those that depth and shape suggest.

    Where features have several sizes, the last layer of each size is taken, else up to three blocks evenly spread. A
    layer's partner has its name and size, as in a pruned copy; else its size; and the last ones learn from the last.

    Raises:
        RecipeError: a name that is no such layer, or nothing that could be paired.
    """
    learning, teaching = layers_of(student), layers_of(teacher)
    if named:
        return [_asked(name, other, learning, teaching, where) for name, other in named.items()]
    ends, others = _ends(learning), _ends(teaching)
    by_name = {layer.name: layer for layer in teaching}
    found: list[Pair] = []
    for index, layer in enumerate(ends):
        same = by_name.get(layer.name)
        fitting = [other for other in others if other.size == layer.size and _fits(layer, other)]
        if same is not None and same.size == layer.size and _fits(layer, same):
            found.append(Pair(student=layer, teacher=same))
        elif len(fitting) > 1:  # one size everywhere: by depth
            place = round((index + 1) * len(fitting) / len(ends)) - 1
            found.append(Pair(student=layer, teacher=fitting[max(0, place)]))
        elif fitting:
            found.append(Pair(student=layer, teacher=fitting[0]))
    if ends and others and ends[-1] not in [pair.student for pair in found] and _fits(ends[-1], others[-1]):
        found.append(Pair(student=ends[-1], teacher=others[-1]))
    if not found:
        raise RecipeError(
            f"{where}.features: no layer of the student has a partner by depth and shape in the teacher; "
            "name them in feature_layers"
        )
    return found


def _asked(name: str, other: str, learning: list[Layer], teaching: list[Layer], where: str) -> Pair:
    chosen = []
    for wanted, layers, whose in ((name, learning, "student"), (other, teaching, "teacher")):
        known = {layer.name: layer for layer in layers}
        if wanted not in known:
            raise unknown(wanted, known, f"{where}.feature_layers: {whose}")
        chosen.append(known[wanted])
    if not _fits(*chosen):
        raise RecipeError(
            f"{where}.feature_layers: '{name}' gives {chosen[0].shape} and '{other}' {chosen[1].shape} per sample; "
            "a pair needs the same number of axes"
        )
    return Pair(student=chosen[0], teacher=chosen[1])


def _fits(student: Layer, teacher: Layer) -> bool:
    return len(student.shape) == len(teacher.shape) and student.axis == teacher.axis


def _ends(layers: Sequence[Layer]) -> list[Layer]:
    """The layers worth learning from, in their order."""
    mapped = [layer for layer in layers if len(layer.size) and torch.Size(layer.size).numel() > 1] or list(layers)
    last = {layer.size: layer for layer in mapped}
    if len(last) > 1:
        return sorted(last.values(), key=mapped.index)
    blocks = [layer for layer in mapped if not layer.leaf]
    blocks = [layer for layer in blocks if re.search(r"(^|\.)\d+$", layer.name)] or blocks or mapped
    common = Counter(layer.shape for layer in blocks).most_common(1)
    even = [layer for layer in blocks if common and layer.shape == common[0][0]]
    count = min(_MOST, len(even))
    return [even[round((index + 1) * len(even) / count) - 1] for index in range(count)]
