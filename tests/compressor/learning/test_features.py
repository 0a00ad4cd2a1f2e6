"""Feature transfer: what the losses see, which layers find each other, and that nothing of it stays in the student."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.learning.distill import Distill
from edgesmith.compressor.learning.feature_layers import Layer, layers_of, pair
from edgesmith.compressor.learning.feature_losses import FEATURES, attention, fitnets, pkd
from edgesmith.compressor.learning.features import Adapter, Transfer
from edgesmith.compressor.learning.layer_groups import layer_groups
from edgesmith.compressor.learning.teaching import lesson_of
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.stage import Context, Graph
from edgesmith.core.errors import RecipeError
from edgesmith.core.task import Task

from ..conftest import Killed, kill_training, make_context


@pytest.fixture(scope="module")
def pruned(original: Candidate, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    return Prune(id="p", macs_ratio=0.35, round_to=1).run(
        original, make_context(task, tmp_path_factory.mktemp("prune"), {})
    )


class Small(nn.Module):
    """Another architecture: one size less, other sizes, other names."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(6, 5, 1))
        self.head = nn.Linear(20, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).flatten(1))


class Tokens(nn.Module):
    """A transformer of `depth` blocks over the rows of an image."""

    def __init__(self, depth: int = 6, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 16, batch_first=True, dropout=0.0) for _ in range(depth)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x.flatten(1, 2))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class Dense(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def candidate(factory: Any, original: Candidate) -> Candidate:
    return Candidate(factory=factory, example=original.example, edits=(), weights=state_of(factory()))


# --- the losses


def test_fitnets_is_met_by_whatever_a_linear_map_of_the_student_can_say() -> None:
    """Romero et al.: the hint is compared through a regressor; a student that holds it in another basis has it."""
    student = torch.randn(8, 5, 6)
    teacher = student @ torch.randn(6, 9)
    found = torch.linalg.lstsq(student.reshape(-1, 6), teacher.reshape(-1, 9)).solution
    assert float(fitnets(student @ found, teacher)) == pytest.approx(0.0, abs=1e-8)
    assert float(fitnets(student @ (found + 0.1), teacher)) > 1e-3
    assert float(fitnets(teacher + 2.0, teacher)) == pytest.approx(4.0)


def test_pkd_sees_direction_alone() -> None:
    """Sun et al.: normalized, so that neither side's scale counts; opposite directions are the worst there is."""
    student, teacher = torch.randn(8, 5, 6), torch.randn(8, 5, 6)
    scaled = student * (torch.rand(8, 5, 1) + 0.1)
    torch.testing.assert_close(pkd(scaled, 3 * teacher), pkd(student, teacher))
    assert float(pkd(-teacher, teacher)) == pytest.approx(4.0, rel=1e-5)
    assert float(pkd(2 * teacher, teacher)) == pytest.approx(0.0, abs=1e-6)


def test_attention_sees_where_and_not_what() -> None:
    """Zagoruyko & Komodakis: channels may be permuted, negated, more or fewer; the place that is looked at may not."""
    student, teacher = torch.randn(8, 16, 6), torch.randn(8, 16, 6)
    changed = -student[:, :, torch.randperm(6)] * 2.5
    torch.testing.assert_close(attention(changed, teacher), attention(student, teacher))
    doubled = torch.cat([student, student], 2)
    torch.testing.assert_close(attention(doubled, student), torch.zeros(()), rtol=0, atol=1e-6)
    here, there = torch.zeros(2, 16, 3), torch.zeros(2, 16, 5)
    here[:, 2], there[:, 9] = 1.0, 1.0
    assert float(attention(here, there)) == pytest.approx(2.0)  # two places that share nothing


@pytest.mark.parametrize("name", sorted(FEATURES))
def test_a_feature_loss_is_zero_where_nothing_is_left_to_learn_and_finite_without_a_signal(name: str) -> None:
    teacher, dead = torch.randn(4, 9, 3), torch.zeros(4, 9, 3, requires_grad=True)
    loss = FEATURES[name].loss
    assert float(loss(teacher, teacher)) == pytest.approx(0.0, abs=1e-6)
    value = loss(dead, teacher)
    (slope,) = torch.autograd.grad(value, dead)
    assert float(value.detach()) > 0
    assert bool(torch.isfinite(slope).all())


# --- which layers


def names(student: Candidate, teacher: Candidate, named: dict[str, str] | None = None) -> list[tuple[str, str]]:
    return [(p.student.name, p.teacher.name) for p in pair(student, teacher, named or {}, "w")]


def test_a_pruned_network_learns_at_the_end_of_every_stage(pruned: Candidate, original: Candidate) -> None:
    assert names(pruned, original) == [("stage1", "stage1"), ("stage2", "stage2")]


def test_another_architecture_is_paired_by_size_and_at_the_end(original: Candidate) -> None:
    """8x8 with 8x8; what is left of both at the end with each other: 2x2 of the student, 4x4 of the teacher."""
    assert names(candidate(Small, original), original) == [("body.1", "stage1"), ("body", "stage2")]


@pytest.mark.parametrize(
    ("depth", "partners"),
    [(6, ["blocks.1", "blocks.3", "blocks.5"]), (12, ["blocks.1", "blocks.3", "blocks.5"])],
)
def test_blocks_of_one_size_are_paired_by_depth(depth: int, partners: list[str], original: Candidate) -> None:
    """A transformer of six blocks with itself by name, and with another of twelve by the names both have."""
    found = names(candidate(Tokens, original), candidate(lambda: Tokens(depth), original))
    assert found == [(own, other) for own, other in zip(["blocks.1", "blocks.3", "blocks.5"], partners, strict=True)]


def test_a_network_without_maps_is_paired_by_its_hidden_layers(original: Candidate) -> None:
    found = pair(candidate(lambda: Dense(7), original), candidate(lambda: Dense(20), original), {}, "w")
    assert [(p.student.name, p.student.channels, p.teacher.channels) for p in found] == [
        ("layers.1", 7, 20),
        ("layers.2", 7, 20),
    ]


def test_layers_are_listed_with_their_shapes(original: Candidate) -> None:
    shapes = {layer.name: (layer.shape, layer.axis) for layer in layers_of(original)}
    assert shapes["stage1"] == ((16, 8, 8), 0)
    assert shapes["stage2.0.conv1"] == ((32, 4, 4), 0)
    assert "stage1.1" not in shapes  # the same tensor as stage1's
    assert shapes["stage2.0"] == ((32, 4, 4), 0)  # the empty shortcut of the next block returns it too
    assert "stage2.1.project" not in shapes
    assert "head" not in shapes  # the output
    tokens = {layer.name: (layer.shape, layer.axis) for layer in layers_of(candidate(Tokens, original))}
    assert tokens["blocks.0"] == ((8, 12), 1)


def test_layers_may_be_named(pruned: Candidate, original: Candidate) -> None:
    assert names(pruned, original, {"stage2.0": "stage1"}) == [("stage2.0", "stage1")]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"stage3": "stage1"}, "w.feature_layers: student: unknown 'stage3'; did you mean 'stage2'? known: "),
        ({"stage1": "head"}, "w.feature_layers: teacher: unknown 'head'; known: "),
    ],
)
def test_names_that_are_no_layer(named: dict[str, str], message: str, pruned: Candidate, original: Candidate) -> None:
    with pytest.raises(RecipeError) as caught:
        names(pruned, original, named)
    assert str(caught.value).startswith(message)


