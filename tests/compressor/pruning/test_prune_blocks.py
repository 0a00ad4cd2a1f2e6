"""Pruning in depth: which blocks can leave, which do, and that the result is a file like any other."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from edgesmith.compressor import replay
from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.edit import BlockEdit, ChannelEdit, from_plain
from edgesmith.compressor.pruning import blocks
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.pruning.prune_blocks import PruneBlocks
from edgesmith.compressor.stage import Context
from edgesmith.core.errors import ArtifactError, RecipeError
from edgesmith.core.task import Task

from . import architectures as nets

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


def encoder() -> nn.Module:
    """torch's own, three layers; tokens `(N, 5, 16)`."""
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    return nn.Sequential(nn.Linear(16, 16), nn.TransformerEncoder(layer, 3, enable_nested_tensor=False))


class Loop(nn.Module):
    """A user's own chain of blocks, called by one that holds a chain; `inside`: each block adds to what goes in."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.inside = inside
        self.g = nn.ModuleList(nets.PerceptronBlock(16, inside) for _ in range(3))
        self.norm, self.scale = nn.LayerNorm(16), nn.Parameter(torch.rand(16))
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.g:
            x = block(x) if self.inside else x + self.drop(self.scale * block(self.norm(x)))
        return x


class InPlace(nn.Module):
    """A residual block as torchvision writes them: the sum, and with `rectified` the ReLU behind it, in place."""

    def __init__(self, rectified: bool) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True) if rectified else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm(self.convolution(x))
        out += x
        return self.relu(out)  # type: ignore[no-any-return]


CHAINS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, bool]]] = {
    "torch's encoder": (encoder, (2, 5, 16), {f"1.layers.{index}": False for index in range(3)}),
    "a loop": (lambda: nn.Sequential(Loop(True)), (2, 5, 16), {f"0.g.{index}": False for index in range(3)}),
    "a loop that adds": (lambda: nn.Sequential(Loop(False)), (2, 5, 16), {f"0.g.{index}": True for index in range(3)}),
    "a block of two parts": (
        lambda: nets.VisionTransformer(nets.ModularBlock), (2, 3, 8, 8), {f"blocks.{index}": False for index in (0, 1)},
    ),
    "a block of layers of one class": (
        lambda: nn.Sequential(nets.ModularResidual(), nets.ModularResidual()), (2, 8, 4, 4), {"0": False, "1": False},
    ),
    "sums in place": (lambda: nn.Sequential(*map(InPlace, [False] * 3)), (2, 8, 4, 4), dict.fromkeys("012", False)),
    "and a ReLU": (lambda: nn.Sequential(*map(InPlace, [True] * 3)), (2, 8, 4, 4), dict.fromkeys("012", False)),
    "a skip over several": (nets.LongSkip, (2, 16), {f"body.{index}": False for index in range(3)}),
}  # fmt: skip


@pytest.mark.parametrize("case", CHAINS)
def test_blocks_are_found_inside_of_what_is_a_chain_of_them(case: str) -> None:
    """Block -> whether its caller adds what went in."""
    make, shape, expected = CHAINS[case]
    found = blocks.edits(make().eval(), {"x": torch.randn(shape)})
    assert {name: edit.zero for name, edit in found.items()} == expected


def test_a_branch_that_leaves_adds_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, example = (lambda: Loop(False)), {"x": torch.randn(2, 5, 16)}
    module = make().eval()
    (_, edit, _) = blocks.edits(module, example).values()
    x = example["x"]
    for index in (0, 2):
        x = x + module.scale * module.g[index](module.norm(x))  # type: ignore[operator, index]
    original = Candidate(factory=make, example=example, edits=(edit,), weights={})
    pruned = dataclasses.replace(original, weights={k: v for k, v in module.state_dict().items() if "g.1." not in k})
    torch.testing.assert_close(pruned.module()(example["x"]), x)
    pruned.save(tmp_path / "model.safetensors")
    again = Candidate.load(tmp_path / "model.safetensors", make, example)
    assert again.edits == (BlockEdit(block="g.1", zero=True),)
    assert torch.equal(again.module()(example["x"]), pruned.module()(example["x"]))


def test_a_block_of_an_older_file_passes_its_input_on() -> None:
    assert from_plain({"block": "g.1"}) == BlockEdit(block="g.1", zero=False)


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
