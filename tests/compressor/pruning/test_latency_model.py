"""The latency model finds again what a network's time is made of, and says what a structure's terms are."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import nn

from edgesmith.compressor import replay
from edgesmith.compressor.edit import ChannelEdit
from edgesmith.compressor.pruning import blocks, dry_run
from edgesmith.compressor.pruning.latency_model import LatencyModel, Plan, Structure, fit, structure_of
from edgesmith.compressor.pruning.prune_to_latency import drawn, samples, widths

from . import architectures as nets


class Residual(nn.Module):
    """A block with a group of its own between two convolutions of the stream."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, inner, 3, padding=1), nn.BatchNorm2d(inner), nn.ReLU())
        self.second = nn.Conv2d(inner, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.second(self.first(x)))


class Net(nn.Module):
    """Stem, a residual block, a branch that is concatenated, a depthwise convolution, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        self.block = Residual(32, 64)
        self.side = nn.Conv2d(32, 16, 1)
        self.filter = nn.Conv2d(48, 48, 3, padding=1, groups=48)
        self.head = nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(torch.relu(self.stem(x)))
        x = torch.relu(self.filter(torch.cat([x, torch.relu(self.side(x))], 1)))
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


EXAMPLE = {"image": torch.zeros(2, 1, 8, 8)}


@pytest.fixture(scope="module")
def structure() -> Structure:
    torch.manual_seed(0)
    module = Net().eval()
    groups, refused = dry_run.prunable(module, EXAMPLE)
    prunable = [group.root for group in groups if group.root not in refused]
    return structure_of(module, EXAMPLE, groups, prunable, blocks.find(module, EXAMPLE))


def choices(structure: Structure) -> dict[str, list[int]]:
    return {root: widths(channels, 8) for root, channels in structure.channels.items()}


def product(structure: Structure, name: str) -> Mapping[tuple[str, ...], float]:
    return next(term.products for term in structure.terms if term.name == name)


def test_terms_follow_from_the_architecture(structure: Structure) -> None:
    stream, inner = "filter", "block.first.0"  # what is concatenated before the depthwise filter leaves together
    assert structure.inner == {"block": (inner,)}
    assert product(structure, "block.first.0") == {tuple(sorted((stream, inner))): 1.0}
    assert product(structure, "stem") == {(stream,): 1.0}  # the image's channel belongs to no group
    assert product(structure, "side") == {(stream, stream): 1.0}
    assert product(structure, "filter") == {(stream,): 1.0}  # depthwise: time grows with one width
    assert product(structure, "head") == {(stream,): 1.0}
    assert structure.channels == {inner: 64, stream: 48}


class Branches(nn.Module):
    """Adds outside of its blocks, each of which begins with a filter of the stream's own width, as in ConvNeXt."""

    def __init__(self, mixers: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.blocks = nn.ModuleList(Mixer() if mixers else Branch() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return x.mean((2, 3))


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.up, self.down = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(torch.relu(self.up(self.filter(x))))
        return result


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.mix(x)
        return result


@pytest.mark.parametrize("mixers", [False, True])
def test_a_layer_whose_widths_are_all_others_leaves_with_its_block(mixers: bool) -> None:
    module = Branches(mixers).eval()
    found = blocks.edits(module, {"x": torch.randn(2, 3, 8, 8)})
    assert all(edit.zero for edit in found.values())
    groups, _ = dry_run.prunable(module, {"x": torch.randn(2, 3, 8, 8)})
    (stream,) = (group.root for group in groups if "stem" in group.layers)
    structure = structure_of(module, {"x": torch.randn(2, 3, 8, 8)}, groups, {g.root for g in groups}, list(found))
    assert set(structure.inner) == {"blocks.0", "blocks.1"}
    name, widths = ("blocks.0.mix", (stream, stream)) if mixers else ("blocks.0.filter", (stream,))
    assert product(structure, name) == {tuple(sorted(("blocks.0", *widths))): 1.0}
    assert structure.shares(Plan(gone=("blocks.0",)))["blocks.0"] == 0.0
    if not mixers:
        assert product(structure, "blocks.0.up") == {tuple(sorted((stream, "blocks.0.up"))): 1.0}


class Chain(nn.Module):
    """A part that returns as many channels as it gets, but others: nothing is added to what went in."""

    def __init__(self, inner: int | None, head: bool, groups: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        layers = [nn.Conv2d(16, inner or 16, 1, groups=groups)]
        layers += [] if inner is None else [nn.Conv2d(inner, 16, 1)]
        self.body = Wrapped(nn.Sequential(*layers, nn.ReLU()))
        self.head = nn.Conv2d(16, 8, 1) if head else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.body(self.stem(x)))
        return result


class Wrapped(nn.Module):
    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layers(x)
        return result


NETWORKS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "a chain": (lambda: Chain(None, head=True), set()),
    "a chain that ends": (lambda: Chain(None, head=False), set()),
    "a wide chain": (lambda: Chain(32, head=True), set()),
    "a wide chain that ends": (lambda: Chain(32, head=False), set()),
    "a wide chain in groups": (lambda: Chain(32, head=True, groups=4), set()),
    "branches": (Branches, {"blocks.0", "blocks.1"}),
    "a transformer": (lambda: nets.VisionTransformer(nets.ModularBlock), {"blocks.0", "blocks.1"}),
    "mixers": (lambda: Branches(mixers=True), {"blocks.0", "blocks.1"}),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_every_plan_leaves_a_network_that_runs(case: str) -> None:
    make, free = NETWORKS[case]
    example = {"x": torch.randn(2, 3, 8, 8)}
    module = make().eval()
    found = blocks.edits(module, example)
    groups, refused = dry_run.prunable(module, example)
    roots = {group.root: group for group in groups if group.root not in refused}
    structure = structure_of(module, example, groups, set(roots), list(found))
    assert set(structure.inner) == free
    for plan in samples(structure, {root: widths(channels, 4) for root, channels in structure.channels.items()}):
        trial, narrower = make().eval(), [(roots[root], width) for root, width in plan.kept.items()]
        edits: list[ChannelEdit] = [group.edit(list(range(group.channels - width))) for group, width in narrower]
        replay.apply(trial, example, [*(edit for edit in edits if edit.remove), *(found[name] for name in plan.gone)])
        assert torch.isfinite(trial(example["x"])).all()


def test_shares_count_in_steps_and_vanish_with_their_block(structure: Structure) -> None:
    shares = structure.shares(Plan(kept={"filter": 17}), step=8)
    assert shares["filter"] == 0.5  # 17 channels take three steps of 8, and 48 take six
    gone = structure.shares(Plan(gone=("block",)))
    assert (gone["block"], gone["block.first.0"], gone["filter"]) == (0.0, 0.0, 1.0)


def test_a_fit_predicts_networks_it_has_not_seen(structure: Structure) -> None:
    # Made by the same rule with steps of 16 and 2 % of noise: the fit has to find weights and steps.
    rng = np.random.default_rng(0)
    weights = tuple(float(value) for value in rng.uniform(0.02, 0.2, len(structure.terms)))
    truth = LatencyModel(structure=structure, step=16, weights=weights, error=0.0)
    whole = truth.predict(Plan())

    def measured(plan: Plan) -> float:
        return truth.predict(plan) / whole * float(np.exp(rng.normal(0, 0.02)))

    plans = samples(structure, choices(structure))
    model = fit(structure, plans, [measured(plan) for plan in plans])
    unseen = [drawn(structure, choices(structure), np.random.default_rng(7 + number)) for number in range(30)]
    errors = [abs(model.predict(plan) / (truth.predict(plan) / whole) - 1) for plan in unseen]
    assert model.step == 16
    assert float(np.median(errors)) < 0.03
    assert model.error < 0.06
    assert model.predict(Plan()) == pytest.approx(1.0, abs=0.05)


def test_wider_is_never_predicted_to_be_faster(structure: Structure) -> None:
    rng = np.random.default_rng(1)
    plans = samples(structure, choices(structure))
    model = fit(structure, plans, list(rng.uniform(0.3, 1.0, len(plans))))  # noise alone
    for plan in plans:
        for root, width in plan.kept.items():
            wider = Plan(kept={**plan.kept, root: structure.channels[root]}, gone=plan.gone)
            assert model.predict(wider) >= model.predict(plan) - 1e-9, (root, width)


def test_samples_hold_every_choice_alone_and_mixtures(structure: Structure) -> None:
    plans = samples(structure, choices(structure))
    for root in structure.channels:
        assert Plan(kept={root: choices(structure)[root][-1]}) in plans
    assert Plan(gone=("block",)) in plans
    assert len(plans) == len({repr(plan) for plan in plans})
    assert plans == samples(structure, choices(structure))


@pytest.mark.parametrize(("groups", "blocks"), [(120, 0), (98, 3), (80, 40), (38, 16)])
def test_many_parts_are_measured_in_few_networks_of_every_kind(groups: int, blocks: int) -> None:
    roots = [f"g{number}" for number in range(groups)]
    inner = {f"b{number}": (roots[number],) for number in range(blocks)}
    structure = Structure(channels=dict.fromkeys(roots, 64), inner=inner, terms=())
    plans = samples(structure, {root: [64, 32, 8] for root in roots})
    kinds = {
        "smallest": sum(plan == Plan(kept=dict.fromkeys(roots, 8)) for plan in plans),
        "block": sum(not plan.kept for plan in plans),
        "narrow": sum(list(plan.kept.values()) == [8] for plan in plans),
        "middle": sum(list(plan.kept.values()) == [32] for plan in plans),
    }
    assert len(plans) <= 96
    assert kinds.pop("smallest") == 1
    alone = sum(kinds.values())
    assert 40 <= alone <= 48 and len(plans) - alone - 1 >= 40
    for kind, parts in (("block", blocks), ("narrow", groups), ("middle", groups)):
        assert kinds[kind] == pytest.approx(alone * parts / (blocks + 2 * groups), abs=1), kind


@pytest.mark.parametrize(
    ("channels", "multiple", "expected"),
    [
        (64, 8, [64, 56, 48, 40, 32, 24, 16, 8]),
        (20, 8, [20, 16, 8]),
        (8, 8, [8]),
        (3, 8, [3]),
        (512, 8, [512, 504, 424, 336, 256, 168, 88, 8]),
    ],
)
def test_widths_are_multiples_and_few(channels: int, multiple: int, expected: list[int]) -> None:
    found = widths(channels, multiple)
    assert found[0] == channels
    assert found == sorted(found, reverse=True)
    assert all(width % multiple == 0 for width in found[1:])
    assert len(found) <= 8
    if channels < 512:
        assert found == expected
