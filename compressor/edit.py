"""Replayable changes of an architecture; a candidate file holds them as JSON, so that no pickle is needed."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelEdit:
    """Output channels taken out of a layer and everything coupled to it."""

    layer: str  # qualified name of the root layer
    remove: tuple[int, ...]  # output channel indices, in the layer as it was before this edit
    attributes: tuple[tuple[str, str, int], ...] = ()  # (module, attribute, value) that have to follow, as num_heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockEdit:
    """A whole block taken out: what goes in comes out."""

    block: str  # qualified name
    zero: bool = False  # zeros come out: the caller adds what goes in


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionEdit:
    """torch's attention taken apart into linear layers, so that heads can leave it; it computes the same."""

    attention: str  # qualified name


Edit = ChannelEdit | BlockEdit | AttentionEdit


def from_plain(data: Mapping[str, Any]) -> Edit:
    """The inverse of `dataclasses.asdict`; the keys say which kind it is.

    Raises:
        KeyError, TypeError, ValueError: none of them.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"{data!r} is no edit")
    if "attention" in data:
        return AttentionEdit(attention=str(data["attention"]))
    if "block" in data:
        return BlockEdit(block=str(data["block"]), zero=bool(data.get("zero", False)))
    attributes = tuple((str(name), str(attribute), value) for name, attribute, value in data.get("attributes", ()))
    if not all(type(value) is int for *_, value in attributes):
        raise ValueError(f"edit of layer '{data.get('layer')}': {attributes!r} are no numbers of channels")
    layer, remove = str(data["layer"]), tuple(data["remove"])
    if not remove or not all(type(row) is int and row >= 0 for row in remove):
        raise ValueError(f"edit of layer '{layer}': {remove!r} are no numbers of channels")
    return ChannelEdit(layer=layer, remove=remove, attributes=attributes)