def test_shapes_that_no_adapter_joins(original: Candidate) -> None:
    tokens = candidate(Tokens, original)
    with pytest.raises(RecipeError) as caught:
        names(tokens, original, {"blocks.0": "stage1"})
    assert str(caught.value) == (
        "w.feature_layers: 'blocks.0' gives (8, 12) and 'stage1' (16, 8, 8) per sample; "
        "a pair needs the same number of axes"
    )
    with pytest.raises(RecipeError) as caught:
        names(tokens, original)
    assert str(caught.value) == (
        "w.features: no layer of the student has a partner by depth and shape in the teacher; "
        "name them in feature_layers"
    )


@pytest.mark.parametrize(
    ("student", "teacher", "axis", "text"),
    [
        ((4, 8, 8), (6, 8, 8), 0, " (4 to 6 channels by a 1x1 convolution)"),
        ((4, 8, 8), (4, 5, 6), 0, " (resized to 5x6)"),
        ((4, 9), (7, 5), 0, " (resized to 5, 4 to 7 channels by a 1x1 convolution)"),
        ((9, 4), (5, 7), 1, " (resized to 5, 4 to 7 channels by a linear layer)"),
        ((4,), (7,), 0, " (4 to 7 channels by a linear layer)"),
        ((2, 3, 4, 5), (3, 6, 4, 5), 0, " (resized to 6x4x5, 2 to 3 channels by a 1x1 convolution)"),
        ((4, 8, 8), (4, 8, 8), 0, ""),
    ],
)
def test_an_adapter_is_found_by_shape(student: tuple[int, ...], teacher: tuple[int, ...], axis: int, text: str) -> None:
    own, other = (Layer(name="x", shape=shape, axis=axis, leaf=True) for shape in (student, teacher))
    adapter = Adapter(own, other, project=True)
    positions = torch.Size(other.size).numel()
    assert adapter(torch.randn(2, *student), other.size).shape == (2, positions, other.channels)
    assert str(adapter) == text
    assert not list(Adapter(own, other, project=False).parameters())


