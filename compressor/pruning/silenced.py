"""A network with channels that carry nothing: what it has to compute once they are gone."""

import copy
from typing import Any

import torch
from torch import nn

from .coupling import Leaving


def silenced(module: nn.Module, without: nn.Module, leaving: Leaving) -> nn.Module:
    """Zero, in place, all weights that write or read the channels that leave.

    Layers that look at all channels at once (LayerNorm, GroupNorm, RMSNorm) would still count those that are zero; each
    is asked for the others alone, as it is in `without`.

    Args:
        without: the same module after they have left.
    """
    gone: dict[str, tuple[int, ...]] = {}
    with torch.no_grad():
        for name, kind, axis, rows in leaving.parts:
            if kind == "parameter":
                module.get_parameter(name).index_fill_(axis, torch.tensor(rows), 0.0)
                gone[name.rpartition(".")[0]] = rows
            else:
                zero(module.get_submodule(name), torch.tensor(rows), written=kind == "out")
                gone[name] = rows
    for name, layer in list(module.named_modules()):
        if name in gone and (
            isinstance(layer, (nn.LayerNorm, nn.GroupNorm)) or type(layer).__name__.endswith("RMSNorm")
        ):
            module.set_submodule(name, _Apart(copy.deepcopy(without.get_submodule(name)), layer, gone[name]))
    return module


class _Apart(nn.Module):
    """A norm over some of the channels; the others are zero before and behind it."""

    def __init__(self, norm: nn.Module, whole: nn.Module, gone: tuple[int, ...]) -> None:
        super().__init__()
        count = whole.num_channels if isinstance(whole, nn.GroupNorm) else _width(whole)
        self._norm = norm
        self._kept = torch.tensor([row for row in range(count) if row not in set(gone)])
        self._axis = 1 if isinstance(norm, nn.GroupNorm) or vars(norm).get("data_format") == "channels_first" else -1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self._norm(x.index_select(self._axis, self._kept))
        return torch.zeros_like(x).index_copy(self._axis, self._kept, result)


def _width(norm: Any) -> int:
    """Of a norm over the last axis, which may have no weights."""
    return int(norm.normalized_shape[-1] if norm.weight is None else norm.weight.shape[0])


def zero(layer: Any, rows: torch.Tensor, written: bool) -> None:
    """Zero the weights with which a layer writes these channels, or reads them, in place; a norm counts as a writer."""
    weight = getattr(layer, "weight", None)
    if weight is None:
        return
    turned = isinstance(layer, nn.Embedding) or bool(getattr(layer, "transposed", False))
    groups = int(getattr(layer, "groups", 1))
    axis = 0 if weight.ndim == 1 or written != turned else 1
    with torch.no_grad():
        if axis == 0 or groups == 1:
            weight.index_fill_(axis, rows, 0.0)
        else:  # each group has its own slice of the axis: (out, in / groups, ...), or (in, out / groups, ...)
            of_group = weight.unflatten(0, (groups, -1))
            for row in rows.tolist():
                of_group[row // weight.shape[1], :, row % weight.shape[1]] = 0.0
        if written and getattr(layer, "bias", None) is not None:
            layer.bias.index_fill_(0, rows, 0.0)
