"""benches/peers/pruning.py: the peers' stages are what they say, and give candidates like any other."""

import itertools
import math

import numpy as np
import pytest
import torch

from edgesmith.benches.peers.pruning_parts.halp_stage import knapsack
from edgesmith.benches.peers.pruning_parts.torch_pruning_stage import TorchPruning
from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.stage import Context
from edgesmith.compressor.structure import measure
from edgesmith.core.errors import UnreachableError

Options = list[dict[int, tuple[float, float]]]


def options(seed: int) -> Options:
    rng = np.random.default_rng(seed)
    return [
        {width: (float(value), float(ms)) for width, value, ms in zip((4, 8, 12), rng.random(3), rng.random(3), strict=True)}
        for _ in range(4)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_the_knapsack_takes_the_most_that_fits(seed: int) -> None:
    case = options(seed)
    least = sum(min(ms for _, ms in each.values()) for each in case)
    found = knapsack(case, 1.3 * least)
    assert found is not None

    def total(widths: tuple[int, ...], index: int) -> float:
        return sum(each[width][index] for each, width in zip(case, widths, strict=True))

    fitting = [widths for widths in itertools.product(*case) if total(widths, 1) <= 1.3 * least * (1 - 4 / 2000)]
    assert total(tuple(found), 1) <= 1.3 * least
    assert total(tuple(found), 0) >= max(total(widths, 0) for widths in fitting) - 1e-9
    assert knapsack(case, 0.99 * least) is None


@pytest.mark.parametrize("importance", ["group-norm", "taylor"])
def test_torch_prunings_network_replayed_is_its_network(importance: str, original: Candidate, context: Context) -> None:
    stage = TorchPruning(id="prune", importance=importance, macs_ratio=0.5, round_to=4)  # type: ignore[arg-type]
    pruned = stage.run(original, context)
    before, after = (measure(each.module(), each.example, ()).macs for each in (original, pruned))
    assert 0.3 * before < after <= 0.5 * before
    assert all(math.isfinite(float(tensor.float().abs().max())) for tensor in pruned.weights.values())
    widths = [layer.weight.shape[0] for layer in pruned.module().modules() if isinstance(layer, torch.nn.Conv2d)]
    assert all(width % 4 == 0 for width in widths)


def test_what_cannot_be_reached_is_refused(original: Candidate, context: Context) -> None:
    with pytest.raises(UnreachableError, match=r"Torch-Pruning leaves more than 0.0001 of the MACs$"):
        TorchPruning(id="prune", importance="group-norm", macs_ratio=1e-4).run(original, context)