class Conv(nn.Module):
    """A signal of any length."""

    def __init__(self, stride: int, width: int) -> None:
        super().__init__()
        self.body = nn.Conv1d(1, width, 3, stride=stride, padding=1)
        self.more = nn.Conv1d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.more(torch.relu(self.body(x)))).mean(2))


@pytest.mark.parametrize("features", sorted(FEATURES))
@pytest.mark.parametrize("length", [20, 13])
def test_features_are_resized_to_what_the_teachers_are_of_these_inputs(
    length: int, features: str, task: Task, tmp_path: Path
) -> None:
    """An axis may be dynamic, and an augmentation may crop: sizes are those of the rehearsal's example there alone."""
    example = {"x": torch.randn(2, 1, 16)}
    student, teacher = (
        Candidate(factory=functools.partial(Conv, *of), example=example, edits=(), weights=state_of(Conv(*of)))
        for of in ((2, 8), (1, 12))
    )
    stage = Distill(id="d", features=features, feature_layers={"more": "more"})
    context = make_context(task, tmp_path, {"original": teacher})
    lesson, module = lesson_of(stage, context), student.module()
    taught = lesson.teachers["original"].module
    assert taught is not None
    transfer = Transfer(stage, module, student, {"original": taught}, lesson.shares, context)
    inputs = {"x": torch.randn(4, 1, length)}
    found = transfer.added_to(lesson.objective)(transfer.learner, inputs, None, 0)
    adapter, own = transfer.learner.adapters[0], transfer._student.found["more"]
    resized = torch.nn.functional.interpolate(own, [length], mode="linear", align_corners=False)
    expected = FEATURES[features].loss(
        adapter.project(resized).movedim(1, -1), transfer._teachers["original"].found["more"].movedim(1, -1)
    )
    torch.testing.assert_close(found - lesson.objective(module, inputs, None, 0), expected)


