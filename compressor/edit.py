"""Replayable changes of an architecture."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit:
    """Output channels taken out of a layer and everything coupled to it."""

    layer: str  # qualified name of the root layer
    remove: tuple[int, ...]  # output channel indices, in the layer as it was before this edit
