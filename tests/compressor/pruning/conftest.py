"""A made-up clock for networks as they would be deployed."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.pruning import deployed
from edgesmith.compressor.stage import Context
from edgesmith.compressor.structure import measure
from edgesmith.core.values import Artifact

WHOLE_MS = 2.0


def cost(candidate: Candidate) -> float:
    """A time that is no part of what the model can express: MACs to the power of 0.7, and something for each layer."""
    module = candidate.module()
    layers = sum(1 for layer in module.modules() if isinstance(layer, torch.nn.Conv2d))
    return 0.02 * layers + measure(module, candidate.example, ()).macs ** 0.7 / 1e4


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Files and times without a runtime; returns the shares of the whole network's time that were measured at the end.

    What is deployed is a fifth slower than what the model is fitted to, but for the whole network.
    """
    measured: list[float] = []
    files: dict[str, float] = {}

    def best_form(candidate: Candidate, context: Context, folder: Path) -> Artifact:
        path = folder / candidate.digest()
        files[str(path)] = cost(candidate) * (1.2 if candidate.edits else 1.0)
        return Artifact(
            path=path, target="onnxruntime-cpu", dialect="u8", precision="int8", inputs=(), outputs=(), digest=""
        )

    def times(
        candidates: Iterable[Candidate], form: Artifact, context: Context, folder: Path, done: Callable[[int], None]
    ) -> list[float]:
        whole, *others = map(cost, candidates)
        return [other / whole for other in others]

    def compare(whole: Artifact, part: Artifact, context: Context) -> tuple[float, float]:
        share = files[str(part.path)] / files[str(whole.path)]
        if part != whole:
            measured.append(share)
        return WHOLE_MS, share

    for name, function in (("best_form", best_form), ("times", times), ("compare", compare)):
        monkeypatch.setattr(deployed, name, function)
    return measured
