"""What data tells about channels: gradients and activations, gathered once per pruning step."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from .coupling import CoupledChannels, channel_rows

Batch = tuple[Mapping[str, torch.Tensor], torch.Tensor | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Means over batches, per layer; on the CPU, wherever the module ran."""

    taylor: Mapping[tuple[str, str], torch.Tensor] = dataclasses.field(
        default_factory=dict
    )  # (layer, kind) -> (channels,)
    activation: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)  # layer -> (input channels,)


def gradients(
    module: nn.Module,
    groups: Iterable[CoupledChannels],
    batches: Iterable[Batch],
    loss: Callable[[Mapping[str, torch.Tensor], torch.Tensor | None], torch.Tensor],
) -> Statistics:
    """Mean over batches of the squared first-order Taylor term, per channel of every member of `groups`.

    Args:
        module: on any device; its gradients are cleared afterwards.
        loss: (inputs, labels) -> scalar, through `module`.
    """
    layers = dict(module.named_modules())
    keys = {(member.layer, member.kind) for group in groups for member in group.members}
    sums: dict[tuple[str, str], torch.Tensor] = {}
    count = 0
    module.eval()
    for inputs, labels in batches:
        module.zero_grad(set_to_none=True)
        loss(inputs, labels).backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        for layer, kind in keys:
            term = _first_order(layers[layer], kind).square()
            sums[layer, kind] = sums[layer, kind] + term if (layer, kind) in sums else term
        count += 1
    module.zero_grad(set_to_none=True)
    return Statistics(taylor={key: total.cpu() / max(count, 1) for key, total in sums.items()})


def activations(module: nn.Module, groups: Iterable[CoupledChannels], batches: Iterable[Batch]) -> Statistics:
    """Mean absolute value of every input channel of the layers that read a group's channels."""
    layers = dict(module.named_modules())
    names = {member.layer for group in groups for member in group.members if member.kind == "in"}
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
            values = arguments[0].detach().abs().float()
            axis = 1 if isinstance(layer, nn.modules.conv._ConvNd) else values.ndim - 1
            other = [index for index in range(values.ndim) if index != axis]
            total = values.sum(other)
            sums[name] = sums[name] + total if name in sums else total
            counts[name] = counts.get(name, 0) + values.numel() // values.shape[axis]

        return hook

    handles = [layers[name].register_forward_pre_hook(watch(name)) for name in sorted(names)]
    try:
        module.eval()
        with torch.no_grad():
            for inputs, _ in batches:
                module(*inputs.values())
    finally:
        for handle in handles:
            handle.remove()
    return Statistics(activation={name: total.cpu() / counts[name] for name, total in sums.items()})


def _first_order(layer: nn.Module, kind: str) -> torch.Tensor:
    weight: Any = layer.weight
    if weight.grad is None:
        return torch.zeros(len(channel_rows(layer, kind, weight)), device=weight.device)
    return channel_rows(layer, kind, weight * weight.grad).sum(1)
