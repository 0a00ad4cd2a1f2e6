"""Pruning: ratios that are met, widths that are aligned, a network that still works, and clear refusals."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.pruning import coupling
from edgesmith.compressor.pruning.allocation import ALLOCATIONS, aligned
from edgesmith.compressor.pruning.channel_statistics import Statistics
from edgesmith.compressor.pruning.dry_run import prunable
from edgesmith.compressor.pruning.importance import IMPORTANCES, score
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.stage import Context
from edgesmith.compressor.structure import measure
from edgesmith.core.errors import RecipeError, TaskError, UnreachableError
from edgesmith.core.task import ArraySplit, Task


def size(candidate: Candidate) -> Any:
    module = candidate.module()
    return measure(module, candidate.example, coupling.find(module, candidate.example)[1:])


@pytest.mark.parametrize("name", ["macs_ratio", "params_ratio"])
@pytest.mark.parametrize("ratio", [0.7, 0.4])
def test_the_ratio_is_met_and_not_by_far(name: str, ratio: float, original: Candidate, context: Context) -> None:
    pruned = Prune(id="p", round_to=1, **{name: ratio}).run(original, context)
    field = name.removesuffix("_ratio")
    reached = getattr(size(pruned), field) / getattr(size(original), field)
    assert ratio - 0.05 < reached <= ratio


def test_channel_ratio_counts_channels(original: Candidate, context: Context) -> None:
    before = Prune(id="p", channel_ratio=0.5, round_to=1, allocation="uniform").run(original, context)
    widths = [layer.out_channels for layer in before.module().modules() if isinstance(layer, nn.Conv2d)]
    assert widths == [8, 8, 8, 8, 8, 16, 16, 16, 16, 16]


@pytest.mark.parametrize(
    ("importance", "allocation"),
    [*((name, "global") for name in sorted(IMPORTANCES)), *(("taylor", name) for name in sorted(ALLOCATIONS))],
)
def test_every_importance_and_allocation_gives_an_aligned_working_network(
    importance: str, allocation: str, original: Candidate, context: Context, accuracy: Callable[[Candidate], float]
) -> None:
    pruned = Prune(id="p", macs_ratio=0.7, importance=importance, allocation=allocation, round_to=4).run(
        original, context
    )
    module = pruned.module()
    assert all(layer.out_channels % 4 == 0 for layer in module.modules() if isinstance(layer, nn.Conv2d))
    assert size(pruned).macs <= 0.7 * size(original).macs
    assert accuracy(pruned) > 0.2  # chance is 0.1; what is left still knows something


def test_pruning_does_not_touch_its_input(original: Candidate, context: Context) -> None:
    before = original.digest()
    Prune(id="p", macs_ratio=0.5).run(original, context)
    assert original.digest() == before


def test_the_same_seed_gives_the_same_network(original: Candidate, context: Context) -> None:
    stage = Prune(id="p", macs_ratio=0.5, importance="random")
    assert stage.run(original, context).digest() == stage.run(original, context).digest()


def test_steps_prune_further_and_further(original: Candidate, context: Context) -> None:
    pruned = Prune(id="p", macs_ratio=0.4, steps=3, round_to=1, importance="taylor").run(original, context)
    assert 0.35 < size(pruned).macs / size(original).macs <= 0.4
    layers = [edit.layer for edit in pruned.edits]
    assert len(layers) > len(set(layers))  # some were pruned anew in a later step


def test_keep_and_only_are_obeyed(original: Candidate, context: Context) -> None:
    pruned = Prune(id="p", channel_ratio=0.8, round_to=1, only=("stage2.*",), keep=("stage2.1.conv1",)).run(
        original, context
    )
    assert {edit.layer for edit in pruned.edits} <= {"stage2.0.conv1", "stage2.0.project.0"}


def test_weights_of_per_group_allocation_matter(original: Candidate, context: Context) -> None:
    stage = Prune(
        id="p", channel_ratio=0.8, round_to=1, allocation="per-group", intensity={"stage2.1.conv1": 3.0, "stem": 0.0}
    )
    widths = {
        name: layer.out_channels
        for name, layer in stage.run(original, context).module().named_modules()
        if isinstance(layer, nn.Conv2d)
    }
    assert widths["stem"] == 16
    assert widths["stage2.1.conv1"] < widths["stage2.0.conv1"] < 32


def test_weights_of_per_group_allocation_are_relative(original: Candidate, context: Context) -> None:
    def edits(weight: float) -> Any:
        stage = Prune(id="p", macs_ratio=0.3, round_to=1, allocation="per-group", intensity={"*": weight})
        return stage.run(original, context).edits

    assert edits(0.2) == edits(5.0)


@pytest.mark.parametrize(
    ("intensity", "message"),
    [
        ({"*": 0.0}, "stages[0] 'stage'.intensity: every layer that may be pruned has weight 0; give one of them more"),
        (
            {"*": 0.0, "stem": 1.0},
            "stages[0] 'stage'.macs_ratio: 0.1 cannot be reached without emptying a layer; the smallest here is 0.432 "
            "(the layers of the largest intensity at 1 channels); ask for more, lower round_to, or allow more layers",
        ),
    ],
)
def test_weights_that_reach_nothing_are_refused(
    intensity: dict[str, float], message: str, original: Candidate, context: Context
) -> None:
    stage = Prune(id="p", macs_ratio=0.1, round_to=1, allocation="per-group", intensity=intensity)
    with pytest.raises((RecipeError, UnreachableError)) as caught:
        stage.rehearse(original, context)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"keep": ("stage9.*",)}, "stages[0] 'stage'.keep: 'stage9.*' matches no layer; layers: "),
        ({"only": ("nothing",)}, "stages[0] 'stage'.only: 'nothing' matches no layer; layers: "),
        ({"only": ("head",)}, "stages[0] 'stage': no group of channels is left to prune: head: its channels are the model's output"),
        ({"macs_ratio": 0.001}, "stages[0] 'stage'.macs_ratio: 0.001 cannot be reached without emptying a layer; the smallest here is "),
    ],
)  # fmt: skip
def test_what_cannot_be_pruned_is_refused(
    keys: dict[str, Any], message: str, original: Candidate, context: Context
) -> None:
    with pytest.raises((RecipeError, UnreachableError)) as caught:
        Prune(id="p", **{"macs_ratio": 0.5, **keys}).run(original, context)
    assert caught.value.exit_code == (3 if "macs_ratio" in keys else 2)
    assert str(caught.value).startswith(message)


def test_one_goal_or_a_time_and_a_size(task: Task) -> None:
    with pytest.raises(
        RecipeError,
        match=r"w: set one of macs_ratio, params_ratio, channel_ratio, latency_ratio, latency_ms, or a latency and params_ratio; "
        "got none",
    ):
        Prune(id="p").check(task, "w")
    with pytest.raises(RecipeError, match=r"got \['macs_ratio', 'params_ratio'\]"):
        Prune(id="p", macs_ratio=0.5, params_ratio=0.5).check(task, "w")


def test_gradients_need_training_data(task: Task) -> None:
    bare = dataclasses.replace(task, train=None, calibration=task.validation)
    with pytest.raises(
        TaskError, match="task 'digits': w: importance 'taylor' needs the 'train' split; set train= in the task"
    ):
        Prune(id="p", macs_ratio=0.5, importance="taylor").check(bare, "w")
    Prune(id="p", macs_ratio=0.5).check(bare, "w")


def test_batch_norm_statistics_are_reestimated(
    original: Candidate, context: Context, accuracy: Callable[[Candidate], float]
) -> None:
    """With the old statistics the pruned network is worse: its activations have other means."""
    pruned = Prune(id="p", macs_ratio=0.7).run(original, context)
    module = original.module()
    coupling.remove(module, original.example, pruned.edits)
    assert accuracy(pruned) > accuracy(Candidate.of(module, original, pruned.edits)) + 0.02


class Concat(nn.Module):
    """Two branches joined by concat and a flatten before the classifier: index mappings that are easy to get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 6, 3, padding=1)
        self.right = nn.Conv2d(1, 10, 3, padding=1)
        self.mix = nn.Conv2d(16, 12, 3, padding=1)
        self.head = nn.Linear(12 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1).relu()
        return self.head(nn.functional.max_pool2d(self.mix(x).relu(), 2).flatten(1))


