"""Which channels must leave together: Torch-Pruning's dependency graph (DepGraph, CVPR 2023) as plain data."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from ...core.errors import ArtifactError
from ..edit import ChannelEdit
from . import shuffles
from .dependencies import Dependencies, is_frozen_norm

Example = Mapping[str, torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """One layer's share in a group: which of its rows belong to which channel of the group."""

    layer: str  # qualified name
    kind: Literal["out", "in", "norm"]  # writes the channels, reads them, or normalizes them
    rows: torch.Tensor  # (R,) indices along the layer's channel axis
    channels: torch.Tensor  # (R,) index of the group's channel each row belongs to; flatten maps many rows to one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How the root layer's rows make up channels: `outer` runs of all channels, in each a channel has `inner` rows.

    A grouped convolution loses the same row of each of its groups (outer = groups), a pixel shuffle r * r rows in a row
    (inner = r * r), an attention a whole head (inner = head_dim; with queries, keys and values in one layer outer = 3).
    """

    outer: int = 1
    inner: int = 1

    @property
    def size(self) -> int:
        """Rows of a channel."""
        return self.outer * self.inner

    def rows(self, channel: int, channels: int) -> list[int]:
        """Rows of one of `channels` channels.

        >>> Layout(outer=3, inner=2).rows(1, 4)
        [2, 3, 10, 11, 18, 19]
        """
        return [(run * channels + channel) * self.inner + row for run in range(self.outer) for row in range(self.inner)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Count:
    """An attribute that a module counts channels in, as num_heads does: it has to follow them."""

    module: str  # qualified name
    attribute: str
    each: int  # how much a channel counts


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CoupledChannels:
    """A group of layers whose channels can only be removed together, named after its root layer.

    A channel is the least that can leave: one row of the root layer, or as many as its layout says, such as a head.
    """

    root: str
    channels: int
    members: tuple[Member, ...]
    layout: Layout = Layout()
    counts: tuple[Count, ...] = ()
    lost: str = ""  # a layer whose rows could not be followed to channels
    shared: str = ""  # a layer of which several channels seem to go with each of these, as queries with keys

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that write the channels: what `keep` and `only` globs are matched against."""
        return tuple(dict.fromkeys(member.layer for member in self.members if member.kind == "out"))

    @property
    def rows(self) -> int:
        """Of the root layer."""
        return self.channels * self.layout.size

    def edit(self, channels: Iterable[int]) -> ChannelEdit:
        """What takes these channels out."""
        gone = sorted(set(channels))
        left = self.channels - len(gone)
        return ChannelEdit(
            layer=self.root,
            remove=tuple(sorted(row for channel in gone for row in self.layout.rows(channel, self.channels))),
            attributes=tuple((count.module, count.attribute, count.each * left) for count in self.counts),
        )

    def least(self, scores: torch.Tensor, count: int) -> list[int]:
        """The `count` channels of least score; the best one of every layer stays, so that none is emptied.

        A layer may hold a part of a group's channels only: two that are concatenated and then excited together.
        """
        parts = (torch.unique(member.channels) for member in self.members)
        stay = {int(part[scores[part].argmax()]) for part in parts}
        return [channel for channel in scores.argsort(stable=True).tolist() if channel not in stay][:count]

    def multiple(self, rows: int) -> int:
        """The least number of channels that is a multiple of `rows` rows of the root layer."""
        return rows // math.gcd(rows, self.layout.size)

    def laid_out(self, layout: Layout, counts: Iterable[Count] = ()) -> "CoupledChannels":
        """The same group, with channels of `layout.size` rows."""
        channels = self.channels // layout.size
        of = torch.empty(self.channels, dtype=torch.long)
        for channel in range(channels):
            of[layout.rows(channel, channels)] = channel
        members = tuple(dataclasses.replace(member, channels=of[member.channels]) for member in self.members)
        return dataclasses.replace(self, channels=channels, members=members, layout=layout, counts=tuple(counts))


