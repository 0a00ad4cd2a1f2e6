"""A run that is killed goes on in a process that knows nothing of what the rehearsal found."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.pruning import dry_run, kept_trials
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.core.task import ArraySplit, Task

from ..conftest import make_context
from .test_prune_refusals import Tokens

STAGES = [
    Prune(id=name, macs_ratio=0.7, allocation="uniform", importance=importance, round_to=1, samples=8, batch_size=8)
    for name, importance in (("first", "taylor"), ("second", "magnitude-l2"))
]


def untrained() -> torch.nn.Module:
    return Tokens("nothing")


def process(work: Path, monkeypatch: pytest.MonkeyPatch, trained: Path, begin: int) -> list[Candidate]:
    """What a process does: rehearse all stages with fresh weights, then run those from `begin` on, with a file's."""
    monkeypatch.setattr(dry_run, "_kept", kept_trials.KeptTrials())
    images = np.random.default_rng(0).standard_normal((16, 6, 3)).astype(np.float32)
    split = ArraySplit({"x": images}, np.arange(16) % 5)

    def factory() -> torch.nn.Module:  # another one in each process
        return untrained()

    task = Task(
        name="t",
        model=factory,
        loss="cross-entropy",
        train=split,
        validation=split,
        test=split,
        outputs=("logits",),
    )
    example = {"x": torch.tensor(images[:2])}
    value = Candidate(factory=factory, example=example, edits=(), weights=state_of(factory()))
    for stage in STAGES:
        value = stage.rehearse(value, make_context(task, work / f"rehearse-{stage.id}", {"original": value}))
    found = [Candidate.load(trained, factory)]
    for stage in STAGES[begin:]:
        found.append(stage.run(found[-1], make_context(task, work / stage.id, {"original": found[0]})))
    return found[1:]


def test_a_resumed_run_takes_out_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    example = {"x": torch.randn(2, 6, 3)}
    trained = Candidate(factory=untrained, example=example, edits=(), weights=state_of(untrained()))
    trained.save(tmp_path / "original.safetensors")
    first, second = process(tmp_path / "whole", monkeypatch, tmp_path / "original.safetensors", 0)
    assert any(edit.attributes for edit in first.edits)  # heads left, and were counted
    assert second.parameters() < first.parameters() < trained.parameters()
    again, _ = process(tmp_path / "killed in the first", monkeypatch, tmp_path / "original.safetensors", 0)
    first.save(tmp_path / "first.safetensors")
    (resumed,) = process(tmp_path / "killed in the second", monkeypatch, tmp_path / "first.safetensors", 1)
    for ours, theirs in ((again, first), (resumed, second)):
        assert ours.edits == theirs.edits
        assert ours.weights.keys() == theirs.weights.keys()
        assert all(torch.equal(tensor, theirs.weights[name]) for name, tensor in ours.weights.items())
