"""Models and keys that pruning cannot do what it was asked with: what is said, to the letter, and what is done instead."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.edit import AttentionEdit, ChannelEdit
from edgesmith.compressor.pruning import dry_run
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.stage import Context
from edgesmith.core.errors import ArtifactError, EdgesmithError
from edgesmith.core.task import ArraySplit, Task

from ..conftest import make_context
from . import architectures

WHERE = "stages[0] 'stage'"
HEAD = "head: its channels are the model's output"


class Net(nn.Module):
    """For images `(N, 1, 8, 8)`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu()).relu()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


class HardCoded(Net):
    """Its views know the number 8."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).reshape(-1, 8, 8, 8) * torch.ones(8, 1, 1)
        return self.second(x).reshape(-1, 8, 8, 8) * torch.ones(8, 1, 1)


class Numbered(Net):
    """Runs at any width, and means its channels by their number."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = torch.cat([x[:, :3].relu(), x[:, 3:].sigmoid()], 1)
        return self.second(x).relu() * torch.arange(self.second.out_channels).reshape(-1, 1, 1)


class Branches(Net):
    """Its way depends on the data."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        y = super().features(x)
        return y * 2 if y.sum() > 0 else y


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.second.weight = nn.Parameter(self.second.weight.detach())
        self.third = nn.Conv2d(8, 8, 3, padding=1)
        self.third.weight = self.second.weight

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(super().features(x)).relu()


class Attention(nn.Module):
    """Four heads of four; `how` says what is wrong with it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.num_heads, self.head_dim = how, 4, 4
        shared = 8 if how == "grouped queries" else 16
        self.query, self.key, self.value = nn.Linear(16, 16), nn.Linear(16, shared), nn.Linear(16, shared)
        self.out = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, tokens, width = x.shape
        q, k, v = (
            layer(x).view(count, tokens, -1, self.head_dim).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        if self.how == "grouped queries":
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out(y.reshape(count, tokens, width) if self.how == "a width from elsewhere" else y.flatten(2))


class Tokens(nn.Module):
    """Tokens `(N, 6, 3)` through an attention."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed, self.attention, self.head = nn.Linear(3, 16), Attention(how), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        return self.head((x + self.attention(x)).mean(1))


def prepared(make: Callable[[], nn.Module], work: Path) -> tuple[Candidate, Context]:
    torch.manual_seed(0)
    module = make().eval()
    shape = (16, 6, 3) if isinstance(module, (Tokens, Recurrent, Attentions)) else (16, 1, 8, 8)
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    split = ArraySplit({"x": images}, np.arange(16) % 5)
    task = Task(
        name="t", model=make, loss="cross-entropy", train=split, validation=split, test=split, outputs=("logits",)
    )
    example = {"x": torch.tensor(images[:2])}
    original = Candidate(factory=make, example=example, edits=(), weights=state_of(module))
    return original, make_context(task, work, {"original": original})


BREAKS = "the model breaks without one of its channels: "
LOST = "several of its channels share one of {}, as the heads of a grouped-query attention do, which is not followed"
SHARED = (
    "each of its channels is shared by several of {}, as heads of a grouped-query attention are, which is not followed"
)
NONE = f"{WHERE}: no group of channels is left to prune: "
DIFFERENT = (
    "without one of its channels the model runs, but computes something else: the forward pass knows channels by their "
    "number, or mixes all of them"
)
CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], int, str]] = {
    "a ratio out of reach": (
        Net,
        {"macs_ratio": 0.001},
        3,
        f"{WHERE}.macs_ratio: 0.001 cannot be reached without emptying a layer; the smallest here is 0.0279 (every layer "
        "at 1 channels); ask for more, lower round_to, or allow more layers",
    ),
    "everything kept": (
        Net,
        {"macs_ratio": 0.5, "keep": ("*",)},
        2,
        f"{NONE}{HEAD}; left alone by keep or only: first, second",
    ),
    "only what must not": (
        Net,
        {"macs_ratio": 0.5, "only": ("head",)},
        2,
        f"{NONE}{HEAD}; left alone by keep or only: first, second",
    ),
    "any channel breaks it": (
        HardCoded,
        {"macs_ratio": 0.5},
        2,
        f"{NONE}first: {BREAKS}shape '[-1, 8, 8, 8]' is invalid for input of size 896; second: {BREAKS}shape "
        f"'[-1, 8, 8, 8]' is invalid for input of size 896; {HEAD}",
    ),
    "channels known by number": (
        Numbered,
        {"macs_ratio": 0.5},
        2,
        f"{NONE}first: its rows leave only together, and no number that the layers hold says how; second: {DIFFERENT}; {HEAD}",
    ),
    "tied weights": (
        Tied,
        {"macs_ratio": 0.5},
        2,
        f"{NONE}first: weights of second are tied to third.weight; cutting them would untie them; second: weights of "
        f"second are tied to third.weight; cutting them would untie them; {HEAD}; third: weights of third are tied to "
        "second.weight; cutting them would untie them",
    ),
    "a name that fits nothing": (
        Net,
        {"macs_ratio": 0.5, "keep": ("stem*",)},
        2,
        f"{WHERE}.keep: 'stem*' matches no layer; layers: first, second, head",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_done_is_said(case: str, tmp_path: Path) -> None:
    make, keys, code, text = CASES[case]
    original, context = prepared(make, tmp_path)
    stage = Prune(id="p", round_to=1, samples=16, **keys)
    for run in (stage.rehearse, stage.run):  # before any work, and where it would have been done
        with pytest.raises(EdgesmithError) as caught:
            run(original, context)
        assert (str(caught.value), caught.value.exit_code) == (text, code)


def test_an_attention_that_cannot_lose_a_head_is_named() -> None:
    reasons = {}
    for how in ("grouped queries", "a width from elsewhere", "nothing"):
        module = Tokens(how).eval()
        reasons[how] = dry_run.prunable(module, {"x": torch.randn(2, 6, 3)})[1]
        assert reasons[how].pop("head") == "its channels are the model's output"
    assert reasons["nothing"] == {}
    assert reasons["grouped queries"] == {
        "attention.query": LOST.format("attention.value"),
        "attention.key": SHARED.format("attention.query"),
        "attention.value": SHARED.format("attention.query"),
    }
    assert reasons["a width from elsewhere"] == {
        "embed": f"{BREAKS}shape '[2, 6, 15]' is invalid for input of size 192",
        "attention.value": f"{BREAKS}shape '[2, 6, -1, 4]' is invalid for input of size 180",
    }


class Recurrent(nn.Module):
    """An LSTM between linear layers, and a linear layer that is never run; tokens `(N, 6, 3)`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Linear(3, 8), nn.LSTM(8, 12, batch_first=True)
        self.position, self.unused = nn.Parameter(torch.zeros(6, 8)), nn.Linear(8, 8)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embed(x) + self.position)[0][:, -1])


