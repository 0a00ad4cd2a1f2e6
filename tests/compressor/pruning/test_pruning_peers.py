"""benches/peers/pruning.py: the peers' stages are what they say, and give candidates like any other."""

import itertools
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgesmith.benches.peers.pruning_parts import halp_table
from edgesmith.benches.peers.pruning_parts.halp_stage import WRITTEN, Halp, knapsack
from edgesmith.benches.peers.pruning_parts.halp_table import Table
from edgesmith.benches.peers.pruning_parts.torch_pruning_stage import TorchPruning
from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.stage import Context
from edgesmith.compressor.structure import measure
from edgesmith.core.errors import UnreachableError
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession

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
    assert 0.3 * before < after <= 1.05 * 0.5 * before  # rounded widths seldom meet it
    assert all(math.isfinite(float(tensor.float().abs().max())) for tensor in pruned.weights.values())
    widths = [layer.weight.shape[0] for layer in pruned.module().modules() if isinstance(layer, torch.nn.Conv2d)]
    assert all(width % 4 == 0 for width in widths)


def test_what_cannot_be_reached_is_refused(original: Candidate, context: Context) -> None:
    with pytest.raises(UnreachableError, match=r"Torch-Pruning leaves more than 0.000105 of the MACs$"):
        TorchPruning(id="prune", importance="group-norm", macs_ratio=1e-4).run(original, context)


def test_halps_importance_is_not_scaled_by_group(original: Candidate, context: Context) -> None:
    """A layer that the loss hardly hangs on has small scores: with `taylor` every group's have the mean 1."""
    module = original.module()
    stage = Halp(id="prune", latency_ratio=0.5)
    groups, _ = stage._groups(module, original, context, report=False)
    scores = stage._scores(module, groups, context)
    gradients = stage._statistics(module, groups, WRITTEN, context).taylor
    for group in groups:
        written = [gradients[member.layer, "out"][member.rows] for member in group.members if member.kind == "out"]
        assert scores[group.root].numpy() == pytest.approx(sum(written).numpy(), rel=1e-5)
    assert len({round(float(values.mean()), 6) for values in scores.values()}) == len(groups) > 1


def test_halps_table_times_int8_layers_at_their_widths(original: Candidate, tmp_path: Path) -> None:
    table = Table(original.module(), original, batch=32, threads=1)
    assert set(table.names()) == {
        name
        for name, layer in original.module().named_modules()
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))
    }
    assert table.whole() > table.time("head", 10) > 0
    made = halp_table._convolution((2, 3, 9, 8), 6, (3, 3), (2, 2), (1, 1), 1)
    onnx.save(made, tmp_path / "layer.onnx")
    ones = np.ones((2, 9, 8, 3), np.uint8)
    (found,) = OnnxRuntimeSession(tmp_path / "layer.onnx").run({"x": ones}).values()
    sums = torch.nn.functional.conv2d(torch.ones(2, 3, 9, 8), torch.ones(6, 3, 3, 3), stride=2, padding=1)
    expected = (0.1 * sums).round().permute(0, 2, 3, 1)  # 0.1 of inputs and weights each, over 0.1 of outputs
    assert np.abs(found - expected.numpy()).max() <= 1


def test_halp_meets_its_own_budget(original: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a table in which a layer takes as long as it has inputs times outputs."""
    monkeypatch.setattr(halp_table, "_timed", lambda how, shape, threads: 1e-3 * how[1] * shape[1])
    before = Table(original.module(), original, 1, 1).whole()
    pruned = Halp(id="prune", latency_ratio=0.5, round_to=1).run(original, context)
    assert 0.4 * before < Table(pruned.module(), pruned, 1, 1).whole() <= 0.5 * before
    with pytest.raises(UnreachableError, match="the knapsack's smallest network takes more than "):
        Halp(id="prune", latency_ratio=0.5, round_to=64).run(original, context)
