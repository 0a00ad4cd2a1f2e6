"""The size of a torch module: multiply-accumulates, parameters, channels."""

import dataclasses
from collections.abc import Iterable

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
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*(tensor[:1] for tensor in example.values()))
    return Size(
        macs=counter.get_total_flops() // 2,
        params=sum(parameter.numel() for parameter in module.parameters()),
        channel=sum(group.rows for group in groups),
    )
