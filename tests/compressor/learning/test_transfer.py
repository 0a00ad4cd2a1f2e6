"""Transfer learning: what is frozen stays to the bit, layers learn at the rates they were given and from their epoch on."""

import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import nn

from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.learning import training
from edgesmith.compressor.learning.finetune import Finetune
from edgesmith.compressor.learning.layer_groups import layer_groups
from edgesmith.compressor.learning.optimizers import parameter_groups
from edgesmith.compressor.stage import Context
from edgesmith.core.errors import RecipeError
from edgesmith.core.task import Task

from ..conftest import Killed, kill_training

FAST: dict[str, Any] = {"id": "t", "epochs": 2, "learning_rate": 2e-3, "batch_size": 256}
GROUPS = ["stem", "stage1.0", "stage1.1", "stage2.0", "stage2.1", "head"]  # of the digits network


@pytest.fixture
def fresh_head(original: Candidate) -> Candidate:
    """The trained network with a head that knows nothing: any training improves it at once."""
    weights = {name: torch.zeros_like(t) if name.startswith("head") else t for name, t in original.weights.items()}
    return dataclasses.replace(original, weights=weights)


def changed(before: Candidate, after: Candidate) -> set[str]:
    return {name for name, tensor in after.weights.items() if not torch.equal(tensor, before.weights[name])}


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> list[training._Loop]:
    """Every training loop that is made, in order."""
    made: list[training._Loop] = []
    initialize = training._Loop.__init__

    def kept(loop: training._Loop, *arguments: Any) -> None:
        made.append(loop)
        initialize(loop, *arguments)

    monkeypatch.setattr(training._Loop, "__init__", kept)
    return made


def test_what_is_frozen_stays_to_the_bit_batch_norms_included(
    fresh_head: Candidate, context: Context, loops: list[training._Loop]
) -> None:
    trained = Finetune(**FAST, freeze=("stem", "norm", "stage1.*.conv?.*", "stage1.*.norm*", "stage2")).run(
        fresh_head, context
    )
    assert changed(fresh_head, trained) == {"head.weight", "head.bias"}
    assert len(loops[0]._optimizer.state) == 2  # and no state for anything else
    assert context.notes[-1].endswith(", 0.8% of the parameters learn (330 of 42,938)")


def test_without_a_key_everything_learns(fresh_head: Candidate, context: Context) -> None:
    assert changed(fresh_head, Finetune(**FAST).run(fresh_head, context)) == set(fresh_head.weights)


def with_frozen(part: str, original: Candidate) -> Candidate:
    """The function that builds the network freezes a part, as libraries do with tables of positions."""

    def build() -> nn.Module:
        module = original.factory()
        module.get_submodule(part).requires_grad_(False)
        return module

    return dataclasses.replace(original, factory=build)


@pytest.mark.parametrize(
    "keys",
    [{}, {"freeze": ("head",)}, {"probe_epochs": 1}, {"unfreeze": "gradual", "epochs": 9}, {"layer_decay": 0.5}],
)
def test_what_the_model_function_froze_stays_frozen(
    keys: dict[str, Any], fresh_head: Candidate, context: Context, loops: list[training._Loop]
) -> None:
    """In every regime, and to the bit; what it left to learn does."""
    start = with_frozen("stem", fresh_head)
    moved = changed(start, Finetune(**{**FAST, **keys}).run(start, context))
    assert not any(name.startswith("stem.") for name in moved)
    learnt = {name for name, parameter in loops[-1]._module.named_parameters() if parameter.requires_grad}
    frozen = {name for name in fresh_head.module().state_dict() if name.startswith(("stem.", *keys.get("freeze", ())))}
    assert learnt == {name for name, _ in fresh_head.module().named_parameters()} - frozen


def test_a_head_that_was_frozen_cannot_be_probed(fresh_head: Candidate, context: Context) -> None:
    with pytest.raises(RecipeError) as caught:
        Finetune(**FAST, probe_epochs=1).rehearse(with_frozen("head", fresh_head), context)
    assert str(caught.value) == (
        "stages[0] 'stage'.probe_epochs: the head is frozen by the task's model function; nothing would learn"
    )


