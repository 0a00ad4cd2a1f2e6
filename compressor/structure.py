"""The size of a torch module: multiply-accumulates, parameters, channels."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .pruning.coupling import CoupledChannels, Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """Counts; the names are those of the ratios a recipe may ask for."""

    macs: int  # of one sample
    params: int
    channel: int  # channels of the groups that can be pruned


def measure(module: nn.Module, example: Example, groups: Iterable[CoupledChannels]) -> Size:
    """Count on one sample of `example`, by torch's own operator counter (2 FLOPs are one MAC)."""
    module.eval()
    counter, _ = counted(module, {name: tensor[:1] for name, tensor in example.items()})
    return Size(
        macs=counter.get_total_flops() // 2,
        params=sum(parameter.numel() for parameter in module.parameters()),
        channel=sum(group.rows for group in groups),
    )


def counted(module: nn.Module, inputs: Example) -> tuple[FlopCounterMode, Any]:
    """The counter after one pass, and what the pass returned.

    No weight asks for gradients meanwhile: the counter hangs hooks on whatever does, and a view of a weight that goes
    into a layer, as of learned queries, asks for one and has no history to hang them on.
    """
    asking = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            return counter, module(*inputs.values())
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