def find(module: nn.Module, example: Example, graph: Any = None) -> list[CoupledChannels]:
    """Every group of coupled channels of `module`, in the order of its layers.

    Args:
        graph: what `graph_of` gives, where it is known.
    """
    graph = graph or graph_of(module, example)
    names = {layer: name for name, layer in module.named_modules()}
    groups, shared = [], {}
    for group in graph.get_all_groups():
        known = [item for item in group.items if None not in item.root_idxs]  # it loses track of repeated heads
        members = [member for item in known if (member := _member(graph, item, names)) is not None]
        unknown = [item.dep.target.module for item in group.items if None in item.root_idxs]
        lost = [names[layer] for layer in unknown if layer in names]
        if members and members[0].kind == "out":
            root, channels = members[0].layer, len(group[0].idxs)
            part = next((member.layer for member in members if _in_part(module, graph, member, channels)), "")
            groups.append(
                CoupledChannels(
                    root=root, channels=channels, members=tuple(members), lost=next(iter(lost), ""), shared=part
                )
            )
            shared.update(dict.fromkeys(lost, root))
    groups = [dataclasses.replace(group, shared=shared.get(group.root, group.shared)) for group in groups]
    order = list(names.values())
    return sorted(groups, key=lambda group: order.index(group.root))


def _in_part(module: nn.Module, graph: Any, member: Member, channels: int) -> bool:
    """Whether the graph followed all channels of a group into a fraction of those that a layer writes.

    It takes a head of keys for the query's head of the same number, and there are more queries.
    """
    if member.kind != "out":
        return False
    layer = module.get_submodule(member.layer)
    written, followed = graph.get_pruner_of_module(layer).get_out_channels(layer), int(member.rows.max()) + 1
    return bool(written > channels and written % followed == 0 and len(member.rows) == followed < written)


def kind_of(module: nn.Module, group: CoupledChannels) -> str:
    """What a group is made of, whatever its width: equal for groups whose layers are joined in the same way."""
    return ", ".join(
        sorted(f"{type(module.get_submodule(member.layer)).__name__} {member.kind}" for member in group.members)
    )


def remove(module: nn.Module, example: Example, edits: Sequence[ChannelEdit]) -> None:
    """Apply edits in order, in place.

    Raises:
        ArtifactError: an edit names a layer or channel the architecture does not have: it belongs to another model.
    """
    graph, waiting = None, list[tuple[ChannelEdit, Leaving]]()
    for edit in edits:
        if any(left.rows(edit.layer) for _, left in waiting):  # its channels are those that the others leave
            _cut(module, waiting)
            graph, waiting = None, []
        graph = graph or graph_of(module, example)
        waiting.append((edit, leaving(module, example, edit, graph)))
    _cut(module, waiting)


def _cut(module: nn.Module, edits: Sequence[tuple[ChannelEdit, "Leaving"]]) -> None:
    together([left for _, left in edits]).cut(module)
    for edit, _ in edits:
        _attributes_follow(module, edit)


def without(module: nn.Module, example: Example, edit: ChannelEdit, graph: Any) -> nn.Module:
    """A copy after an edit; `graph`, what `graph_of` gives, serves any number of edits."""
    copied = copy.deepcopy(module)
    _cut(copied, [(edit, leaving(module, example, edit, graph))])
    return copied


def _attributes_follow(module: nn.Module, edit: ChannelEdit) -> None:
    for name, attribute, value in edit.attributes:
        holder = dict(module.named_modules()).get(name)
        if holder is None or type(vars(holder).get(attribute)) is not int:
            raise ArtifactError(
                f"edit of layer '{edit.layer}': '{name}' has no number '{attribute}'; was the class changed?"
            )
        setattr(holder, attribute, value)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Leaving:
    """All that an edit takes out of a network: rows of layers and of parameters that belong to no layer."""

    parts: tuple[tuple[str, Literal["out", "in", "parameter"], int, tuple[int, ...]], ...]  # (name, kind, axis, rows)
    handlers: tuple[Callable[..., Any], ...]  # what cuts each part: (layer or parameter, rows)

    def rows(self, layer: str) -> set[int]:
        """What leaves of the channels that a layer writes."""
        return {row for name, kind, _, rows in self.parts if name == layer and kind == "out" for row in rows}

    @property
    def layers(self) -> tuple[str, ...]:
        """Every layer, or holder of a parameter, that loses something."""
        holders = (name.rpartition(".")[0] if kind == "parameter" else name for name, kind, _, _ in self.parts)
        return tuple(dict.fromkeys(holders))

    def cut(self, module: nn.Module) -> None:
        """Take it out of the module, or of a copy, in place; what is frozen stays so."""
        frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
        for (name, kind, axis, rows), handler in zip(self.parts, self.handlers, strict=True):
            if kind == "parameter":
                handler.__self__.pruning_dim = axis  # type: ignore[attr-defined]  # a pruner's method
                holder, _, attribute = name.rpartition(".")
                setattr(module.get_submodule(holder), attribute, handler(module.get_parameter(name), list(rows)))
            else:
                handler.__self__.pruning_dim = -1  # type: ignore[attr-defined]
                handler(module.get_submodule(name), list(rows))
        for name in frozen:
            module.get_parameter(name).requires_grad_(False)
        _norms_follow(module)


