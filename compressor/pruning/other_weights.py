"""Networks with other weights than their own, to try on what holds for any."""

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from . import regions
from .coupling import Example


def randomized(module: nn.Module) -> nn.Module:
    """A copy with random weights: a trained or fresh one may be symmetric where it need not be."""
    trial, generator = copy.deepcopy(module).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in trial.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                spread = noise / max(tensor[:1].numel(), 1) ** 0.5 if tensor.ndim > 1 else 0.3 * noise
                tensor.copy_(spread.abs() + 0.5 if name.endswith("running_var") else spread + (tensor.ndim == 1))
    return trial


def negated(module: nn.Module) -> nn.Module:
    """A copy whose weights have the other sign: what asks for the sign of some goes the other way."""
    turned = copy.deepcopy(module)
    scale(turned.parameters(), -1.0)
    return turned


def scale(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """All that are no integers, in place."""
    with torch.no_grad():
        for parameter in parameters:
            if parameter.is_floating_point():
                parameter.mul_(factor)


def answers(module: nn.Module, inputs: Example) -> list[torch.Tensor]:
    """All tensors that the forward pass returns."""
    with torch.no_grad():
        return regions.tensors(module(*inputs.values()))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Within what another order of summation does to float32."""
    largest = float(theirs.abs().max()) + 1e-12
    return ours.shape == theirs.shape and float((ours - theirs).abs().max()) < 1e-4 * largest


def trial_of(module: nn.Module, inputs: Example, double: bool) -> tuple[nn.Module, Example, list[torch.Tensor], bool]:
    """A copy to try things on, what goes in, what comes out, whether it has its own weights.

    In double precision and with random weights if it can.
    """
    doubled = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    for own in (False, True):
        weights: Callable[[nn.Module], nn.Module] = copy.deepcopy if own else randomized
        if double:
            trial = weights(module).double().eval()
            try:
                found = answers(trial, doubled)
            except Exception:  # a forward pass that names float32 somewhere: see below
                pass
            else:
                if _finite(found):
                    return trial, doubled, found, own
        trial = weights(module).eval()
        found = answers(trial, inputs)
        if _finite(found):
            break
    return trial, inputs, found, own


def _finite(found: Sequence[torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(x).all()) for x in found)
