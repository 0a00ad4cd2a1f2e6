"""Channels are followed through what joins, splits, gates and spreads them; what is left computes what it did."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from edgesmith.compressor.pruning import coupling, dry_run, other_weights
from edgesmith.compressor.pruning.coupling import Layout
from edgesmith.compressor.pruning.silenced import silenced

OUTPUT = "its channels are the model's output"


class Net(nn.Module):
    """Images `(N, 3, 8, 8)` through two convolutions; between them what a case asks for."""

    def __init__(self, wide: int, narrow: int) -> None:
        super().__init__()
        self.stem, self.second, self.head = nn.Conv2d(3, wide, 3), nn.Conv2d(narrow, 6, 3), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.between(self.stem(x))).relu().mean((2, 3)))

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu()


class Halves(Net):
    """One half gates the other."""

    def __init__(self) -> None:
        super().__init__(16, 8)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        values, gates = x.chunk(2, 1)
        return values * gates.sigmoid()


class Fourths(Net):
    """The gates of a cell."""

    def __init__(self) -> None:
        super().__init__(24, 6)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        first, second, third, fourth = x.chunk(4, 1)
        return first.sigmoid() * second.tanh() + third.sigmoid() * fourth


class Gated(Net):
    """A gated linear unit."""

    def __init__(self) -> None:
        super().__init__(16, 8)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return functional.glu(x, 1)


class Bottleneck(Net):
    """Both halves are joined again, beside what a convolution makes of one (C2f of YOLO)."""

    def __init__(self) -> None:
        super().__init__(16, 24)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x.relu().chunk(2, 1)
        return torch.cat([left, right, self.inner(right).relu()], 1)


class Places(Net):
    """Coordinates, which need no gradient, stand before the channels (CoordConv)."""

    def __init__(self) -> None:
        super().__init__(8, 10)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(6, dtype=x.dtype).reshape(1, 1, 6, 1).expand(len(x), 2, 6, 6)
        return torch.cat([rows, x.relu()], 1)


class Attended(Net):
    """One map weighs all channels (the gate of an attention U-Net)."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.map = nn.Conv2d(8, 1, 1)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.map(x.relu()).sigmoid()


class OneSlope(Net):
    """A PReLU with a single slope, and instance norms with statistics."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
        self.slope = nn.PReLU()

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return self.slope(self.norm(x))


CASES: dict[str, tuple[Callable[[], Net], dict[str, Layout]]] = {
    "halves": (Halves, {"stem": Layout(outer=2), "second": Layout()}),
    "fourths": (Fourths, {"stem": Layout(outer=4), "second": Layout()}),
    "gated": (Gated, {"stem": Layout(outer=2), "second": Layout()}),
    "bottleneck": (Bottleneck, {"stem": Layout(outer=2), "inner": Layout(), "second": Layout()}),
    "places": (Places, {"stem": Layout(), "second": Layout()}),
    "attended": (Attended, {"stem": Layout(), "second": Layout()}),
    "one slope": (OneSlope, {"stem": Layout(), "second": Layout()}),
}


def tried(module: nn.Module, example: dict[str, torch.Tensor]) -> tuple[dict[str, Layout], dict[str, str]]:
    """Layouts of what can leave, and reasons; half of every group leaves and what is left is compared."""
    groups, reasons = dry_run.prunable(module.eval(), example)
    free = [group for group in groups if group.root not in reasons]
    edits = [group.edit(range(0, group.channels, 2)) for group in free]
    graph = coupling.graph_of(module, example)
    left = coupling.together([coupling.leaving(module, example, edit, graph) for edit in edits])
    whole = other_weights.randomized(module).double()
    doubled = {name: x.double() if x.is_floating_point() else x for name, x in example.items()}
    narrow = copy.deepcopy(whole)
    coupling.remove(narrow, doubled, edits)
    expected = other_weights.answers(silenced(copy.deepcopy(whole), narrow, left), doubled)
    torch.testing.assert_close(other_weights.answers(narrow, doubled), expected, rtol=1e-9, atol=1e-9)
    return {group.root: group.layout for group in free}, reasons


@pytest.mark.parametrize("name", CASES)
def test_they_are_followed(name: str) -> None:
    make, layouts = CASES[name]
    found, reasons = tried(make(), {"x": torch.randn(2, 3, 8, 8)})
    assert found == layouts
    assert {root: reason for root, reason in reasons.items() if root != "map"} == {"head": OUTPUT}


class Flat(nn.Module):
    """Images `(N, 3, 6, 6)`, flattened before or behind a permutation, to a vector, and back to images."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last, self.stem, self.narrow = last, nn.Conv2d(3, 8, 3), nn.Linear(8 * 16, 9)
        self.wide, self.out = nn.Linear(9, 7 * 4), nn.Conv2d(7, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = self.narrow((x.permute(0, 2, 3, 1) if self.last else x).flatten(1)).relu()
        return self.out(self.wide(x).view(-1, 7, 2, 2) if self.last else self.wide(x).unflatten(1, (-1, 2, 2)))


@pytest.mark.parametrize("last", [False, True])
def test_channels_become_rows_and_rows_channels(last: bool) -> None:
    found, reasons = tried(Flat(last), {"x": torch.randn(2, 3, 6, 6)})
    wide = {} if last else {"wide": Layout(inner=4)}
    assert found == {"stem": Layout(), "narrow": Layout()} | wide
    assert reasons.pop("out") == OUTPUT and set(reasons) == ({"wide"} if last else set())  # its view names a width


class Frames(nn.Module):
    """A spectrogram `(N, 1, 12, 9)` whose channels and bands become one axis, of each frame or before the frames."""

    def __init__(self, order: str, channels: int = 8) -> None:
        super().__init__()
        self.order, self.stem = order, nn.Conv2d(1, channels, 3)
        self.mixed = nn.Conv1d(channels * 10, 5, 1) if order == "before" else nn.Linear(channels * 10, 5)
        self.out = nn.Linear(5 if order != "before" else 7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x).relu()
        axes = {"before": (0, 1, 2, 3), "channels first": (0, 3, 1, 2), "channels last": (0, 3, 2, 1)}[self.order]
        return self.out(self.mixed(y.permute(axes).flatten(*((1, 2) if self.order == "before" else (2, 3)))).relu())


@pytest.mark.parametrize("order", ["before", "channels first", "channels last"])
def test_channels_and_bands_become_one_axis(order: str) -> None:
    found, reasons = tried(Frames(order), {"x": torch.randn(2, 1, 12, 9)})
    assert found == {"stem": Layout()} | ({} if order == "before" else {"mixed": Layout()})
    assert set(reasons) == {"mixed", "out"} if order == "before" else reasons == {"out": OUTPUT}


@pytest.mark.parametrize(
    ("order", "channels", "followed"),
    [
        ("before", 7, False),  # as many as frames: which axis is which cannot be told
        ("channels first", 7, False),
        ("channels last", 7, False),
        ("before", 10, True),  # as many as bands: the first of the two is taken
        ("channels first", 10, True),
        ("channels last", 10, False),
    ],
)
def test_as_many_channels_as_frames_or_bands_are_followed_or_refused(order: str, channels: int, followed: bool) -> None:
    found, reasons = tried(Frames(order, channels), {"x": torch.randn(2, 1, 12, 9)})
    assert ("stem" in found, "stem" in reasons) == (followed, not followed)


class Gated(nn.Module):
    """As many bands as the network beside it has channels, of which one number weighs this map."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(1, 10, 3), nn.Conv2d(1, 8, 3)
        self.mixed, self.out = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.narrow(x).relu() * self.wide(x).relu().mean(1, keepdim=True)
        return self.out(self.mixed(y.flatten(2).transpose(1, 2)).relu())


def test_axes_that_are_no_channels_become_one() -> None:
    found, _ = tried(Gated(), {"x": torch.randn(2, 1, 12, 9)})
    assert found["narrow"] == Layout()


class Turned(nn.Module):
    """A rotary embedding as it is written by hand: halves of every head; tokens `(N, 6, 16)`."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).mT.mT.transpose(1, 2) for layer in self.layers())
        y = functional.scaled_dot_product_attention(self.turned(q), self.turned(k), v)
        return self.head(self.out(y.transpose(1, 2).flatten(2)).mean(1))

    def layers(self) -> list[nn.Linear]:
        return [self.query, self.key, self.value]

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None]
        first, second = x.chunk(2, -1)
        return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)