def test_kinds_of_layers_that_are_not_followed_are_named(tmp_path: Path) -> None:
    original, context = prepared(Recurrent, tmp_path)
    unknown = [
        "LSTM (1 of them): its channels are not followed",
        "Linear (1 of them): the forward pass does not call it",
    ]
    stage = Prune(id="p", channel_ratio=0.5, round_to=1, samples=16)
    stage.run(original, context)
    assert [note for note in context.notes if "not pruned" in note] == [
        f"not pruned: {each}" for each in [HEAD, *unknown]
    ]
    with pytest.raises(EdgesmithError) as caught:
        dataclasses.replace(stage, keep=("embed",)).rehearse(original, context)
    assert str(caught.value) == f"{NONE}{'; '.join([HEAD, *unknown])}; left alone by keep or only: embed"


def test_gpt2s_own_kind_of_layer_is_named(tmp_path: Path) -> None:
    _, context = prepared(Net, tmp_path)
    weights, example = state_of(architectures.gpt2()), {"input_ids": torch.randint(3, 50, (2, 6))}
    original = Candidate(factory=architectures.gpt2, example=example, edits=(), weights=weights)
    with pytest.raises(EdgesmithError) as caught:
        Prune(id="p", macs_ratio=0.5).rehearse(original, context)
    assert str(caught.value) == (
        f"{NONE}score: its channels are the model's output; Embedding (2 of them): its channels are not followed; "
        "transformers.pytorch_utils.Conv1D (8 of them): its channels are not followed"
    )


