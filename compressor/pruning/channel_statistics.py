"""What data tells about channels: gradients and activations, gathered once per pruning step."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .coupling import CoupledChannels, channel_rows

_DRAWS = 8  # for each batch; on the digits, 4 batches: ranks of two seeds correlate by 0.46, with one draw by 0.17

Batch = tuple[Mapping[str, torch.Tensor], torch.Tensor | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Means over batches, per layer; on the CPU, wherever the module ran."""

    taylor: Mapping[tuple[str, str], torch.Tensor] = dataclasses.field(
        default_factory=dict
    )  # (layer, kind) -> (channels,)
    activation: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)  # layer -> (input channels,)
    energy: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)  # the same of squares
    curvature: Mapping[tuple[str, str], torch.Tensor] = dataclasses.field(default_factory=dict)  # as `taylor`


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
    """Mean absolute value and mean square of every input channel of the layers that read a group's channels."""
    layers = dict(module.named_modules())
    names = {member.layer for group in groups for member in group.members if member.kind == "in"}
    sums: dict[str, torch.Tensor] = {}  # layer -> (2, input channels)
    counts: dict[str, int] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
            values = arguments[0].detach().float()
            axis = 1 if isinstance(layer, nn.modules.conv._ConvNd) else values.ndim - 1
            other = [index for index in range(values.ndim) if index != axis]
            total = torch.stack([values.abs().sum(other), values.square().sum(other)])
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
    means = {name: total.cpu() / counts[name] for name, total in sums.items()}
    return Statistics(
        activation={name: mean[0] for name, mean in means.items()},
        energy={name: mean[1] for name, mean in means.items()},
    )


def curvatures(
    module: nn.Module,
    groups: Iterable[CoupledChannels],
    batches: Iterable[Batch],
    loss: Callable[[Mapping[str, torch.Tensor], torch.Tensor | None], torch.Tensor],
    generator: torch.Generator,
) -> Statistics:
    """Half of w . H w for the weights w of every channel of every member of `groups`; H is the loss's Hessian.

    The diagonal over channels is estimated by Hutchinson's method: random signs of whole channels, `_DRAWS` times for
    each batch. Signs of single weights would drown it: a layer has thousands of them, and all others' are noise.

    Args:
        module: on any device.
        loss: (inputs, labels) -> scalar, through `module`.
    """
    layers = dict(module.named_modules())
    keys = sorted({(member.layer, member.kind) for group in groups for member in group.members})
    weights: dict[str, Any] = {name: layers[name].weight for name, _ in keys}

    def of_channels(gradients: Mapping[str, torch.Tensor]) -> dict[tuple[str, str], torch.Tensor]:
        return {
            (name, kind): channel_rows(layers[name], kind, weights[name].detach() * gradients[name]).sum(1)
            for name, kind in keys
            if name in gradients
        }

    sums: dict[tuple[str, str], torch.Tensor] = {}
    count = 0
    module.eval()
    for inputs, labels in batches:
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
            first = _gradients(loss(inputs, labels), weights, again=True)
            along = of_channels(first)
            for _ in range(_DRAWS):
                signs = {key: _signs(len(value), generator).to(value) for key, value in along.items()}
                probe = sum((signs[key] @ value for key, value in along.items()), torch.zeros(()))
                for key, value in of_channels(_gradients(probe, weights, again=False)).items():
                    sums[key] = sums.get(key, 0.0) + 0.5 * signs[key] * value
        count += _DRAWS
    none = {key: torch.zeros(len(channel_rows(layers[key[0]], key[1], weights[key[0]]))) for key in keys}
    return Statistics(curvature=none | {key: total.detach().cpu() / count for key, total in sums.items()})


def _gradients(value: torch.Tensor, weights: Mapping[str, Any], again: bool) -> dict[str, torch.Tensor]:
    """Of those weights that a scalar depends on; `again`: they can be derived once more."""
    if not value.requires_grad:
        return {}
    held = list(weights.values())
    found = torch.autograd.grad(value, held, retain_graph=True, create_graph=again, allow_unused=True)
    return {name: gradient for name, gradient in zip(weights, found, strict=True) if gradient is not None}


def _signs(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 2, (count,), generator=generator) * 2.0 - 1


def _first_order(layer: nn.Module, kind: str) -> torch.Tensor:
    weight: Any = layer.weight
    if weight.grad is None:
        return torch.zeros(len(channel_rows(layer, kind, weight)), device=weight.device)
    return channel_rows(layer, kind, weight.detach() * weight.grad).sum(1)