def test_removing_dead_channels_changes_nothing() -> None:
    """The reference for every index mapping: channels that are zero anyway can go without a trace."""
    torch.manual_seed(0)
    module = Concat().eval()
    example = {"x": torch.randn(4, 1, 8, 8)}
    with torch.no_grad():
        for layer, dead in ((module.left, [0, 3]), (module.right, [9]), (module.mix, [1, 2, 11])):
            layer.weight[dead] = 0
            layer.bias[dead] = 0
        expected = module(example["x"])
    candidate = Candidate(factory=Concat, example=example, edits=(), weights=state_of(module))
    edits = [
        coupling.ChannelEdit(layer="left", remove=(0, 3)),
        coupling.ChannelEdit(layer="right", remove=(9,)),
        coupling.ChannelEdit(layer="mix", remove=(1, 2, 11)),
    ]
    coupling.remove(module, example, edits)
    pruned = Candidate.of(module, candidate, edits).module()
    with torch.no_grad():
        np.testing.assert_allclose(pruned(example["x"]), expected, atol=1e-5)
    assert [pruned.left.out_channels, pruned.right.out_channels, pruned.mix.in_channels, pruned.head.in_features] == [
        4,
        9,
        13,
        144,
    ]


class Stream(nn.Module):
    """A residual stream that begins at an embedding, whose weight has its channels on the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.up = nn.Linear(16, 24)
        self.down = nn.Linear(24, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        x = self.norm(x + self.down(self.up(x).relu()))
        return self.head(x.mean(1))


def test_a_residual_stream_from_an_embedding_is_ranked_and_pruned() -> None:
    torch.manual_seed(0)
    module, example = Stream().eval(), {"tokens": torch.randint(0, 20, (4, 6))}
    (group,) = [group for group in coupling.find(module, example) if "embed" in group.layers]
    assert group.channels == 16 and set(group.layers) == {"embed", "down"}
    with torch.no_grad():
        module.embed.weight[:, 5] = 100.0
        module.embed.weight[3] = 0.0  # a token, not a channel
    found = score(module, group, IMPORTANCES["magnitude-l1"], Statistics(), torch.Generator())
    assert found is not None and found.shape == (16,) and int(found.argmax()) == 5
    candidate = Candidate(factory=Stream, example=example, edits=(), weights=state_of(module))
    edits = [coupling.ChannelEdit(layer=group.root, remove=(0, 7))]
    coupling.remove(module, example, edits)
    pruned = Candidate.of(module, candidate, edits).module()
    assert (pruned.embed.weight.shape, pruned.norm.weight.shape) == ((20, 14), (14,))
    assert pruned(example["tokens"]).shape == (4, 5)


class HardCoded(nn.Module):
    """Breaks when its width changes: the view knows the number 8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.free = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        x = self.free((x.reshape(x.shape[0], 2, 4, 8, 8) * 1.0).reshape(x.shape[0], 8, 8, 8))
        return self.head(x.mean((2, 3)))