def test_swins_stream_is_no_grouped_query() -> None:
    torch.manual_seed(0)
    reasons = dry_run.prunable(architectures.swin().eval(), {"x": torch.randn(2, 3, 32, 32)})[1]
    assert not [reason for reason in reasons.values() if "grouped-query" in reason]


class Attentions(nn.Module):
    """Two of torch's attentions, four heads of four; tokens `(N, 6, 3)`."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 16), nn.Linear(16, 5)
        self.first, self.second = (nn.MultiheadAttention(16, 4, batch_first=True) for _ in "ab")
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)
        if how == "tied":
            self.second.in_proj_weight = self.first.in_proj_weight
        elif how == "two names":
            self.second = self.first
        elif how == "extended":
            self.first = nn.MultiheadAttention(16, 4, batch_first=True, add_bias_kv=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in (self.first, self.second):
            x = x + layer(x, x, x, need_weights=False)[0]
        return self.head((x + self.down(self.up(x).relu())).mean(1))


CLOSED = {
    "tied": {
        "first": "first.in_proj_weight is tied to second.in_proj_weight; opening it would untie them",
        "second": "second.in_proj_weight is tied to first.in_proj_weight; opening it would untie them",
    },
    "two names": {"first": "it has several names (first, second); opening it would leave the others behind"},
    "extended": {"first": "it puts a bias or a zero behind its keys and values, which is not followed"},
    "free": {},
}


@pytest.mark.parametrize("how", CLOSED)
def test_an_attention_that_would_be_untied_stays_closed(how: str, tmp_path: Path) -> None:
    original, context = prepared(functools.partial(Attentions, how), tmp_path)
    pruned = Prune(id="p", channel_ratio=0.8, only=("up",), round_to=1, samples=16).run(original, context)
    assert [note for note in context.notes if "heads of" in note] == [
        f"not pruned: the heads of {name}: {reason}" for name, reason in CLOSED[how].items()
    ]
    opened = {edit.attention for edit in pruned.edits if isinstance(edit, AttentionEdit)}
    assert opened == {"tied": set(), "two names": set(), "extended": {"second"}, "free": {"first", "second"}}[how]
    module: Any = pruned.module()
    assert pruned.parameters() < original.parameters()
    assert how != "tied" or module.first.in_proj_weight is module.second.in_proj_weight
    assert how != "two names" or module.first is module.second


def test_the_stream_of_a_tied_attention_is_not_cut() -> None:
    """With a single head nothing but the tie forbids it."""
    module = Attentions("tied").eval()
    for layer in (module.first, module.second):
        layer.num_heads, layer.head_dim = 1, 16
    assert dry_run.prunable(module, {"x": torch.randn(2, 6, 3)})[1]["down"] == (
        "weights of second are tied to first.in_proj_weight; cutting them would untie them"
    )


@pytest.mark.parametrize("how", ["eager", "sdpa"])
def test_llamas_grouped_queries_are_named(how: str) -> None:
    """With torch's own repetition of keys the graph takes queries and keys for equally many, and couples the first."""
    module: Any = architectures.llama(2).eval()
    module.set_attn_implementation(how)
    example = {"input_ids": torch.randint(1, 50, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.int64)}
    expected = {"score": "its channels are the model's output"}
    for index in (0, 1):
        attention = f"model.layers.{index}.self_attn"
        expected[f"{attention}.v_proj"] = SHARED.format(f"{attention}.q_proj")
        if how == "eager":
            expected[f"{attention}.k_proj"] = SHARED.format(f"{attention}.q_proj")
            expected[f"{attention}.q_proj"] = LOST.format(f"{attention}.v_proj")
    assert dry_run.prunable(module, example)[1] == expected


def test_control_flow_is_followed_the_way_it_went(tmp_path: Path) -> None:
    original, context = prepared(Branches, tmp_path)
    pruned = Prune(id="p", macs_ratio=0.5, round_to=1, samples=16).run(original, context)
    assert pruned.parameters() < 0.6 * original.parameters()
    assert [note for note in context.notes if "not pruned" in note] == [f"not pruned: {HEAD}"]


