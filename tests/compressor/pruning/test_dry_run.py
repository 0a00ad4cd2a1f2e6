"""The dry run's short ways: parts of networks, axes that hold no channels, trials that are kept."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from edgesmith.compressor.pruning import coupling, dry_run, kept_trials, other_weights, regions
from edgesmith.compressor.pruning.silenced import silenced

from . import architectures as nets

IMAGE = {"x": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))}


def residual() -> nn.Module:
    torch.manual_seed(0)
    return nets.Residual().eval()


def part_of(module: nn.Module, layers: list[str]) -> regions.Region:
    with torch.no_grad():
        outputs = [module(*IMAGE.values())]
    return regions.Regions(module, IMAGE, outputs, [layers]).around(layers)


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (["blocks.0.first", "blocks.0.norm1", "blocks.0.second"], ("blocks.0",)),
        (["blocks.1.second", "blocks.1.project", "blocks.2.first"], ("blocks.1", "blocks.2")),
        (["blocks.1.second"], ("blocks.1",)),  # what calls it may read its numbers
        (["stem", "head"], ("",)),
    ],
)
def test_a_part_is_the_least_that_holds_the_layers(layers: list[str], names: tuple[str, ...]) -> None:
    assert part_of(residual(), layers).names == names


def test_children_of_a_sequential_are_a_part_too() -> None:
    module = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(4))).eval()
    part = part_of(module, ["1", "2"])
    assert part.names == ("1", "2")
    assert torch.equal(part.answers(module)[0], module[:3](IMAGE["x"]))
    assert torch.equal(part.outputs[0], module[:3](IMAGE["x"]))


class Twice(nn.Module):
    """One block, run two times."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = nets.ResidualBlock(3, 3, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.block(x)))


def test_what_runs_twice_is_no_part() -> None:
    module = Twice().eval()
    assert part_of(module, ["block.first", "block.second"]).names == ("",)
    groups, reasons = dry_run.prunable(module, IMAGE)
    assert [group.root for group in groups if group.root not in reasons] == ["block.first"]


def test_a_copy_shares_what_does_not_change() -> None:
    module = residual()
    part = part_of(module, ["blocks.1.first", "blocks.1.second"])
    trial: Any = regions.lean_copy(module, part, ["blocks.1.first"])
    assert trial.stem is module.stem and trial.blocks[0] is module.blocks[0]
    assert trial.blocks[1].second.weight is module.blocks[1].second.weight
    assert trial.blocks[1] is not module.blocks[1]
    nn.init.zeros_(trial.blocks[1].first.weight)
    assert module.blocks[1].first.weight.abs().min() > 0


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())


class Outside(nn.Module):
    """What scales the result is the width of a layer inside another module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other, self.head = Inner(), Inner(), nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.other(x) + self.inner(x) / self.inner.first.out_channels)


def test_what_is_outside_of_a_part_and_knows_its_width_is_found() -> None:
    groups, reasons = dry_run.prunable(Outside().eval(), IMAGE)
    assert reasons["inner.first"] == dry_run._DIFFERENT
    assert "other.first" in {group.root for group in groups} - set(reasons)


class Sharp(nn.Module):
    """A softmax over all channels, of values so large that most of them weigh nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.values, self.behind = Inner(), nn.Conv2d(3, 16, 1), nn.Conv2d(16, 9, 1)
        self.norm, self.head = nn.BatchNorm2d(9), nn.Conv2d(9, 2, 1)
        self.order = nn.Parameter(torch.arange(16), requires_grad=False)  # no weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.values(self.inner(x))
        return self.head(self.norm(self.behind((40 * y).softmax(1) * y)).relu())


def test_a_softmax_that_random_weights_saturate_is_found() -> None:
    groups, reasons = dry_run.prunable(Sharp().eval(), IMAGE)
    assert reasons["values"] == dry_run._DIFFERENT
    assert {"inner.first", "behind"} <= {group.root for group in groups} - set(reasons)


class Quotient(nn.Module):
    """Three branches; what scales the result is the quotient of two of their widths, or the difference."""

    def __init__(self, pair: tuple[int, int], how: str) -> None:
        super().__init__()
        self.pair, self.how = pair, how
        self.branches, self.head = nn.ModuleList(Inner() for _ in range(3)), nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = (self.branches[index].first.out_channels for index in self.pair)
        scale = one / other if self.how == "quotient" else 1 + one - other
        return self.head(sum(branch(x) for branch in self.branches) * scale)


@pytest.mark.parametrize("pair", [(0, 1), (1, 2), (2, 0)])
@pytest.mark.parametrize("how", ["quotient", "difference"])
def test_two_side_effects_that_make_up_for_each_other_are_both_found(how: str, pair: tuple[int, int]) -> None:
    """Where one channel of each leaves at once, the scale stays 1."""
    groups, reasons = dry_run.prunable(Quotient(pair, how).eval(), IMAGE)
    assert len(groups) == 5
    assert reasons == {
        **{f"branches.{index}.first": dry_run._DIFFERENT for index in pair},
        "head": "its channels are the model's output",
    }