def test_groups_that_break_the_model_are_found_by_trying() -> None:
    module, example = HardCoded(), {"x": torch.randn(2, 1, 8, 8)}
    reasons = prunable(module, example)[1]
    assert reasons["head"] == "its channels are the model's output"
    assert reasons["conv"].startswith("the model breaks without one of its channels: ")
    assert "free" not in reasons


@pytest.mark.parametrize(
    ("kept", "channels", "multiple", "expected"),
    [
        (31.9, 64, 8, 32),
        (36, 64, 8, 40),
        (35.9, 64, 8, 32),
        (1, 64, 8, 8),
        (64, 64, 8, 64),
        (9, 10, 8, 8),
        (0, 3, 1, 1),
    ],
)
def test_aligned(kept: float, channels: int, multiple: int, expected: int) -> None:
    assert aligned(kept, channels, multiple) == expected


def test_data_without_variance_does_not_break_importance(task: Task, original: Candidate, context: Context) -> None:
    """A network that is zero everywhere still ranks: every channel alike."""
    dead = dataclasses.replace(
        original, weights={name: torch.zeros_like(tensor) for name, tensor in original.weights.items()}
    )
    constant = ArraySplit({"image": np.zeros((8, 1, 8, 8), np.float32)}, np.zeros(8, np.int64))
    changed = dataclasses.replace(context, task=dataclasses.replace(task, train=constant))
    pruned = Prune(id="p", macs_ratio=0.5, importance="taylor").run(dead, changed)
    assert size(pruned).macs <= 0.5 * size(original).macs
