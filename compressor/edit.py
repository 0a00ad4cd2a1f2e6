"""Replayable changes of an architecture; a candidate file holds them as JSON, so that no pickle is needed."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelEdit:
    """Output channels taken out of a layer and everything coupled to it."""

    layer: str  # qualified name of the root layer
    remove: tuple[int, ...]  # output channel indices, in the layer as it was before this edit


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockEdit:
    """A whole block taken out: what goes in comes out."""

    block: str  # qualified name


Edit = ChannelEdit | BlockEdit


def from_plain(data: Mapping[str, Any]) -> Edit:
    """The inverse of `dataclasses.asdict`; the keys say which kind it is.

    Raises:
        KeyError, TypeError: neither.
    """
    if "block" in data:
        return BlockEdit(block=data["block"])
    return ChannelEdit(layer=data["layer"], remove=tuple(data["remove"]))