class Sometimes(Net):
    """A layer that only some weights, or some images, lead through: `sign` sets which."""

    def __init__(self, sign: float, by: str) -> None:
        super().__init__()
        self.extra, self.by = nn.Conv2d(8, 8, 1), by
        nn.init.constant_(self.first.bias, sign)  # type: ignore[arg-type]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        asked = self.first.bias if self.by == "weights" else y
        return self.second((self.extra(y) if asked.sum() > 0 else y).relu()).relu()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("by", ["weights", "data"])
def test_a_layer_that_is_called_sometimes_is_control_flow(by: str, sign: float, tmp_path: Path) -> None:
    original, context = prepared(functools.partial(Sometimes, sign, by), tmp_path)
    with pytest.raises(EdgesmithError) as caught:
        Prune(id="p", macs_ratio=0.5, round_to=1, samples=16).run(original, context)
    why = (
        "the forward pass calls extra with some weights and not with others: control flow decides, and of the other way "
        "nothing is known; write that part with tensor operations"
    )
    roots = ["first", "second", *(["extra"] if sign > 0 else []), "head"]
    named = [f"{root}: {why}" for root in (group for group in ("first", "second", "head", "extra") if group in roots)]
    if sign < 0:
        named.append("Conv2d (1 of them): the forward pass does not call it")
    assert str(caught.value) == f"{NONE}{'; '.join(named)}"


def test_an_edit_of_a_layer_that_is_not_called_is_refused() -> None:
    """The file of a network pruned along one way, built with weights that lead the other."""
    make = functools.partial(Sometimes, -1.0, "weights")
    edit = ChannelEdit(layer="extra", remove=(0,))
    with pytest.raises(ArtifactError) as caught:
        Candidate(factory=make, example={"x": torch.randn(2, 1, 8, 8)}, edits=(edit,), weights={}).module()
    assert str(caught.value) == (
        "edit of layer 'extra': the forward pass does not call it with the weights it has here, so control flow decides; "
        "a network that is pruned has to call the same layers always: write that part with tensor operations"
    )


def frozen() -> Net:
    module = Net()
    module.first.requires_grad_(False)
    return module


@pytest.mark.parametrize("importance", ["magnitude-l2", "taylor", "hessian"])
def test_frozen_layers_are_ranked_pruned_and_stay_frozen(importance: str, tmp_path: Path) -> None:
    original, context = prepared(frozen, tmp_path)
    free, other = prepared(Net, tmp_path / "free")
    stage = Prune(id="p", macs_ratio=0.4, importance=importance, round_to=1, samples=16, batch_size=8)
    pruned, expected = stage.run(original, context), stage.run(free, other)
    assert pruned.edits == expected.edits
    assert "first" in {edit.layer for edit in pruned.edits}
    module = pruned.module()
    assert {name: parameter.requires_grad for name, parameter in module.named_parameters()} == {
        "first.weight": False, "first.bias": False, "second.weight": True, "second.bias": True,
        "head.weight": True, "head.bias": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("attribute", "text"),
    [
        (("attention", "heads", 3), "edit of layer 'attention.value': 'attention' has no number 'heads'; was the class changed?"),
        (("attention", "forward", 3), "edit of layer 'attention.value': 'attention' has no number 'forward'; was the class changed?"),
        (("elsewhere", "num_heads", 3), "edit of layer 'attention.value': 'elsewhere' has no number 'num_heads'; was the class changed?"),
    ],
)  # fmt: skip
def test_a_file_changes_no_attribute_but_numbers(attribute: tuple[str, str, int], text: str) -> None:
    make = functools.partial(Tokens, "nothing")
    edit = ChannelEdit(layer="attention.value", remove=(0, 1, 2, 3), attributes=(attribute,))
    example = {"x": torch.randn(2, 6, 3)}
    candidate = Candidate(factory=make, example=example, edits=(edit,), weights=state_of(make()))
    with pytest.raises(ArtifactError) as caught:
        candidate.module()
    assert str(caught.value) == text
