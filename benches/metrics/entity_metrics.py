"""Named entities: spans of tags, right only when both ends and the kind are (CoNLL-2003)."""

import functools
from collections.abc import Sequence

import numpy as np

from ...core.errors import TaskError
from ...core.task import NO_LABEL, Metric
from .class_metrics import position_misfit


def entity_f1(tags: Sequence[str], output: str | None = None) -> Metric:
    """F1 over the entities of a split, for logits `(N, tags, positions)` and labels `(N, positions)`.

    Args:
        tags: what each class is called: `O`, `B-PER`, `I-PER` ...; an `I-` that follows nothing of its kind begins an
            entity, as the CoNLL evaluation has it. Positions with the label -100 (padding, the rest of a word) are
            left out.
        output: name of the output it reads; None: the first.

    Raises:
        TaskError: a tag that is none.
    """
    for tag in tags:
        if tag != "O" and (tag[:2] not in ("B-", "I-") or len(tag) < 3):
            raise TaskError(f"entity_f1: '{tag}' is not a tag; use O, B-KIND and I-KIND")
    return Metric(
        name="entity-f1",
        scores=functools.partial(_counts, tuple(tags)),
        kind="statistic",
        reduce=_f1,
        output=output,
        bounds=(0.0, 1.0),
        misfit=functools.partial(_misfit, len(tags)),
    )


def _misfit(tags: int, output: np.ndarray, labels: np.ndarray) -> str:
    found = position_misfit(output, labels)
    if found or output.shape[1] == tags:
        return found
    return f"the model gives {output.shape[1]} outputs for each position, and {tags} tags are named; name one for each"


def _counts(tags: tuple[str, ...], output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Per sample: entities found, said, true; `(N, 3)`."""
    rows = []
    for said, true in zip(output.argmax(axis=1), labels, strict=True):
        counted = true != NO_LABEL
        found, expected = (_entities([tags[index] for index in row[counted]]) for row in (said, true))
        rows.append((len(found & expected), len(found), len(expected)))
    return np.array(rows)


def _entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """(first, after the last, kind) of each."""
    found, start, kind = set(), 0, ""
    for place, tag in enumerate((*tags, "O")):
        goes_on = tag == f"I-{kind}"
        if kind and not goes_on:
            found.add((start, place, kind))
        if not goes_on:
            start, kind = place, tag[2:]
    return found


def _f1(rows: np.ndarray) -> float:
    right, said, true = rows.sum(axis=0)
    return float(2 * right / (said + true)) if said + true else 0.0