class Centred(Small):
    """Normalizes its input in place, as some models do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.sub_(0.5).mul_(2.0))


def test_the_example_is_what_it_was_after_layers_were_looked_for(original: Candidate) -> None:
    centred = candidate(Centred, original)
    before = {name: tensor.clone() for name, tensor in centred.example.items()}
    layers_of(centred)
    layer_groups(centred.module(), centred.example, ("logits",))
    assert all(torch.equal(tensor, before[name]) for name, tensor in centred.example.items())


# --- the training


def test_features_come_closer_and_adapters_are_thrown_away(
    pruned: Candidate, original: Candidate, task: Task, tmp_path: Path
) -> None:
    """After the same epochs the attention maps are nearer the teacher's than without it; the student has its own keys."""

    def distance(found: Candidate) -> float:
        context = make_context(task, tmp_path / "d", {"original": original})
        student, teacher = found.module(), original.module()
        stage = Distill(id="d", features="attention", feature_weight=1.0)
        transfer = Transfer(stage, student, found, {"original": teacher}, {"original": 1.0}, context)

        def ask(model: nn.Module, inputs: Any, labels: Any, labelled: int) -> torch.Tensor:
            teacher(inputs["image"])
            model(inputs["image"])
            return torch.zeros(())

        images = torch.tensor(task.validation.inputs["image"])
        with torch.no_grad():
            value = float(transfer.added_to(ask)(transfer.learner, {"image": images}, None, 0))
        assert transfer.close() is student
        assert not any(module._forward_hooks for module in (*student.modules(), *teacher.modules()))
        return value

    keys: dict[str, Any] = {"id": "d", "epochs": 2, "learning_rate": 2e-3}
    results = {}
    for name, more in (("without", {}), ("with", {"features": "attention", "feature_weight": 5.0})):
        context = make_context(task, tmp_path / name, {"original": original})
        results[name] = Distill(**keys, **more).run(pruned, context)
        assert set(results[name].weights) == set(pruned.weights)
    assert context.notes[1] == "features (attention): stage1 <- stage1, stage2 <- stage2"
    assert distance(results["with"]) < 0.7 * distance(results["without"])


@pytest.mark.parametrize("killed_at", [20])
def test_a_killed_transfer_ends_with_the_same_weights(
    killed_at: int,
    pruned: Candidate,
    original: Candidate,
    task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The adapters' weights and their optimizer state come back too."""
    stage = Distill(id="d", epochs=2, learning_rate=2e-3, features="fitnets")
    whole_context = make_context(task, tmp_path / "whole", {"original": original})
    whole = stage.run(pruned, whole_context)
    assert "channels by a 1x1 convolution" in whole_context.notes[1]
    kill_training(monkeypatch, killed_at)
    broken = make_context(task, tmp_path / "broken", {"original": original})
    with pytest.raises(Killed):
        stage.run(pruned, broken)
    torch.rand(1)  # the process that goes on has drawn other numbers
    assert stage.run(pruned, broken).digest() == whole.digest()


@pytest.mark.gpu
def test_feature_transfer_on_cuda(pruned: Candidate, context: Context) -> None:
    machine = dataclasses.replace(context.machine, device="cuda")
    stage = Distill(id="d", epochs=2, learning_rate=2e-3, loss="dist", features="fitnets")
    taught = stage.run(pruned, dataclasses.replace(context, machine=machine))
    assert set(taught.weights) == set(pruned.weights)
    assert all(tensor.device.type == "cpu" for tensor in taught.weights.values())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"features": "atention"},
            "w.features: unknown 'atention'; did you mean 'attention'? known: attention, fitnets, pkd",
        ),
        (
            {"feature_layers": {"a": "b"}},
            "w.feature_layers: only features reads it; set features to one of the losses",
        ),
        (
            {"feature_weight": 2.0},
            "w.feature_weight: only features reads it; set features to one of the losses",
        ),
        (
            {"features": "pkd", "teachers": ("a", "b"), "feature_layers": {"a": "b"}},
            "w.feature_layers: names one teacher's layers, and there are 2",
        ),
    ],
)
def test_keys_that_mean_nothing_are_refused(keys: dict[str, Any], message: str, task: Task) -> None:
    with pytest.raises(RecipeError) as caught:
        Distill(id="d", **keys).check(task, "w")
    assert str(caught.value) == message


def test_a_file_shows_no_layers_and_says_so_before_any_training(
    pruned: Candidate, exported: Graph, context: Context
) -> None:
    changed = dataclasses.replace(context, named=lambda name: exported)
    with pytest.raises(RecipeError) as caught:
        Distill(id="d", features="pkd").rehearse(pruned, changed)
    assert str(caught.value) == (
        "stages[0] 'stage'.features: teacher 'original' is an ONNX file, which shows no layers"
    )
