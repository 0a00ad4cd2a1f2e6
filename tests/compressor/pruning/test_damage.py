"""What it costs to take channels out is the loss of the network that is really left, on as many samples as time allows."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.edit import BlockEdit
from edgesmith.compressor.pruning import coupling, damage, dry_run, other_weights
from edgesmith.compressor.pruning.damage import measure_damage, seconds_of_sample
from edgesmith.compressor.stage import Context
from edgesmith.core.errors import TaskError
from edgesmith.core.task import ArraySplit, Task

from ..conftest import make_context
from . import architectures as nets

RNG = np.random.default_rng(0)


class Normed(nn.Module):
    """A batch norm over rows, which a batch of one has no variance for."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.head = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.up(x)).relu())


def fitted(make: Callable[[], nn.Module], inputs: np.ndarray, work: Path) -> tuple[Candidate, Context]:
    """A network whose answers are the labels: its loss is 0, and every other's is above."""
    torch.manual_seed(0)
    module = other_weights.randomized(make()).train()
    x = torch.tensor(inputs)
    with torch.no_grad():
        labels = module(x).numpy()
    split = ArraySplit({"x": inputs}, labels)
    task = Task(name="t", model=make, train=split, validation=split, test=split, outputs=("y",), loss="mse")
    candidate = Candidate(factory=make, example={"x": x[:2]}, edits=(), weights=state_of(module))
    return dry_run.with_open_attention(candidate), make_context(task, work, {})


def images() -> np.ndarray:
    return RNG.standard_normal((8, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(
    "make",
    [
        nets.Residual,
        nets.Dense,
        nets.GroupNormed,
        nets.LayerNormed,
        nets.ExcitedConcat,
        nets.ChannelShuffle,
        nets.PixelShuffle,
        functools.partial(nets.VisionTransformer, nets.MultiheadBlock),
        functools.partial(nets.VisionTransformer, nets.FusedBlock),
    ],
)
def test_the_damage_of_channels_is_that_of_their_removal(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """A norm over channels that are zero but there would count them still."""
    candidate, context = fitted(make, images(), tmp_path)
    every, refused = dry_run.prunable(candidate.module(), candidate.example)
    groups = [group for group in every if group.root not in refused]
    widths = {group.root: [group.channels, group.channels // 2] for group in groups}
    scores = {group.root: torch.arange(group.channels, dtype=torch.float) for group in groups}
    found = measure_damage(candidate, groups, widths, (), scores, context, 8, 8, 0.0)
    (x,), y = (torch.tensor(each) for each in context.task.train.inputs.values()), context.task.train.labels
    for group in groups:
        removed, half = candidate.module(), widths[group.root][1]
        edit = group.edit(group.least(scores[group.root], group.channels - half))
        coupling.remove(removed, candidate.example, [edit])
        for name, attribute, value in edit.attributes:
            assert getattr(removed.get_submodule(name), attribute) == value
        with torch.no_grad():
            loss = float((removed.train()(x) - torch.tensor(y)).square().mean())
        assert loss > 1e-3
        assert found.groups[group.root][half] == pytest.approx(loss, rel=1e-3), group.root


def test_damage_grows_as_a_group_narrows(original: Candidate, context: Context) -> None:
    module = original.module()
    groups = coupling.find(module, original.example)[:-1]
    widths = {group.root: [group.channels, *range(group.channels - 2, 0, -2)] for group in groups}
    scores = {group.root: torch.arange(group.channels, dtype=torch.float) for group in groups}
    found = measure_damage(original, groups, widths, (BlockEdit(block="stage1.0"),), scores, context, 64, 64, 0.0)
    assert found.blocks["stage1.0"] > 0
    for root, each in found.groups.items():
        values = [each[width] for width in widths[root]]
        assert values[0] == 0 and values == sorted(values) and values[-1] > 0.1, root


def without_half(
    context: Context, candidate: Candidate, batch_size: int, samples: int = 64, seconds: float = 0.0
) -> float:
    groups = coupling.find(candidate.module(), candidate.example)[:1]
    scores = {"up": torch.arange(8.0)}
    found = measure_damage(candidate, groups, {"up": [8, 4]}, (), scores, context, samples, batch_size, seconds)
    return found.groups["up"][4]


def test_a_last_batch_of_one_sample_is_passed_over(tmp_path: Path) -> None:
    candidate, context = fitted(Normed, RNG.standard_normal((17, 4)).astype(np.float32), tmp_path)
    assert without_half(context, candidate, 16) == pytest.approx(without_half(context, candidate, 16, samples=16))


def test_where_every_batch_has_one_sample_it_is_said_what_to_do(tmp_path: Path) -> None:
    candidate, context = fitted(Normed, RNG.standard_normal((4, 4)).astype(np.float32), tmp_path)
    labels = np.array(context.task.train.labels)
    labels[1:] = np.nan
    split = ArraySplit(context.task.train.inputs, labels)
    context = make_context(
        Task(name="t", model=Normed, train=split, validation=split, test=split, outputs=("y",), loss="mse"),
        tmp_path,
        {},
    )
    with pytest.raises(TaskError) as caught:
        without_half(context, candidate, 4)
    assert str(caught.value) == (
        "task 't': stages[0] 'stage': no batch of the 'train' split holds two samples with a label, which batch norms "
        "need; raise batch_size, or label more"
    )


@pytest.mark.parametrize(
    ("groups", "blocks", "seconds", "expected"),
    [
        (12, 9, 1e-3, (4, 256)),  # ResNet-20
        (38, 16, 0.19, (2, 8)),  # ResNet-50
        (38, 16, 0.05, (2, 19)),
        (38, 16, 0.03, (4, 17)),
        (100, 50, 3.0, (2, 8)),
        (1, 0, 0.0, (4, 256)),
    ],
)
def test_a_slow_network_is_measured_at_fewer_widths_then_on_fewer_samples(
    groups: int, blocks: int, seconds: float, expected: tuple[int, int]
) -> None:
    found = damage.effort([[56, 48, 40, 32, 24, 16, 8]] * groups, blocks, seconds, 256)
    assert found == expected
    per_group, samples = found
    assert (1 + groups * per_group + blocks) * samples * seconds <= 90 or samples == 8


def test_what_a_sample_takes_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate, context = fitted(Normed, RNG.standard_normal((64, 4)).astype(np.float32), tmp_path)
    monkeypatch.setattr(damage, "_SECONDS", 16.0)
    slow = without_half(context, candidate, 64, seconds=1.0)  # the whole and one trial
    assert context.notes[-1] == "damage: on 8 of 64 samples, at up to 2 widths of a group"
    assert slow == pytest.approx(without_half(context, candidate, 64, samples=8))
    assert slow != pytest.approx(without_half(context, candidate, 64), rel=1e-3)
    ticks = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(damage.time, "process_time", lambda: 4.0 * next(ticks))
        assert seconds_of_sample(candidate.module(), context, 64) == 4.0 / 16


def test_where_few_have_labels_more_are_looked_through(tmp_path: Path) -> None:
    candidate, context = fitted(Normed, RNG.standard_normal((64, 4)).astype(np.float32), tmp_path)
    labels = np.array(context.task.train.labels)
    labels[:48] = np.nan
    split = ArraySplit(context.task.train.inputs, labels)
    task = Task(name="t", model=Normed, train=split, validation=split, test=split, outputs=("y",), loss="mse")
    assert without_half(make_context(task, tmp_path, {}), candidate, 16, samples=8) > 0