class Skipped(Inner):
    """Means its first channel by number, where autograd sees nothing of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.second(y.relu()) * y[:, :1].detach().mean()


def test_channels_meant_by_number_are_found_although_another_one_could_leave() -> None:
    torch.manual_seed(0)
    _, reasons = dry_run.prunable(nn.Sequential(Inner(), Skipped(), nn.Conv2d(3, 2, 1)).eval(), IMAGE)
    assert reasons == {"1.first": dry_run._DIFFERENT, "2": "its channels are the model's output"}


@pytest.mark.parametrize("inplace", [True, False])
def test_a_layer_that_works_in_place_spoils_no_trial(inplace: bool) -> None:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.ReLU(inplace), nn.Conv2d(3, 8, 1), nn.ReLU(inplace), nn.Conv2d(8, 3, 1)) for _ in "ab"]
    groups, reasons = dry_run.prunable(nn.Sequential(*blocks, nn.Conv2d(3, 2, 1)).eval(), IMAGE)
    assert [group.root for group in groups if group.root not in reasons] == ["0.1", "0.3", "1.1", "1.3"]


class Rotary(nn.Module):
    """Queries whose halves of each head are turned, as rotary embeddings do: joined along the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = 4
        self.query, self.key, self.out = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k = (self.turned(layer(x)) for layer in (self.query, self.key))
        return self.out((q * k).transpose(1, 2).flatten(2))

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        x = x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
        return x + torch.cat([-x[..., 2:], x[..., :2]], -1) * 0.5


def test_halves_of_a_head_that_are_joined_are_no_channels() -> None:
    """Taken for channels they led to ever higher rows, without end."""
    groups, reasons = dry_run.prunable(Rotary().eval(), {"x": torch.randn(2, 6, 3)})
    assert [(group.root, group.channels, group.layout) for group in groups if group.root not in reasons] == [
        ("key", 2, coupling.Layout(inner=4))
    ]


