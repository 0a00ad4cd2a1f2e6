"""Adapters: only they and the head learn, folding them in changes nothing, and what cannot be folded is refused by name."""

import dataclasses
import importlib.util
from typing import Any

import pytest
import torch
from torch import nn

from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.learning.adapters import Adapter, AdapterKeys
from edgesmith.compressor.learning.finetune import Finetune
from edgesmith.compressor.stage import Context
from edgesmith.core.errors import RecipeError
from edgesmith.core.task import ArraySplit, Task

from ..conftest import Killed, kill_training

FAST: dict[str, Any] = {"id": "t", "epochs": 2, "learning_rate": 2e-3, "batch_size": 64}
EXAMPLE = {"x": torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))}
BLOCKS = {f"{block}.conv{n}" for block in ("stage1.0", "stage1.1", "stage2.0", "stage2.1") for n in (1, 2)}
OTHERS = {"stem", "stage2.0.project.0"}  # small: an adapter of rank 4 is smaller still


class Attention(nn.Module):
    """One layer of each kind there is trouble with."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.MultiheadAttention(16, 2, batch_first=True)
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
        self.tied = nn.Linear(16, 16)
        self.twin = nn.Linear(16, 16)
        self.twin.weight = self.tied.weight
        self.idle = nn.Linear(16, 16)
        self.unread = nn.Linear(16, 64)  # called, and nothing is done with what it says: a pooler
        self.grouped = nn.Conv2d(16, 16, 1, groups=4)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.read(x, x, x, need_weights=False)[0]
        self.unread(y)
        y = self.twin(self.tied(self.down(torch.relu(self.up(y)))))
        y = self.grouped(y.transpose(1, 2).unsqueeze(-1)).mean((2, 3))
        return self.head(y)


@pytest.fixture(params=["lora", "adalora"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_folded_network_computes_what_the_adapted_one_did(
    kind: str, original: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[torch.Tensor] = []
    fold = Adapter.fold
    images = torch.tensor(context.task.validation.inputs["image"])

    def watched(adapter: Adapter) -> nn.Module:
        with torch.no_grad():
            answers.append(adapter._module.eval()(images))
            return fold(adapter)

    monkeypatch.setattr(Adapter, "fold", watched)
    fresh = {name: torch.zeros_like(t) if name.startswith("head") else t for name, t in original.weights.items()}
    start = Candidate(factory=original.factory, example=original.example, edits=(), weights=fresh)
    trained = Finetune(**FAST, adapter=kind, adapter_rank=2).run(start, context)
    module = trained.module()
    assert type(module) is type(original.module())
    assert trained.weights.keys() == original.weights.keys()
    with torch.no_grad():
        torch.testing.assert_close(module(images), answers[0], rtol=1e-5, atol=1e-5)
    changed = {
        name.rpartition(".")[0] for name, t in trained.weights.items() if not torch.equal(t, start.weights[name])
    }
    assert changed == BLOCKS | OTHERS | {"head"}
    assert " of the parameters learn (" in context.notes[-1]
    assert f"{kind}: adapters of rank " in context.notes[-1]


def test_the_share_that_learns_is_said(original: Candidate, context: Context) -> None:
    """Rank 2: 2 (inputs x 9 + outputs) for each convolution (the stem has one input), 2 (16 + 32) for the projection, 330 in the head."""
    Finetune(**FAST, adapter="lora", adapter_rank=2).run(original, context)
    adapters = 2 * ((9 + 16) + 4 * (144 + 16) + (144 + 32) + 3 * (288 + 32) + (16 + 32))
    learning, total = adapters + 330, 42_938 + adapters
    assert context.notes[-1].endswith(
        f", lora: adapters of rank 2 in 10 layers, {learning / total:.1%} of the parameters learn ({learning:,} of {total:,})"
    )


def test_adalora_ends_within_its_budget(original: Candidate, context: Context) -> None:
    """PEFT is told of every step: the ranks of ten layers come down from 6 to 4 on average, and differ."""
    stage = Finetune(**FAST, adapter="adalora", adapter_rank=4, patience=None)
    module = original.module()
    steps = 2 * (len(context.task.train) // 64)
    adapter = stage.adapted(module, original.example, ("logits",), steps, 0, "w")
    stage._train(module, adapter, stage, context, lambda inputs, answers: adapter.penalty())
    kept = [sum(pattern) for pattern in adapter.state()["rank_pattern"].values()]
    assert sum(kept) == 4 * 10
    assert adapter.note().startswith(f"adapters of rank {min(kept)} to {max(kept)}, 4.0 on average, in 10 layers, ")


def test_the_penalty_is_none_for_orthogonal_vectors(original: Candidate) -> None:
    adapter = Finetune(**FAST, adapter="adalora", adapter_rank=2).adapted(
        original.module(), original.example, ("logits",), 100, 0, "w"
    )
    with torch.no_grad():
        for name, parameter in adapter._module.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                nn.init.orthogonal_(parameter)
        assert float(adapter.penalty()) == pytest.approx(0, abs=1e-5)
        for name, parameter in adapter._module.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                parameter.mul_(
                    2**0.5
                )  # P P^T - I is then I, of three rows: its norm is the root of 3, weighed by a half
        assert float(adapter.penalty()) == pytest.approx(0.5 * 3**0.5, rel=1e-4)


def test_a_killed_training_of_adapters_ends_with_the_same_weights(
    kind: str, original: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdaLoRA's scores and ranks come back too; where adapters start does not depend on what was drawn before."""
    fresh = {name: torch.zeros_like(t) if name.startswith("head") else t for name, t in original.weights.items()}
    start = Candidate(factory=original.factory, example=original.example, edits=(), weights=fresh)
    stage = Finetune(**{**FAST, "batch_size": 128}, adapter=kind, adapter_rank=2, probe_epochs=1)
    whole = stage.run(start, context.within("whole"))
    kill_training(monkeypatch, 8 + 12)
    with pytest.raises(Killed):
        stage.run(start, context.within("broken"))
    torch.randn(7)
    assert stage.run(start, context.within("broken")).digest() == whole.digest()


