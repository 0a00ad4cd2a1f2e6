"""Which positions of a batch are padding: what a network answers there is nothing to learn from."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", torch.Tensor, np.ndarray)
MASK = "attention_mask"  # the input `(N, tokens)` that is 0 at padding, as Hugging Face's encoders have it


def _floating(mask: Array) -> bool:
    return mask.dtype.is_floating_point if isinstance(mask, torch.Tensor) else bool(mask.dtype.kind == "f")


def standing(inputs: Mapping[str, Array], positions: Sequence[int]) -> Array | None:
    """Which positions are no padding, bool `(N, tokens)`; None: the inputs say nothing of positions of this shape.

    A missing label says nothing of it: most pixels of a sparsely labelled image have none, and all are worth teaching.

    Args:
        inputs: of a batch, by name.
        positions: the shape of what has an answer each, without samples and classes.
    """
    mask = inputs.get(MASK)
    if mask is None or mask.ndim != 2 or tuple(positions) != tuple(mask.shape[1:]) or _floating(mask):
        return None  # floats are added to what attention asks: 0 is no padding there
    found: Array = mask != 0
    return found