@pytest.mark.parametrize(
    ("tokens", "layout", "counts"),
    [
        (4, coupling.Layout(inner=6), {"num_attention_heads": 1, "all_head_size": 6}),
        (1, coupling.Layout(inner=2), {"attention_head_size": 1, "all_head_size": 2}),
    ],
)
def test_heads_are_whole_where_there_is_something_to_attend_to(
    tokens: int, layout: coupling.Layout, counts: dict[str, int]
) -> None:
    """A softmax over one token is 1, whatever queries and keys are: rows of a head leave alone, and rightly for that size."""
    torch.manual_seed(0)
    module, example = nets.MobileViTsAttention().eval(), {"x": torch.randn(2, tokens, 3)}
    groups, reasons = dry_run.prunable(module, example)
    (group,) = (group for group in groups if group.root == "attention.value")
    assert group.layout == layout and group.root not in reasons
    assert {count.attribute: count.each for count in group.counts} == counts
    for channels in ({0}, {group.channels - 1}, set(range(group.channels // 2))):
        pruned, edit = copy.deepcopy(module), group.edit(channels)
        left = coupling.leaving(pruned, example, edit)
        coupling.remove(pruned, example, [edit])
        expected = other_weights.answers(silenced(copy.deepcopy(module), pruned, left), example)
        torch.testing.assert_close(other_weights.answers(pruned, example), expected)


class Texts(nn.Module):
    """Tokens `(N, 6)`; longer texts are cut, to as many tokens as the stream is wide, and the heads are four."""

    def __init__(self) -> None:
        super().__init__()
        self.max_len = self.buckets = 16
        self.embed, self.attention, self.norm = nn.Embedding(50, 16), WindowedAttention(), nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens[:, : self.max_len])
        x = x + self.attention(x)
        return self.head(self.norm(x + self.down(self.up(x).relu())).mean(1))


class WindowedAttention(nets.FusedAttention):
    """Its number of heads counts, also under another name that nothing reads; the equal length of its window is read."""

    def __init__(self) -> None:
        super().__init__(16, 4)
        self.window, self.heads = 12, 4
        self.least = 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x[:, : self.window])
        return y if x.shape[1] >= self.least else y * 0


def counted(module: nn.Module, example: coupling.Example) -> dict[str, dict[str, int]]:
    """Group -> the attributes that follow it, and how much a channel counts."""
    groups, reasons = dry_run.prunable(module, example)
    return {
        group.root: {f"{count.module}.{count.attribute}": count.each for count in group.counts}
        for group in groups
        if group.root not in reasons and group.counts
    }


def test_numbers_that_are_equal_by_chance_stay() -> None:
    """A length of the text and of a table, as long as the stream is wide; a least length, as long as heads are many."""
    torch.manual_seed(0)
    module, example = Texts().eval(), {"tokens": torch.randint(0, 50, (2, 6))}
    assert counted(module, example) == {"attention.qkv": {"attention.num_heads": 1, "attention.heads": 1}}
    coupling.remove(module, example, [coupling.ChannelEdit(layer="embed", remove=tuple(range(8)))])
    assert (module.max_len, module.buckets) == (16, 16)


def test_numbers_of_hugging_face_that_are_equal_by_chance_stay() -> None:
    """Sixteen patches and a stream of sixteen; the width that ALBERT's attention holds is the stream's and its heads'."""
    torch.manual_seed(0)
    tokens = {"input_ids": torch.randint(1, 50, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.int64)}
    vit, albert = nets.vit(), nets.albert()
    assert vit.get_submodule("vit.embeddings.patch_embeddings").num_patches == 16
    assert counted(vit.eval(), {"x": torch.randn(2, 3, 32, 32)}) == {
        f"vit.layers.{index}.attention.v_proj": {f"vit.layers.{index}.attention.num_attention_heads": 1}
        for index in (0, 1)
    }
    attention = "albert.encoder.albert_layer_groups.0.albert_layers.0.attention"
    assert albert.get_submodule(attention).hidden_size == 16
    assert counted(albert.eval(), tokens) == {f"{attention}.value": {f"{attention}.num_attention_heads": 1}}


class TwoNumbers(nn.Module):
    """Needs two numbers of three that are equal: the heads, and again for their sum; tokens `(N, T, 3)`."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self.heads, self.parts = 4, 4, 4
        self.value, self.out = nn.Linear(3, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, : self.most]
        y = self.value(x).view(*x.shape[:2], self.heads, -1).softmax(-1)
        return self.out(y.transpose(1, 2).reshape(x.shape[0], self.parts, x.shape[1], -1).transpose(1, 2).flatten(2))


def test_of_three_equal_numbers_the_two_that_are_needed_follow() -> None:
    torch.manual_seed(0)
    found = counted(TwoNumbers().eval(), {"x": torch.randn(2, 4, 3)})
    assert found == {"value": {".heads": 1, ".parts": 1}}


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Every module that is tried."""
    monkeypatch.setattr(dry_run, "_kept", kept_trials.KeptTrials())
    tried: list[nn.Module] = []
    whole = dry_run._Trial.__init__

    def noted(self: Any, module: nn.Module, *others: Any) -> None:
        tried.append(module)
        whole(self, module, *others)

    monkeypatch.setattr(dry_run._Trial, "__init__", noted)
    return tried


def plain(found: kept_trials.Found) -> Any:
    return [(group.root, group.channels, group.layout, group.counts) for group in found[0]], found[1]


def test_what_a_rehearsal_found_a_run_finds_too(trials: list[nn.Module]) -> None:
    untrained, trained = residual(), residual()
    nn.init.normal_(trained.stem.weight)  # type: ignore[arg-type]
    first = dry_run.prunable(untrained, IMAGE, factory=residual)
    again = dry_run.prunable(trained, IMAGE, factory=residual)
    assert trials == [untrained]
    assert plain(again) == plain(first) == plain(dry_run.prunable(trained, IMAGE))


def narrower(module: Any) -> None:
    coupling.remove(module, IMAGE, [coupling.ChannelEdit(layer="stem", remove=(1,))])


def renumbered(module: Any) -> None:
    module.blocks[0].heads = 3


def tied(module: Any) -> None:
    module.blocks[2].first.weight = module.blocks[2].second.weight


def of_another_class(module: Any) -> None:
    module.head = type("Linear", (nn.Linear,), {})(12, 5)


CHANGES: dict[str, Callable[[Any], None]] = {
    "narrower": narrower,
    "another number": renumbered,
    "tied": tied,
    "another class": of_another_class,
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_network_is_tried_by_itself(change: str, trials: list[nn.Module]) -> None:
    module = residual()
    dry_run.prunable(module, IMAGE, factory=residual)
    other = copy.deepcopy(module)
    CHANGES[change](other)
    assert plain(dry_run.prunable(other, IMAGE, factory=residual)) == plain(dry_run.prunable(other, IMAGE))
    assert trials == [module, other, other]


def test_other_makers_and_other_inputs_are_tried_by_themselves(trials: list[nn.Module]) -> None:
    module = residual()
    dry_run.prunable(module, IMAGE, factory=residual)
    dry_run.prunable(module, IMAGE, factory=lambda: residual())
    dry_run.prunable(module, {"x": IMAGE["x"] + 1}, factory=residual)
    assert len(trials) == 3


class BareNorm(nn.Module):
    """A norm over all channels that has no weights of its own, as in a DiT; tokens `(N, 4, 3)`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(3, 8), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.stem(x)).relu())


def test_a_norm_without_weights_keeps_nothing_from_leaving() -> None:
    _, reasons = dry_run.prunable(BareNorm().eval(), {"x": torch.randn(2, 4, 3)})
    assert reasons == {"head": "its channels are the model's output"}