def test_what_an_adapter_goes_on_is_found_by_shape(original: Candidate) -> None:
    find = AdapterKeys(adapter="lora", adapter_rank=4).targets
    assert set(find(original.module(), original.example, ("logits",), "w")) == BLOCKS | OTHERS
    assert find(Attention(), EXAMPLE, ("y",), "w") == ["up", "down"]
    few = AdapterKeys(adapter="lora", adapter_rank=12).targets  # 12 (16 + 32) is more than the projection has
    assert set(few(original.module(), original.example, ("logits",), "w")) == BLOCKS


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("read.out_proj",), "w.adapter_targets: 'read.out_proj' is not called in a pass, so that an adapter on it would learn nothing; leave it out"),
        (("tied",), "w.adapter_targets: 'tied' shares its weight with 'twin', which folding an adapter in would change too; leave it out"),
        (("up", "grouped"), "w.adapter_targets: 'grouped' is a grouped Conv2d; an adapter is for Linear and ungrouped Conv2d; leave it out"),
        (("idle",), "w.adapter_targets: 'idle' is not called in a pass, so that an adapter on it would learn nothing; leave it out"),
        (("unread",), "w.adapter_targets: 'unread' has no say in the outputs, so that an adapter on it would learn nothing; leave it out"),
        (("dwn",), "w.adapter_targets: 'dwn' matches no layer with weights; did you mean 'down'?"),
    ],
)  # fmt: skip
def test_a_layer_that_can_have_none_is_named(targets: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        AdapterKeys(adapter="lora", adapter_targets=targets).targets(Attention(), EXAMPLE, ("y",), "w")
    assert str(caught.value) == message


def test_ranks_are_shared_out_where_a_layer_is_unread() -> None:
    """Its weights get no gradient, by which AdaLoRA would weigh them."""
    module = Attention()
    learns = [parameter.requires_grad for parameter in module.parameters()]
    adapter = AdapterKeys(adapter="adalora", adapter_rank=2).adapted(module, EXAMPLE, ("y",), 100, 0, "w")
    module(EXAMPLE["x"]).square().sum().backward()
    adapter.after_step(20)
    assert [parameter.requires_grad for parameter in adapter.fold().parameters()] == learns


class Centred(nn.Module):
    """Changes its input in place: a second pass over the same tensor computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(x.sub_(0.5).mul_(2.0))))


def test_an_input_that_is_changed_in_place_keeps_no_adapter_away() -> None:
    keys = Finetune(id="t", adapter="lora", adapter_rank=2, adapter_targets=("body",))
    assert keys.targets(Centred(), {"x": torch.randn(2, 16)}, ("output",), "w") == ["body"]


def test_a_weight_that_is_read_past_its_layer_is_found_by_trying() -> None:
    class Sly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.fair, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.read(x) + nn.functional.linear(x, self.read.weight)
            return self.head(self.fair(y).mean(1))

    keys = AdapterKeys(adapter="lora", adapter_rank=2)
    assert keys.targets(Sly(), EXAMPLE, ("y",), "w") == ["fair"]
    with pytest.raises(RecipeError) as caught:
        AdapterKeys(adapter="lora", adapter_targets=("*",)).targets(Sly(), EXAMPLE, ("y",), "w")
    assert str(caught.value) == (
        "w.adapter_targets: 'read' has a weight that is read past the layer, so that an adapter on it would not be "
        "heard; leave it out"
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"adapter_rank": 4}, "w.adapter_rank: nothing reads it without adapter"),
        ({"adapter": "lora", "freeze": ("stem",)}, "w.freeze: with an adapter, only it and the head learn; leave it out"),
        ({"adapter": "adalora", "minutes": 1.0}, "w.adapter: 'adalora' shares out ranks by steps; set epochs, not minutes"),
    ],
)  # fmt: skip
def test_keys_that_contradict_each_other_are_refused(keys: dict[str, Any], message: str, task: Task) -> None:
    with pytest.raises(RecipeError) as caught:
        Finetune(id="t", **keys).check(task, "w")
    assert str(caught.value) == message


def test_what_does_not_fit_is_refused(original: Candidate, context: Context) -> None:
    with pytest.raises(RecipeError) as caught:
        Finetune(**FAST, adapter="lora", adapter_rank=500).rehearse(original, context)
    assert str(caught.value) == (
        "stages[0] 'stage'.adapter: no layer below the head can have an adapter of rank 500 that is smaller than itself; "
        "lower adapter_rank, or name layers in adapter_targets"
    )


@pytest.mark.parametrize(
    ("keys", "there", "key"),
    [({"epochs": 2}, 2, "epochs"), ({"epochs": 20, "learning_rates": (1e-3, 1e-2)}, 1, "search_epochs")],
)
def test_steps_that_are_too_few_are_refused_before_any_work(
    keys: dict[str, Any], there: int, key: str, task: Task
) -> None:
    with pytest.raises(RecipeError) as caught:
        Finetune(id="t", batch_size=2000, adapter="adalora", **keys).check(task, "w")
    assert str(caught.value) == (
        f"w.adapter: 'adalora' needs 10 steps to share out ranks, and there are {there}; "
        f"set {key} higher, or batch_size or accumulation lower"
    )


def test_steps_on_samples_without_labels_count(task: Task) -> None:
    """How many of them get a label is not known before."""
    assert isinstance(task.train, ArraySplit) and task.train.labels is not None
    few = ArraySplit({name: array[:60] for name, array in task.train.inputs.items()}, task.train.labels[:60])
    some = dataclasses.replace(task, train=few, unlabelled=ArraySplit(task.train.inputs))
    stage = Finetune(id="t", epochs=2, batch_size=64, adapter="adalora", pseudo_labels=0.8)
    stage.check(some, "w")
    with pytest.raises(RecipeError, match="and there are 2;"):
        dataclasses.replace(stage, pseudo_labels=None).check(some, "w")


def test_without_peft_the_remedy_is_said(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))
    with pytest.raises(RecipeError) as caught:
        Finetune(id="t", adapter="lora").check(task, "w")
    assert str(caught.value) == "w.adapter: 'lora' needs peft: pip install \"edgesmith[lora]\""