def together(edits: Sequence[Leaving]) -> Leaving:
    """Several edits of one network as one."""
    rows: dict[Any, set[int]] = {}
    for edit in edits:
        for (name, kind, axis, gone), handler in zip(edit.parts, edit.handlers, strict=True):
            rows.setdefault((name, kind, axis, handler), set()).update(gone)
    parts = tuple((name, kind, axis, tuple(sorted(gone))) for (name, kind, axis, _), gone in rows.items())
    return Leaving(parts=parts, handlers=tuple(handler for *_, handler in rows))


def leaving(module: nn.Module, example: Example, edit: ChannelEdit, graph: Any = None) -> Leaving:
    """Follow an edit through a module; nothing is changed before it is `cut`.

    Raises:
        ArtifactError: the architecture has no such layer or channel, or does not call it.
    """
    graph = graph or graph_of(module, example)
    try:
        layer = module.get_submodule(edit.layer)
    except AttributeError as error:
        raise ArtifactError(
            f"edit of layer '{edit.layer}': the architecture has no such layer; was the class changed?"
        ) from error
    pruner = graph.get_pruner_of_module(layer)
    if pruner is None or max(edit.remove) >= (pruner.get_out_channels(layer) or 0):
        raise ArtifactError(
            f"edit of layer '{edit.layer}': it has no channel {max(edit.remove)}; was the class changed?"
        )
    if layer not in graph.module2node:
        raise ArtifactError(
            f"edit of layer '{edit.layer}': the forward pass does not call it with the weights it has here, so control "
            "flow decides; a network that is pruned has to call the same layers always: write that part with tensor "
            "operations"
        )
    group = graph.get_pruning_group(layer, pruner.prune_out_channels, list(edit.remove))
    names: dict[int, str] = {id(each): name for name, each in (*module.named_modules(), *module.named_parameters())}
    parts, handlers = [], []
    for item in group.items:
        target, rows = item.dep.target, tuple(sorted(set(item.idxs)))
        if isinstance(target.module, nn.Parameter):
            parts.append((names[id(target.module)], "parameter", target.pruning_dim, rows))
            handlers.append(item.dep.handler)
        elif id(target.module) in names:
            kind = "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
            parts.append((names[id(target.module)], kind, 0, rows))
            handlers.append(item.dep.handler)

    return Leaving(parts=tuple(parts), handlers=tuple(handlers))  # type: ignore[arg-type]


def _norms_follow(module: nn.Module) -> None:
    for each in module.modules():
        if isinstance(each, nn.RMSNorm) and each.weight is not None:
            each.normalized_shape = tuple(each.weight.shape)  # the library cuts its weight alone


def channel_rows(layer: nn.Module, kind: str, values: torch.Tensor) -> torch.Tensor:
    """`values`, shaped like the layer's weight, with the layer's channels first: `(channels, numbers per channel)`."""
    if kind == "norm" or values.ndim == 1:
        return values.reshape(-1, 1)
    # The weight of an embedding is (tokens, channels), that of a transposed convolution (in, out, ...).
    transposed = isinstance(layer, nn.Embedding) or bool(getattr(layer, "transposed", False))
    rows = (values.transpose(0, 1) if (kind == "out") == transposed else values).flatten(1)
    groups = int(getattr(layer, "groups", 1))
    if groups > 1 and (kind == "out") == transposed:
        rows = rows.repeat(groups, 1)  # each group of a grouped convolution has its own slice
    return rows


def _traced(outputs: Any) -> list[torch.Tensor]:
    """The tensors of any structure that come from weights."""
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return [x for x in leaves if isinstance(x, torch.Tensor) and x.grad_fn is not None]


def graph_of(module: nn.Module, example: Example) -> Any:
    """Torch-Pruning's graph of a module, whose frozen parameters are traced too."""
    frozen = [
        parameter for parameter in module.parameters() if not parameter.requires_grad and parameter.is_floating_point()
    ]
    for parameter in frozen:  # the graph is traced through autograd
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            graph = Dependencies.of(module, lambda: _traced(module(*example.values())))
            graph.shuffles = shuffles.follow(graph)
            return graph
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _member(graph: Any, item: Any, names: Mapping[nn.Module, str]) -> Member | None:
    layer = item.dep.target.module
    if layer not in names or getattr(layer, "weight", None) is None or is_frozen_norm(layer):
        return None  # an operation, or a layer without weights that learn
    if isinstance(layer, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)):
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