@pytest.mark.parametrize(
    ("module", "groups"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.LayerNorm(4), nn.Linear(4, 2)), ["0.+2.", "3."]),
        (
            nn.Sequential(
                nn.TransformerEncoder(
                    nn.TransformerEncoderLayer(4, 1, 4, batch_first=True), 3, enable_nested_tensor=False
                ),
                nn.Sequential(nn.Dropout(), nn.Linear(4, 2)),
            ),
            ["0.layers.0.", "0.layers.1.", "0.layers.2.", "1.1."],
        ),
    ],
)
def test_groups_are_blocks_and_what_stands_around_them(module: nn.Module, groups: list[str]) -> None:
    found = layer_groups(module, {"x": torch.zeros(2, 3, 4)}, ("y",))
    names = [name for name, _ in module.named_parameters()]
    assert found == [tuple(n for n in names if n.startswith(tuple(each.split("+")))) for each in groups]


def test_groups_follow_the_pass_and_not_the_order_of_definition(original: Candidate) -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)
            self.token = nn.Parameter(torch.zeros(4))
            self.body = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x + self.token))

    assert layer_groups(Backwards(), {"x": torch.zeros(2, 4)}, ("y",)) == [
        ("token", "body.weight", "body.bias"),
        ("head.weight", "head.bias"),
    ]
    found = layer_groups(original.module(), original.example, ("logits",))
    assert [group[0].rpartition(".")[0].removesuffix(".conv1") for group in found] == GROUPS
    assert "norm.weight" in found[0]


def test_rates_fall_by_the_factor_from_the_head_down(original: Candidate, context: Context) -> None:
    module = original.module()
    regime = Finetune(**FAST, layer_decay=0.5).regime(module, original.example, ("logits",), 2, "w")
    rates = [regime.rate(f"{name}.conv1.weight" if "." in name else f"{name}.weight") for name in GROUPS]
    assert rates == [0.5**5, 0.5**4, 0.5**3, 0.5**2, 0.5, 1.0]
    groups = parameter_groups(module, 1e-4, 0.01, regime.rate)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found[id(module.head.weight)] == (0.01, 1e-4)
    assert found[id(module.head.bias)] == (0.01, 0.0)
    assert found[id(module.stem.weight)] == (0.01 / 32, 1e-4)
    assert len(found) == len(list(module.parameters()))


def test_a_rate_is_the_step_that_is_taken(original: Candidate, context: Context) -> None:
    """One step of Adam from rest moves every weight by its learning rate, whatever its gradient."""
    keys = {"epochs": 1, "batch_size": 4096, "optimizer": "adam", "schedule": "constant", "warmup": 0.0}
    stage = Finetune(id="t", learning_rate=1e-4, **keys, weight_decay=0.0, layer_rates={"*": 0.1, "head.weight": 10.0})
    trained = training_result(stage, original, context)
    moved = {
        name: (trained[name] - original.weights[name]).abs().max() for name, _ in original.module().named_parameters()
    }
    assert float(moved["head.weight"]) == pytest.approx(1e-3, rel=0.02)
    assert float(moved["head.bias"]) == pytest.approx(1e-5, rel=0.02)
    assert float(moved["stage1.0.conv1.weight"]) == pytest.approx(1e-5, rel=0.02)


def training_result(stage: Finetune, value: Candidate, context: Context) -> dict[str, torch.Tensor]:
    """The weights after the last step, whether or not validation liked them."""
    last: dict[str, torch.Tensor] = {}
    step = training._Loop._train_step
    with pytest.MonkeyPatch.context() as patch:

        def kept(loop: training._Loop, indices: Any) -> torch.Tensor:
            loss = step(loop, indices)
            last.update(state_of(loop._module))
            return loss

        patch.setattr(training._Loop, "_train_step", kept)
        stage.run(value, context)
    return last


