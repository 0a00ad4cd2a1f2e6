"""What members give, what is fused of it, and the form in which the fusion gives it back."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np
import scipy

from ...core.errors import RecipeError
from ...exporters.graph.compose import Nodes
from .fusing import EDGE, LEAST, softmax, write_logs

LABELS = "label-logits"
KINDS = ("logits", "probabilities", LABELS, "numbers")


def kinds_of(gives: str | Mapping[str, str], members: Sequence[str], where: str) -> dict[str, str]:
    """What each member gives: one of `KINDS`, and only such as can be fused with each other.

    Raises:
        RecipeError: it is not said, or of something that is no member; kinds that do not go together.
    """
    given = dict(gives) if isinstance(gives, Mapping) else dict.fromkeys(members, gives)
    for name in given:
        if name not in members:
            raise RecipeError(f"{where}.gives: '{name}' is no member; members: {', '.join(members)}")
    for name in members:
        if given.get(name, "") not in KINDS:
            raise RecipeError(
                f"{where}.gives: what '{name}' gives has to be said: {', '.join(KINDS[:-1])} or {KINDS[-1]}; "
                f"got {given.get(name, '')!r}"
            )
    for kind in ("numbers", LABELS):
        if kind in given.values() and set(given.values()) != {kind}:
            others = "classes" if kind == "numbers" else "anything else"
            shown = ", ".join(f"{name} {each}" for name, each in given.items())
            raise RecipeError(f"{where}.gives: {kind} are not fused with {others}: {shown}")
    return given


def of_classes(kinds: Mapping[str, str]) -> bool:
    """Whether members say which one of several classes a sample is of."""
    return not {"numbers", LABELS} & set(kinds.values())


def fusible(rows: np.ndarray, kind: str) -> np.ndarray:
    """A member's rows `(N, C)` as they are fused: probabilities of classes or of labels, or numbers."""
    if kind == LABELS:
        shares: np.ndarray = scipy.special.expit(rows)
        return shares
    return softmax(rows) if kind == "logits" else rows


def write_stack(nodes: Nodes, outputs: Mapping[str, str], width: int, flat: Collection[str] = ()) -> str:
    """Members' outputs as one stack `(N, members, C)`; a softmax where they are logits, one for all if all are.

    Args:
        outputs: tensor -> one of `KINDS`, `(N, C)`.
        width: C.
        flat: those that are `(N,)`.
    """
    shape = nodes.constant([-1, len(outputs), width], np.int64)
    kinds = set(outputs.values())
    if kinds == {"logits"}:
        return nodes.add("Softmax", nodes.add("Reshape", nodes.add("Concat", *outputs, axis=1), shape), axis=-1)
    rows = [nodes.add("Softmax", name, axis=-1) if kind == "logits" else name for name, kind in outputs.items()]
    row = nodes.constant([-1, 1], np.int64) if flat else ""
    rows = [nodes.add("Reshape", name, row) if name in flat else name for name in rows]
    stack = nodes.add("Reshape", nodes.add("Concat", *rows, axis=1), shape)
    return nodes.add("Sigmoid", stack) if kinds == {LABELS} else stack


class Form(Protocol):
    """How what was fused is given back; the same in numpy, as nodes, and undone."""

    def __call__(self, fused: np.ndarray, /) -> np.ndarray: ...

    def write(self, nodes: Nodes, fused: str, /) -> str:
        """Nodes behind the tensor `fused`; the name of what they give."""
        ...

    def undo(self, output: np.ndarray, /) -> np.ndarray:
        """For comparing a file's output with what it should be."""
        ...


@dataclasses.dataclass(frozen=True)
class Unchanged:
    """Numbers, or probabilities."""

    def __call__(self, fused: np.ndarray) -> np.ndarray:
        return fused

    def write(self, nodes: Nodes, fused: str) -> str:
        return fused

    def undo(self, output: np.ndarray) -> np.ndarray:
        return output


@dataclasses.dataclass(frozen=True)
class Logarithms(Unchanged):
    """Of probabilities of classes: a softmax takes them back."""

    def __call__(self, fused: np.ndarray) -> np.ndarray:
        logs: np.ndarray = np.log(np.maximum(fused, LEAST))
        return logs

    def write(self, nodes: Nodes, fused: str) -> str:
        return write_logs(nodes, fused)


@dataclasses.dataclass(frozen=True)
class LogOdds:
    """Of probabilities of labels: above 0 is yes, and a sigmoid takes them back."""

    def __call__(self, fused: np.ndarray) -> np.ndarray:
        odds: np.ndarray = scipy.special.logit(np.clip(fused, EDGE, 1 - EDGE))
        return odds

    def write(self, nodes: Nodes, fused: str) -> str:
        kept = nodes.add("Clip", fused, nodes.constant(EDGE), nodes.constant(1 - EDGE))
        return nodes.add("Log", nodes.add("Div", kept, nodes.add("Sub", nodes.constant(1), kept)))

    def undo(self, output: np.ndarray) -> np.ndarray:
        shares: np.ndarray = scipy.special.expit(output)
        return shares
