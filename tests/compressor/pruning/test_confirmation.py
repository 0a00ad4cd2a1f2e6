"""Many groups tried at once: none that is wrong hides behind others."""

import itertools
from collections.abc import Sequence

import pytest
import torch

from edgesmith.compressor.pruning import confirmation, coupling

NAMES = [f"layer{index}" for index in range(9)]


def group(channels: int) -> coupling.CoupledChannels:
    return coupling.CoupledChannels(root="r", channels=channels, members=())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 38])
def test_any_two_are_told_apart_in_few_rounds(count: int) -> None:
    names = list(map(str, range(count)))
    rounds = [set(chosen) for chosen in confirmation.rounds(names)]
    assert len(rounds) == count.bit_length()
    assert set().union(*rounds) == set(names)
    for one, other in itertools.permutations(names, 2):
        assert any((one in chosen) != (other in chosen) for chosen in rounds)


@pytest.mark.parametrize("bad", [(), (0,), (8,), (0, 2), (1, 3, 4), tuple(range(9))])
def test_exactly_the_wrong_ones_are_found(bad: Sequence[int]) -> None:
    wrong = {NAMES[index] for index in bad}
    found = confirmation.wrong(NAMES, lambda chosen: " ".join(sorted(wrong & set(chosen))))
    assert found == {name: name for name in wrong}


@pytest.mark.parametrize("pair", list(itertools.combinations(range(9), 2)))
def test_two_that_make_up_for_each_other_are_found(pair: tuple[int, int]) -> None:
    wrong = {NAMES[index] for index in pair}
    found = confirmation.wrong(NAMES, lambda chosen: "wrong" if len(wrong & set(chosen)) == 1 else "")
    assert found == dict.fromkeys(wrong, "wrong")


def test_of_those_that_are_wrong_only_together_one_half_stays() -> None:
    found = confirmation.wrong(NAMES, lambda chosen: "both" if {"layer0", "layer8"} <= set(chosen) else "")
    assert found == dict.fromkeys(NAMES[4:], "both")


def test_nothing_is_asked_about_nothing() -> None:
    assert confirmation.wrong([], lambda _: "wrong") == {}


@pytest.mark.parametrize(("channels", "least"), [(2, 1), (3, 1), (4, 2), (5, 2), (64, 2)])
def test_the_ends_leave_and_others_up_to_half(channels: int, least: int) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = [confirmation.sample(group(channels), generator) for _ in range(500)]
    assert {len(sample) for sample in samples} == set(range(least, min(channels // 2, 8) + 1))
    assert all(
        sample == sorted(set(sample)) and sample[0] == 0 and (least == 1 or sample[-1] == channels - 1)
        for sample in samples
    )
    if channels == 64:
        assert {channel for sample in samples for channel in sample} == set(range(channels))
