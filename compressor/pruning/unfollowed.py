"""What of a network no group of coupled channels holds, although it has weights that could become fewer, and why."""

from collections.abc import Sequence

from torch import nn

from ..edit import ChannelEdit
from . import coupling, open_attention, regions
from .coupling import CoupledChannels, Example


def unfollowed(module: nn.Module, example: Example, groups: Sequence[CoupledChannels]) -> dict[str, str]:
    """What is left out -> why: heads of attentions that stay closed, and layers whose kind is not followed.

    Args:
        groups: all of them, see `coupling.find`.
    """
    shut = open_attention.closed(module)
    known = {*shut, *(member.layer for group in groups for member in group.members)}
    inside = tuple(f"{name}." for name in known)  # an attention's last layer, a parametrization
    outside = [
        name
        for name, layer in module.named_modules()
        if _has_matrix(layer) and name not in known and not name.startswith(inside)
    ]
    if outside:
        held = _holders(module, example, groups)
        outside = [name for name in outside if name not in held]
    reasons = {f"the heads of {name}": reason for name, reason in shut.items()}
    return reasons | (_by_kind(module, example, outside) if outside else {})


def _has_matrix(layer: nn.Module) -> bool:
    """Whether a layer has weights with at least two axes, of its own."""
    return any(weight.numel() > max(weight.shape, default=1) for weight in layer.parameters(recurse=False))


def _holders(module: nn.Module, example: Example, groups: Sequence[CoupledChannels]) -> set[str]:
    """Modules of whose bare parameters something leaves with a group, as of learned positions."""
    graph = coupling.graph_of(module, example)
    found = set()
    for group in groups:
        everything = ChannelEdit(layer=group.root, remove=tuple(range(group.rows)))
        parts = coupling.leaving(module, example, everything, graph).parts
        found |= {name.rpartition(".")[0] for name, kind, _, _ in parts if kind == "parameter"}
    return found


def _by_kind(module: nn.Module, example: Example, names: Sequence[str]) -> dict[str, str]:
    called = regions.calls(module, example)
    found: dict[tuple[str, str], int] = {}
    for name in names:
        kind = type(module.get_submodule(name))
        label = kind.__name__ if kind.__module__.startswith("torch.") else f"{kind.__module__}.{kind.__qualname__}"
        key = label, "its channels are not followed" if name in called else "the forward pass does not call it"
        found[key] = found.get(key, 0) + 1
    return {f"{label} ({count} of them)": reason for (label, reason), count in found.items()}
