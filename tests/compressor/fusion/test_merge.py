"""The stage: really trained members, what it says of them, and what it refuses."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgesmith.compressor import replay
from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.edit import ChannelEdit
from edgesmith.compressor.fusion.merge import Merge
from edgesmith.compressor.fusion.merging import MERGES
from edgesmith.compressor.learning.finetune import Finetune
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.stage import Graph
from edgesmith.core.errors import DataError, RecipeError
from edgesmith.core.task import Task

from ..conftest import make_context
from ..test_schedules import run
from .test_align import LeNet

Models = dict[str, Candidate | Graph]


def tuned(start: Candidate, task: Task, folder: Path, seed: int) -> Candidate:
    """Trained on from `start`, in its own order."""
    context = make_context(task, folder / f"tuned-{seed}", {}, seed=seed)
    return Finetune(id="f", epochs=1, learning_rate=2e-3).run(start, context)


@pytest.fixture(scope="module")
def models(original: Candidate, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The original, and two that were trained on from it."""
    folder = tmp_path_factory.mktemp("members")
    context = make_context(task, folder / "half", {}, seed=5)
    half = Prune(id="p", macs_ratio=0.4, round_to=1).run(original, context)  # so that there is something to learn
    return {"original": half} | {name: tuned(half, task, folder, seed) for seed, name in enumerate(("a", "b"))}


@pytest.mark.parametrize("rule", MERGES)
def test_members_of_one_start_merge(
    rule: str, models: Models, task: Task, tmp_path: Path, accuracy: Callable[[Candidate], float]
) -> None:
    """Pruned ones too: the result has their edits, is as good as they are, and its statistics are its own."""
    context = make_context(task, tmp_path, models)
    stage = Merge(id="m", members=("a", "b"), rule=rule)
    stage.check(task, "w")
    assert stage.needs() == (("a", "b", "original") if MERGES[rule].needs == "base" else ("a", "b"))
    merged = stage.run(None, context)
    a, b = models["a"], models["b"]
    assert isinstance(a, Candidate) and isinstance(b, Candidate)
    assert merged.edits == a.edits
    assert accuracy(merged) >= min(accuracy(a), accuracy(b)) - 0.02
    assert merged.digest() not in (a.digest(), b.digest())
    note = context.notes[-1]
    assert note.startswith(
        f"accuracy on validation: a {accuracy(a):.4f}, b {accuracy(b):.4f}; merged {accuracy(merged):.4f} is "
    )
    assert f"than the members' mean, {(accuracy(a) + accuracy(b)) / 2:.4f}; gain over the best, " in note
    for key, tensor in merged.weights.items():
        assert tensor.dtype == a.weights[key].dtype
        assert tensor.shape == a.weights[key].shape


def test_batch_norm_statistics_are_those_of_the_merged_network(models: Models, task: Task, tmp_path: Path) -> None:
    """Not the average of the members': the merged weights make other activations."""
    context = make_context(task, tmp_path, models)
    merged = Merge(id="m", members=("a", "b"), samples=360).run(None, context)
    a, b = models["a"], models["b"]
    assert isinstance(a, Candidate) and isinstance(b, Candidate)
    name = "stage2.1.norm2.running_var"
    average = (a.weights[name] + b.weights[name]) / 2
    assert not torch.allclose(merged.weights[name], average, rtol=1e-2)
    torch.testing.assert_close(merged.weights["head.bias"], (a.weights["head.bias"] + b.weights["head.bias"]) / 2)


def test_weights_are_shares(models: Models, task: Task, tmp_path: Path) -> None:
    context = make_context(task, tmp_path, models)
    merged = Merge(id="m", members=("a", "b"), weights=(3.0, 1.0)).run(None, context)
    a, b = models["a"], models["b"]
    assert isinstance(a, Candidate) and isinstance(b, Candidate)
    expected = 0.75 * a.weights["head.weight"] + 0.25 * b.weights["head.weight"]
    torch.testing.assert_close(merged.weights["head.weight"], expected)


def candidate(module: nn.Module, like: Candidate) -> Candidate:
    return Candidate(factory=type(module), example=like.example, edits=(), weights=state_of(module))


