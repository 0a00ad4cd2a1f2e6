"""Which positions of a batch are padding: what a network answers there is nothing to learn from."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", torch.Tensor, np.ndarray)
MASK = "attention_mask"  # the input `(N, tokens)` that is 0 at padding, as Hugging Face's encoders have it


def standing(inputs: Mapping[str, Array], positions: Sequence[int]) -> Array | None:
    """Which positions are no padding, bool `(N, tokens)`; None: the inputs say nothing of positions of this shape.

    A missing label says nothing of it: most pixels of a sparsely labelled image have none, and all are worth teaching.

    Args:
        inputs: of a batch, by name.
        positions: the shape of what has an answer each, without samples and classes.
    """
    mask = inputs.get(MASK)
    if mask is None or mask.ndim != 2 or tuple(positions) != tuple(mask.shape[1:]):
        return None
    found: Array = mask != 0
    return found