def test_heads_leave_a_rotary_embedding() -> None:
    found, reasons = tried(Turned(4), {"x": torch.randn(2, 6, 16)})
    assert found == {"value": Layout(inner=4), "out": Layout()} and reasons == {"head": OUTPUT}


class Siblings(nn.Module):
    """One network for two images; how alike they are has one axis only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(12, 5)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu()).relu().mean((2, 3))

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        u, v = self.features(one), self.features(other)
        return self.head(torch.cat([u, (u - v).abs()], 1)), (u * v).sum(1)


def test_an_output_with_one_axis_is_no_trouble() -> None:
    images = torch.randn(2, 3, 8, 8)
    found, reasons = tried(Siblings(), {"one": images, "other": images.flip(0)})
    assert found == {"first": Layout(), "second": Layout()} and reasons == {"head": OUTPUT}


class Outer(nn.Module):
    """Every channel of one with every channel of another: nothing that the graph can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 7, 3)
        self.inner, self.head = nn.Linear(42, 9), nn.Linear(9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.first(x).relu().flatten(2), self.second(x).relu().flatten(2)
        return self.head(self.inner((left @ right.mT).flatten(1)).relu())


class Recurring(nn.Module):
    """A GRU, which autograd sees as many operations; sounds `(N, 2, 12)`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 8, 3), nn.Conv1d(8, 6, 3)
        self.cell, self.inner, self.head = (
            nn.GRU(6, 5, batch_first=True, bidirectional=True),
            nn.Linear(10, 7),
            nn.Linear(7, 5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.cell(self.second(self.first(x).relu()).relu().mT)
        return self.head(self.inner(y[:, -1]).relu())


@pytest.mark.parametrize(
    ("make", "shape", "free", "refused"),
    [
        (Outer, (2, 3, 8, 8), {"inner"}, {"second"}),
        (Recurring, (2, 2, 12), {"first", "inner"}, {"second"}),
    ],
)
def test_what_cannot_be_followed_is_refused_and_the_rest_is_pruned(
    make: Callable[[], nn.Module], shape: tuple[int, ...], free: set[str], refused: set[str]
) -> None:
    found, reasons = tried(make(), {"x": torch.randn(shape)})
    assert set(found) == free
    assert {root for root in reasons if root != "head"} == refused
