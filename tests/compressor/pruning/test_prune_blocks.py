"""Pruning in depth: which blocks can leave, which do, and that the result is a file like any other."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from edgesmith.compressor import replay
from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.edit import BlockEdit, ChannelEdit
from edgesmith.compressor.pruning import blocks
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.pruning.prune_blocks import PruneBlocks
from edgesmith.compressor.stage import Context
from edgesmith.core.errors import ArtifactError, RecipeError
from edgesmith.core.task import Task

# The digits network has four blocks; the first of stage 2 halves the image and cannot leave.
REMOVABLE = ["stage1.0", "stage1.1", "stage2.1"]


def test_blocks_that_keep_the_shape_are_found(original: Candidate) -> None:
    assert blocks.find(original.module(), original.example) == REMOVABLE


class Layer(nn.Module):
    """Takes a mask beside its input and returns a tuple, as older transformer layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Sequential(nn.Linear(6, 6))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor]:
        return (x + self.linear(x) * mask,)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.shared = nn.Sequential(nn.Sequential(nn.Linear(6, 6)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, torch.ones(6))[0]
        return self.shared(self.shared(x))


def test_a_block_with_a_tuple_and_more_arguments() -> None:
    torch.manual_seed(0)
    stack, example = Stack().eval(), {"x": torch.randn(2, 6)}
    assert blocks.find(stack, example) == ["layers.0", "layers.1", "layers.2"]
    first, last = stack.layers[0], stack.layers[2]
    expected = stack.shared(stack.shared(last(first(example["x"], torch.ones(6))[0], torch.ones(6))[0]))
    replay.apply(stack, example, [BlockEdit(block="layers.1")])
    torch.testing.assert_close(stack(example["x"]), expected, rtol=0, atol=0)


def test_the_named_blocks_leave(original: Candidate, context: Context) -> None:
    result = PruneBlocks(id="depth", blocks=("stage[12].1",)).run(original, context)
    assert result.edits == (BlockEdit(block="stage1.1"), BlockEdit(block="stage2.1"))
    assert not any(name.startswith(("stage1.1", "stage2.1")) for name in result.weights)
    assert context.notes[0] == "taken out: stage1.1, stage2.1"
    assert sum(p.numel() for p in original.module().parameters()) > result.parameters()


def test_the_block_without_which_the_loss_is_least_leaves(
    original: Candidate, context: Context, accuracy: Callable[[Candidate], float]
) -> None:
    """Against every single block taken out: the chosen one costs least, before batch norms are estimated anew."""
    stage = PruneBlocks(id="depth", count=1, samples=512)
    result = stage.run(original, context)
    losses = {
        name: stage._loss(PruneBlocks(id="x", blocks=(name,)).rehearse(original, context), context)
        for name in REMOVABLE
    }
    assert result.edits == (BlockEdit(block=min(losses, key=lambda name: losses[name])),)
    assert max(losses.values()) > 2 * min(losses.values())


def test_a_network_without_blocks_is_a_file(original: Candidate, context: Context, tmp_path: Path) -> None:
    """Weights and edits, both kinds of them, bring the same outputs back; and it is pruned further."""
    shallow = PruneBlocks(id="depth", count=1).run(original, context)
    narrow = Prune(id="prune", macs_ratio=0.6).run(shallow, context)
    assert {type(edit) for edit in narrow.edits} == {BlockEdit, ChannelEdit}
    path = tmp_path / "model.safetensors"
    narrow.save(path)
    again = Candidate.load(path, original.factory, original.example)
    assert again.digest() == narrow.digest()
    image = torch.randn(3, 1, 8, 8)
    assert torch.equal(again.module()(image), narrow.module()(image))


def test_a_block_of_another_architecture(original: Candidate) -> None:
    other = dataclasses.replace(original, edits=(BlockEdit(block="stage2.0"),))
    with pytest.raises(ArtifactError) as error:
        other.module()
    assert str(error.value) == (
        "edit of block 'stage2.0': the architecture has no such block to take out; it has: stage1.0, stage1.1, stage2.1"
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"blocks": ("layer4.*",)}, "stages[0] 'stage'.blocks: 'layer4.*' matches no block; blocks: stage1.0, stage1.1, stage2.1"),
        ({"count": 4}, "stages[0] 'stage'.count: 4, but only 3 may leave: stage1.0, stage1.1, stage2.1"),
        ({"count": 2, "blocks": ("stage2.1",)}, "stages[0] 'stage'.count: 2, but only 1 may leave: stage2.1"),
    ],
)  # fmt: skip
def test_what_cannot_leave_is_refused_before_any_work(
    original: Candidate, context: Context, keys: dict[str, object], message: str
) -> None:
    with pytest.raises(RecipeError) as error:
        PruneBlocks(id="depth", **keys).rehearse(original, context)  # type: ignore[arg-type]  # a table of cases
    assert str(error.value) == message


def test_a_stage_that_would_do_nothing_is_refused(task: Task) -> None:
    with pytest.raises(RecipeError) as error:
        PruneBlocks(id="depth").check(task, "stages[0] 'depth'")
    assert str(error.value) == "stages[0] 'depth': set count (how many blocks leave) or blocks (which ones), or both"
