"""What does not learn stays to the bit in everything that trains, the statistics of its batch norms included."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.int8.qat import QuantizationAwareTraining
from edgesmith.compressor.learning import training
from edgesmith.compressor.learning.distill import Distill
from edgesmith.compressor.learning.finetune import Finetune
from edgesmith.compressor.learning.frozen import matching
from edgesmith.compressor.stage import Context, Stage

FAST: dict[str, Any] = {"id": "t", "epochs": 1, "learning_rate": 2e-3, "batch_size": 256}


@pytest.mark.parametrize(
    "stage",
    [
        Finetune(**FAST),
        Distill(**FAST),
        Distill(**FAST, features="fitnets"),
        QuantizationAwareTraining(**FAST, samples=64),
    ],
    ids=["finetune", "distill", "features", "qat"],
)
def test_batch_norms_of_what_is_frozen_keep_their_statistics(
    stage: Stage, original: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build() -> nn.Module:
        module = original.factory()
        for part in ("stem", "norm"):
            module.get_submodule(part).requires_grad_(False)
        return module

    trained: list[dict[str, torch.Tensor]] = []
    judge = training._Loop._judge
    monkeypatch.setattr(
        training._Loop, "_judge", lambda loop: (trained.append(_copied(loop._module)), judge(loop))[1]
    )  # as every epoch left it, the best one or not
    monkeypatch.setattr(QuantizationAwareTraining, "_handed_over", lambda *_: None)
    stage.run(dataclasses.replace(original, factory=build), context)
    before, after = trained
    moved = {
        max((own for own in original.weights if f".{name}".endswith(f".{own}")), key=len, default=name)
        for name, tensor in after.items()
        if not torch.equal(tensor, before[name])
    }
    assert not any(name.startswith(("stem.", "norm.")) for name in moved)
    assert {"head.weight", "stage1.0.norm1.running_var", "stage2.0.norm1.running_mean"} <= moved


def _copied(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_a_glob_is_of_a_parameter_or_of_a_module_above_it() -> None:
    names = ["a.0.weight", "a.1.weight", "b.weight"]
    assert matching("a", names, "w") == ["a.0.weight", "a.1.weight"]
    assert matching("a.?", names, "w") == ["a.0.weight", "a.1.weight"]
    assert matching("*.weight", names, "w") == names
    assert matching("[ab].weight", names, "w") == ["b.weight"]