def test_members_of_different_starts_are_aligned(original: Candidate, task: Task, tmp_path: Path) -> None:
    """And the ledger says how many channels changed their place."""
    torch.manual_seed(0)
    first, second = candidate(LeNet(), original), candidate(LeNet(), original)
    context = make_context(task, tmp_path, {"first": first, "second": second})
    stage = Merge(id="m", members=("first", "second"), align=True)
    stage.rehearse(None, context)
    stage.run(None, context)
    assert context.notes[0].startswith("second aligned with first: ")
    assert context.notes[0].endswith(" of 84 channels change places")


class Tied(nn.Module):
    """One matrix used twice, half precision, and a buffer of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64, bias=False)
        self.second = nn.Linear(64, 64, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(64, 10, dtype=torch.bfloat16)
        self.order = nn.Buffer(torch.arange(64).flip(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x.flatten(1))[:, self.order])
        return self.head(x.bfloat16()).float()


@pytest.mark.parametrize("rule", ["soup", "dare", "regmean"])
def test_tied_weights_types_and_integers_stay(rule: str, original: Candidate, task: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base, first, second = (candidate(Tied(), original) for _ in range(3))
    context = make_context(task, tmp_path, {"original": base, "first": first, "second": second})
    merged = Merge(id="m", members=("first", "second"), rule=rule).run(None, context)
    assert torch.equal(merged.weights["first.weight"], merged.weights["second.weight"])
    assert not torch.equal(merged.weights["first.weight"], first.weights["first.weight"])
    assert merged.weights["head.weight"].dtype == torch.bfloat16
    assert torch.equal(merged.weights["order"], torch.arange(64).flip(0))


class Other(LeNet):
    pass


def changed(like: Candidate, change: Callable[[nn.Module], None]) -> Candidate:
    def factory() -> nn.Module:
        module = LeNet()
        change(module)
        return module

    return Candidate(factory=factory, example=like.example, edits=(), weights=state_of(factory()))


def widen(module: Any) -> None:
    module.classifier = nn.Sequential(nn.Linear(96, 40), nn.ReLU(), nn.Linear(40, 10))


def respace(module: Any) -> None:
    module.features[3].dilation = (2, 2)
    module.features[3].padding = (2, 2)


def number(module: Any) -> None:
    module.order = nn.Buffer(torch.arange(3))


def reactivate(module: Any) -> None:
    module.features[1] = nn.LeakyReLU(0.9)


def lengthen(module: Any) -> None:
    module.classifier.append(nn.Identity())


def renumber(module: Any) -> None:
    module.order = nn.Buffer(torch.arange(3).flip(0))


def test_what_cannot_be_merged_is_refused_with_what_differs(original: Candidate, task: Task, tmp_path: Path) -> None:
    plain = candidate(LeNet(), original)
    cases: list[tuple[Candidate, Any, str]] = [
        (plain, candidate(Other(), original), "it is a Other, not a LeNet"),
        (
            plain,
            changed(original, widen),
            "3 tensors differ: 'classifier.0.weight' is float32 (40, 96) in 'b', float32 (48, 96) in 'a'; "
            "'classifier.0.bias' is float32 (40,) in 'b', float32 (48,) in 'a'; "
            "'classifier.2.weight' is float32 (10, 40) in 'b', float32 (10, 48) in 'a'",
        ),
        (
            changed(original, number),
            plain,
            "1 tensors differ: 'order' is missing in 'b', int64 (3,) in 'a'",
        ),
        (
            plain,
            changed(original, respace),
            "layer 'features.3' is Conv2d(12, 24, kernel_size=(3, 3), stride=(1, 1), padding=(2, 2), dilation=(2, 2)) "
            "in 'b', Conv2d(12, 24, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)) in 'a'",
        ),
        (
            plain,
            changed(original, reactivate),
            "layer 'features.1' is LeakyReLU(negative_slope=0.9) in 'b', ReLU() in 'a'",
        ),
        (plain, changed(original, lengthen), "layer 'classifier.3' is Identity() in 'b', missing in 'a'"),
        (
            changed(original, number),
            changed(original, renumber),
            "the integers of 'order' differ, and have no average",
        ),
        (
            without(original, (0, 1)),
            without(original, (2, 3)),
            "other channels or blocks were taken out of it; prune once, and train copies of that",
        ),
    ]
    for a, b, problem in cases:
        context = make_context(task, tmp_path / "w", {"a": a, "b": b})
        with pytest.raises(RecipeError) as caught:
            Merge(id="m", members=("a", "b")).rehearse(None, context)
        assert str(caught.value) == f"stages[0] 'stage'.members: 'b' cannot be merged with 'a': {problem}"


def without(like: Candidate, channels: tuple[int, ...]) -> Candidate:
    """The LeNet with these channels taken out."""
    edit, module = ChannelEdit(layer="features.0", remove=channels), LeNet()
    replay.apply(module, like.example, (edit,))
    return Candidate(factory=LeNet, example=like.example, edits=(edit,), weights=state_of(module))


@pytest.mark.parametrize("rule", ["soup", "fisher"])
def test_a_member_that_is_nan_is_refused(rule: str, original: Candidate, task: Task, tmp_path: Path) -> None:
    spoilt = {name: tensor.clone() for name, tensor in original.weights.items()}
    spoilt["head.weight"][0, 0] = float("nan")
    context = make_context(task, tmp_path, {"a": original, "b": dataclasses.replace(original, weights=spoilt)})
    with pytest.raises(DataError) as caught:
        Merge(id="m", members=("a", "b"), rule=rule).run(None, context)
    assert str(caught.value) == (
        "stages[0] 'stage'.members: 'b' holds NaN or infinity in 'head.weight', and so would all that is merged with it; "
        "leave it out"
    )


def test_a_file_is_refused(exported: Graph, original: Candidate, task: Task, tmp_path: Path) -> None:
    context = make_context(task, tmp_path, {"a": original, "b": exported})
    with pytest.raises(RecipeError) as caught:
        Merge(id="m", members=("a", "b")).rehearse(None, context)
    assert str(caught.value) == "stages[0] 'stage'.members: 'b' is an ONNX file, whose weights are not merged"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"members": ("a",)}, "w.members: 'soup' merges at least two models; got ['a']"),
        ({"members": ("a", "b", "c"), "rule": "slerp"}, "w.members: 'slerp' merges 2 models; got ['a', 'b', 'c']"),
        ({"members": ("a", "a")}, "w.members: ['a', 'a'] names one twice"),
        ({"weights": (1.0,)}, "w.weights: 1 weights for 2 members"),
        ({"base": "b"}, "w.base: 'soup' reads no base; leave it out"),
        ({"rule": "ties", "align": True}, "w.align: members that share a base are aligned as they are; leave it out"),
        (
            {"rule": "soop"},
            "w.rule: unknown 'soop'; did you mean 'soup'? known: dare, fisher, greedy-soup, regmean, slerp, soup, "
            "task-arithmetic, ties",
        ),
        ({"rule": "ties", "rule_options": {"dense": 0.1}}, "w.rule_options: unknown key 'dense'; did you mean 'density'? known: density, scale"),
        ({"rule": "ties", "rule_options": {"density": 2.0}}, "w.rule_options.density: input should be less than or equal to 1, got 2.0"),
    ],
)  # fmt: skip
def test_what_makes_no_merge_is_refused(keys: dict[str, Any], message: str, task: Task) -> None:
    with pytest.raises(RecipeError) as caught:
        Merge(id="m", **({"members": ("a", "b")} | keys)).check(task, "w")
    assert str(caught.value) == message


def test_a_recipe_merges_and_prunes(models: Models, original: Candidate, task: Task, tmp_path: Path) -> None:
    """Members of the task's, through the runner: a source in the line, and nothing is done twice."""

    def member(name: str) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            module: nn.Module = task.model()
            noise = torch.Generator().manual_seed(len(name))
            state = {
                key: tensor + 0.01 * torch.randn(tensor.shape, generator=noise) if tensor.ndim > 1 else tensor
                for key, tensor in original.weights.items()
            }
            module.load_state_dict(state)
            return module

        return make

    task = dataclasses.replace(task, models={"one": member("one"), "three": member("three")})
    stages = [
        {"use": "merge", "members": ["one", "three"], "rule": "ties", "rule_options": {"density": 0.5}},
        {"use": "prune", "macs_ratio": 0.7, "round_to": 1},
        {"use": "export"},
    ]
    done, _ = run(task, original, tmp_path / "run", stages)
    assert "merged" in done[1].facts["notes"][-1]
    again, _ = run(task, original, tmp_path / "run", stages)
    assert [step.reused for step in again] == [True] * 4
