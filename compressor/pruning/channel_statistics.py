"""What data tells about channels: gradients and activations, gathered once per pruning step."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .coupling import CoupledChannels, channel_rows

_DRAWS = 8  # for each batch

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
    """Half of weight ** 2 times the loss's second derivative, summed over each channel of every member of `groups`.

    The Hessian's diagonal is estimated by Hutchinson's method: v * (H v) over random signs v, `_DRAWS` for each batch.

    Args:
        module: on any device.
        loss: (inputs, labels) -> scalar, through `module`.
    """
    layers = dict(module.named_modules())
    keys = {(member.layer, member.kind) for group in groups for member in group.members}
    weights: dict[str, Any] = {name: layers[name].weight for name, _ in sorted(keys)}
    totals = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    count = 0
    module.eval()
    for inputs, labels in batches:
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            _add_curvature(totals, weights, loss(inputs, labels), generator)
        count += _DRAWS
    return Statistics(
        curvature={
            (name, kind): channel_rows(
                layers[name], kind, 0.5 * weights[name].detach().square() * totals[name] / max(count, 1)
            ).sum(1).cpu()
            for name, kind in keys
        }
    )  # fmt: skip


def _add_curvature(
    totals: Mapping[str, torch.Tensor], weights: Mapping[str, Any], loss: torch.Tensor, generator: torch.Generator
) -> None:
    """Add v * (H v) for `_DRAWS` draws of v; nothing for weights that the loss does not depend on, or linearly."""
    held = list(weights.values())
    found = torch.autograd.grad(loss, held, create_graph=True, allow_unused=True)
    first = {name: grad for name, grad in zip(weights, found, strict=True) if grad is not None and grad.requires_grad}
    for _ in range(_DRAWS if first else 0):
        signs = [
            (torch.randint(0, 2, grad.shape, generator=generator) * 2.0 - 1).to(grad) for grad in first.values()
        ]
        curved = torch.autograd.grad(
            list(first.values()), [weights[name] for name in first], signs, retain_graph=True, materialize_grads=True
        )
        for name, sign, product in zip(first, signs, curved, strict=True):
            totals[name].add_(sign * product)


def _first_order(layer: nn.Module, kind: str) -> torch.Tensor:
    weight: Any = layer.weight
    if weight.grad is None:
        return torch.zeros(len(channel_rows(layer, kind, weight)), device=weight.device)
    return channel_rows(layer, kind, weight * weight.grad).sum(1)
