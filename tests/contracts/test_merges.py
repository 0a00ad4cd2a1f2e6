"""What every rule of MERGES has to keep: copies give the model back, the order is nobody's business, nothing is changed."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from edgesmith.compressor.fusion.merging import MERGES, Mix, State

GUIDE = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()
SHAPES = {"layer.weight": (6, 5), "layer.bias": (6,), "norm.weight": (7,)}


def state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def mix(members: list[State], base: State, **more: Any) -> Mix:
    """Fishers and Gram matrices differ from member to member; the judge likes small weights."""
    count = len(members)
    inputs = [torch.randn(20, 6, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(count)]
    keys = {
        "shares": [1 / count] * count,
        "names": [f"m{i}" for i in range(count)],
        "fishers": [{name: tensor.square() for name, tensor in state(50 + i).items()} for i in range(count)],
        "grams": [{"layer": (x.T @ x)[None]} for x in inputs],
        "judge": lambda weights: -sum(float(tensor.square().sum()) for tensor in weights.values()),
        "generator": torch.Generator().manual_seed(0),
    }
    return Mix(members=members, base=base, **(keys | more))


def made(name: str) -> Any:
    """The rule with everything kept of a task vector."""
    options = {"density": 1.0, "scale": 1.0}
    fields = {field.name for field in dataclasses.fields(MERGES[name])}
    return MERGES[name](**{key: value for key, value in options.items() if key in fields})


def count_of(name: str) -> int:
    return getattr(MERGES[name], "exactly", 3)


@pytest.mark.parametrize("name", MERGES)
class TestMerge:
    def test_copies_of_a_model_give_that_model(self, name: str) -> None:
        model = state(1)
        merged = made(name)(mix([model] * count_of(name), state(2)))
        assert merged.keys() == model.keys()
        for key, tensor in model.items():
            torch.testing.assert_close(merged[key], tensor, rtol=1e-9, atol=1e-9)
            assert merged[key].dtype == torch.float64

    def test_the_order_of_the_members_changes_nothing(self, name: str) -> None:
        members = [state(seed) for seed in range(count_of(name))]
        forth = mix(members, state(9))
        keys = {key: list(reversed(getattr(forth, key))) for key in ("shares", "names", "fishers", "grams")}
        back = mix(members[::-1], state(9), **keys)
        one, other = made(name)(forth), made(name)(back)
        for key in SHAPES:
            torch.testing.assert_close(one[key], other[key], rtol=1e-9, atol=1e-9)

    def test_what_it_is_given_stays_as_it_was(self, name: str) -> None:
        members, base = [state(seed) for seed in range(count_of(name))], state(9)
        given = mix(members, base)
        made(name)(given)
        for seed, member in zip([*range(count_of(name)), 9], [*members, base], strict=True):
            assert all(torch.equal(member[key], tensor) for key, tensor in state(seed).items())

    def test_it_says_what_it_needs_and_the_guide_says_what_it_is(self, name: str) -> None:
        rule = MERGES[name]
        assert rule.needs in ("", "base", "fisher", "gram")
        assert rule.__doc__ and f"`{name}`" in GUIDE
        assert {field.name for field in dataclasses.fields(rule) if f"`{field.name}`" not in GUIDE} == set()