def test_gradual_unfreezing_takes_one_group_more_with_every_epoch(
    fresh_head: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    epoch = training._Loop._run_epoch

    def watched(loop: training._Loop, advance: Any) -> None:
        before = state_of(loop._module)
        epoch(loop, advance)
        after = state_of(loop._module)
        moved = {name for name in after if not torch.equal(after[name], before[name])}
        seen.append([group for group in GROUPS if any(name.startswith(group) for name in moved)])
        assert ("norm.running_mean" in moved) == ("stem" in seen[-1])

    monkeypatch.setattr(training._Loop, "_run_epoch", watched)
    Finetune(**{**FAST, "epochs": 7}, unfreeze="gradual").run(fresh_head, context)
    assert seen == [GROUPS[-count:] for count in (1, 2, 3, 4, 5, 6, 6)]


@pytest.mark.parametrize("keys", [{"unfreeze": "gradual", "freeze": ("stem", "norm", "stage1")}, {"probe_epochs": 1}])
def test_a_killed_transfer_ends_with_the_same_weights(
    keys: dict[str, Any], fresh_head: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Finetune(**{**FAST, "epochs": 3}, **keys)
    whole = stage.run(fresh_head, context.within("whole"))
    kill_training(monkeypatch, 6)
    with pytest.raises(Killed):
        stage.run(fresh_head, context.within("broken"))
    assert stage.run(fresh_head, context.within("broken")).digest() == whole.digest()


def test_the_probe_trains_the_head_and_then_all_learn(
    fresh_head: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[tuple[set[str], float]] = []
    run = training._Loop.run

    def watched(loop: training._Loop) -> None:
        learning = {name for name, p in loop._module.named_parameters() if p.requires_grad}
        rate = loop._optimizer.param_groups[0]["initial_lr"]
        starts.append((learning, rate))
        run(loop)

    monkeypatch.setattr(training._Loop, "run", watched)
    Finetune(**FAST, probe_epochs=3, probe_learning_rate=0.05).run(fresh_head, context)
    assert starts == [
        ({"head.weight", "head.bias"}, 0.05),
        ({name for name, _ in fresh_head.module().named_parameters()}, 2e-3),
    ]
    assert re.fullmatch(r"the head alone: best epoch [123] of 3", context.notes[0])  # which one, CPUs disagree on


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"freeze": ("stag1",)}, "stages[0] 'stage'.freeze: 'stag1' matches no parameter; did you mean 'stage1'?"),
        ({"layer_rates": {"heads.weight": 0.1}}, "stages[0] 'stage'.layer_rates: 'heads.weight' matches no parameter; did you mean 'head.weight'?"),
        ({"freeze": ("encoder.layer.0",)}, "stages[0] 'stage'.freeze: 'encoder.layer.0' matches no parameter; parameters are called like 'stem.weight', 'head.bias'"),
        ({"freeze": ("*",)}, "stages[0] 'stage'.freeze: nothing is left to train; 32 of 32 are frozen"),
        ({"freeze": ("stem", "norm"), "layer_rates": {"stem*": 0.1}}, "stages[0] 'stage'.layer_rates: 'stem*' matches frozen parameters alone; leave it out"),
        ({"unfreeze": "gradual"}, "stages[0] 'stage'.unfreeze: 6 groups of layers learn, one more with every epoch, and there are 2 epochs; set epochs to 6 or more, or freeze the lower layers"),
    ],
)  # fmt: skip
def test_what_the_architecture_rules_out_is_said_before_any_work(
    keys: dict[str, Any], message: str, original: Candidate, context: Context
) -> None:
    with pytest.raises(RecipeError) as caught:
        Finetune(**FAST, **keys).rehearse(original, context)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"layer_rates": {"*": 0.1}, "layer_decay": 0.5}, "w: set layer_rates or layer_decay, not both"),
        ({"unfreeze": "gradual", "minutes": 1.0}, "w.unfreeze: 'gradual' counts epochs; set epochs in the place of minutes"),
        ({"probe_learning_rate": 0.1}, "w.probe_learning_rate: nothing reads it without probe_epochs"),
    ],
)  # fmt: skip
def test_keys_that_contradict_each_other_are_refused(keys: dict[str, Any], message: str, task: Task) -> None:
    with pytest.raises(RecipeError) as caught:
        Finetune(id="t", **keys).check(task, "w")
    assert str(caught.value) == message


def test_a_network_without_a_head_of_its_own_cannot_be_probed(original: Candidate, context: Context) -> None:
    class One(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.flatten(1))

    one = Candidate(factory=lambda: One(64, 10), example=original.example, edits=(), weights=state_of(One(64, 10)))
    with pytest.raises(RecipeError) as caught:
        Finetune(**FAST, probe_epochs=1).rehearse(one, context)
    assert str(caught.value) == (
        "stages[0] 'stage'.probe_epochs: the network is one group of layers, so there is no head to probe"
    )
