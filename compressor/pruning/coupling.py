"""Which channels must leave together: Torch-Pruning's dependency graph (DepGraph, CVPR 2023) as plain data."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch_pruning
from torch import nn

from ...core.errors import ArtifactError, TaskError
from ..edit import ChannelEdit

Example = Mapping[str, torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """One layer's share in a group: which of its rows belong to which channel of the group."""

    layer: str  # qualified name
    kind: Literal["out", "in", "norm"]  # writes the channels, reads them, or normalizes them
    rows: torch.Tensor  # (R,) indices along the layer's channel axis
    channels: torch.Tensor  # (R,) index of the group's channel each row belongs to; flatten maps many rows to one


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CoupledChannels:
    """A group of layers whose channels can only be removed together, named after its root layer."""

    root: str
    channels: int
    members: tuple[Member, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that write the channels: what `keep` and `only` globs are matched against."""
        return tuple(dict.fromkeys(member.layer for member in self.members if member.kind == "out"))


def find(module: nn.Module, example: Example) -> list[CoupledChannels]:
    """Every group of coupled channels of `module`, in the order of its layers."""
    graph = _graph(module, example)
    names = {layer: name for name, layer in module.named_modules()}
    groups = []
    for group in graph.get_all_groups():
        members = [member for item in group.items if (member := _member(graph, item, names)) is not None]
        if members and members[0].kind == "out":
            groups.append(CoupledChannels(root=members[0].layer, channels=len(group[0].idxs), members=tuple(members)))
    order = list(names.values())
    return sorted(groups, key=lambda group: order.index(group.root))


def refuse(module: nn.Module, example: Example, groups: Sequence[CoupledChannels]) -> dict[str, str]:
    """Try every group on a copy: which roots must not be pruned, and why.

    Returns:
        Root -> reason. A group whose removal changes the shape of an output (a classifier) or breaks the forward pass
        (a hard-coded size, a grouped convolution that would become uneven) is refused.
    """
    expected = _shapes(module, example)
    reasons = {}
    for group in groups:
        if group.channels < 2:
            reasons[group.root] = "has a single channel"
            continue
        if reason := _bound(module, group):
            reasons[group.root] = reason
            continue
        trial = copy.deepcopy(module)
        try:
            remove(trial, example, [ChannelEdit(layer=group.root, remove=(0,))])
            if _shapes(trial, example) != expected:
                reasons[group.root] = "its channels are the model's output"
        except Exception as error:  # a foreign forward pass may raise anything; whatever it is, the group stays whole
            reasons[group.root] = (
                f"the model breaks without one of its channels: {str(error).strip().splitlines()[0][:160]}"
            )
    return reasons


def kind_of(module: nn.Module, group: CoupledChannels) -> str:
    """What a group is made of, whatever its width: equal for groups whose layers are joined in the same way."""
    return ", ".join(
        sorted(f"{type(module.get_submodule(member.layer)).__name__} {member.kind}" for member in group.members)
    )


def _bound(module: nn.Module, group: CoupledChannels) -> str:
    """Why weights of a group cannot be cut by themselves, or an empty string."""
    names: dict[int, dict[nn.Module, str]] = {}  # one tensor -> the layers that hold it
    for name, layer in module.named_modules():
        for key, parameter in layer.named_parameters(recurse=False):
            names.setdefault(id(parameter), {})[layer] = f"{name}.{key}"
    for member in group.members:
        layer = module.get_submodule(member.layer)
        if nn.utils.parametrize.is_parametrized(layer):
            return f"the weights of {member.layer} are parametrized; fold them with remove_parametrizations first"
        for parameter in layer.parameters(recurse=False):
            others = [name for other, name in names[id(parameter)].items() if other is not layer]
            if others:
                return f"weights of {member.layer} are tied to {', '.join(others)}; cutting them would untie them"
    return ""


def remove(module: nn.Module, example: Example, edits: Sequence[ChannelEdit]) -> None:
    """Apply edits in order, in place.

    Raises:
        ArtifactError: an edit names a layer or channel the architecture does not have: it belongs to another model.
    """
    if not edits:
        return
    graph = _graph(module, example)
    for edit in edits:
        try:
            layer = module.get_submodule(edit.layer)
        except AttributeError as error:
            raise ArtifactError(
                f"edit of layer '{edit.layer}': the architecture has no such layer; was the class changed?"
            ) from error
        pruner = graph.get_pruner_of_module(layer)
        if pruner is None or max(edit.remove) >= pruner.get_out_channels(layer):
            raise ArtifactError(
                f"edit of layer '{edit.layer}': it has no channel {max(edit.remove)}; was the class changed?"
            )
        graph.get_pruning_group(layer, pruner.prune_out_channels, list(edit.remove)).prune(record_history=False)


def channel_rows(layer: nn.Module, kind: str, values: torch.Tensor) -> torch.Tensor:
    """`values`, shaped like the layer's weight, with the layer's channels first: `(channels, numbers per channel)`."""
    weight = values.detach()
    if kind == "norm" or weight.ndim == 1:
        return weight.reshape(-1, 1)
    # The weight of an embedding is (tokens, channels), that of a transposed convolution (in, out, ...).
    transposed = isinstance(layer, nn.Embedding) or bool(getattr(layer, "transposed", False))
    if (kind == "out") == transposed:
        weight = weight.transpose(0, 1)
    rows = weight.flatten(1)
    groups = int(getattr(layer, "groups", 1))
    if kind == "in" and groups > 1:
        rows = rows.repeat(groups, 1)  # each group of a grouped convolution reads its own slice
    return rows


def _graph(module: nn.Module, example: Example) -> Any:
    frozen = [
        parameter for parameter in module.parameters() if not parameter.requires_grad and parameter.is_floating_point()
    ]
    for parameter in frozen:  # the graph is traced through autograd
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            return torch_pruning.DependencyGraph().build_dependency(
                module, dict(example), forward_fn=lambda model, inputs: model(*inputs.values()), verbose=False
            )
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _member(graph: Any, item: Any, names: Mapping[nn.Module, str]) -> Member | None:
    layer = item.dep.target.module
    if layer not in names or getattr(layer, "weight", None) is None:
        return None  # an operation, or a layer without weights
    if isinstance(layer, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)):
        kind: Literal["out", "in", "norm"] = "norm"
    elif graph.is_out_channel_pruning_fn(item.dep.handler):
        kind = "out"
    else:
        kind = "in"
    return Member(
        layer=names[layer],
        kind=kind,
        rows=torch.tensor(item.idxs, dtype=torch.long),
        channels=torch.tensor(item.root_idxs, dtype=torch.long),
    )


def _shapes(module: nn.Module, example: Example) -> list[tuple[int, ...]]:
    module.eval()
    with torch.no_grad():
        result = module(*example.values())
    leaves = torch.utils._pytree.tree_leaves(result)
    if not leaves or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise TaskError("the model's forward returns no tensors")
    return [tuple(leaf.shape) for leaf in leaves]
