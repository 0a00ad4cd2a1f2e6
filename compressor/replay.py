"""Edits applied in order to a fresh architecture."""

import itertools
from collections.abc import Sequence

from torch import nn

from .edit import AttentionEdit, BlockEdit, ChannelEdit, Edit
from .pruning import blocks, coupling, open_attention
from .pruning.coupling import Example


def apply(module: nn.Module, example: Example, edits: Sequence[Edit]) -> None:
    """Change `module` in place.

    Raises:
        ArtifactError: an edit names something the architecture does not have: it belongs to another model.
    """
    for kind, run in itertools.groupby(edits, type):  # the dependency graph is traced once for a run of channel edits
        if kind is BlockEdit:
            for edit in run:
                assert isinstance(edit, BlockEdit)
                blocks.remove(module, example, edit)
        elif kind is AttentionEdit:
            for edit in run:
                assert isinstance(edit, AttentionEdit)
                open_attention.opened(module, edit.attention)
        else:
            coupling.remove(module, example, [edit for edit in run if isinstance(edit, ChannelEdit)])
