"""`compare`: the same start, the same epochs, with a teacher and without; what is kept and what is said."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgesmith.benches.metrics import accuracy as paired
from edgesmith.benches.metrics.metrics import METRICS
from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.compare import Comparison, compare
from edgesmith.compressor.learning.distill import Distill
from edgesmith.compressor.learning.finetune import Finetune
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.stage import Context
from edgesmith.core.errors import TaskError
from edgesmith.core.task import ArraySplit, Task
from edgesmith.core.values import Interval

from .conftest import Killed, kill_training, make_context

FAST: dict[str, Any] = {"id": "d", "epochs": 1, "learning_rate": 2e-3}


@pytest.fixture(scope="module")
def pruned(original: Candidate, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    return Prune(id="p", macs_ratio=0.35, round_to=1).run(
        original, make_context(task, tmp_path_factory.mktemp("prune"), {})
    )


def test_the_better_one_on_validation_is_kept(
    pruned: Candidate, original: Candidate, task: Task, tmp_path: Path, accuracy: Callable[[Candidate], float]
) -> None:
    """Both are those of the two stages alone, to the bit, and the note holds both figures and their interval."""
    contexts = {name: make_context(task, tmp_path / name, {"original": original}) for name in ("d", "f", "both")}
    taught = Distill(**FAST).run(pruned, contexts["d"])
    plain = Finetune(**FAST).run(pruned, contexts["f"])
    kept = Distill(**FAST, compare=True).run(pruned, contexts["both"])
    better = taught if accuracy(taught) >= accuracy(plain) else plain
    assert kept.digest() == better.digest()
    assert contexts["both"].notes[0] == contexts["d"].notes[0]
    assert contexts["both"].notes[1] == f"without a teacher: {contexts['f'].notes[0]}"
    note = contexts["both"].notes[2]
    found = re.fullmatch(
        r"accuracy on validation: taught (\S+), plain (\S+), gain (\S+) \((\S+) to (\S+)\): taught is [a-z ]+; "
        r"kept: (taught|plain)",
        note,
    )
    assert found is not None
    assert [float(found[1]), float(found[2])] == [
        pytest.approx(accuracy(taught), abs=1e-4),
        pytest.approx(accuracy(plain), abs=1e-4),
    ]
    assert float(found[4]) <= float(found[3]) <= float(found[5])


def test_a_teacher_that_knows_nothing_is_left(pruned: Candidate, task: Task, tmp_path: Path) -> None:
    """An untrained teacher ruins the lesson; the run says so, and the plainly trained one goes on."""
    torch.manual_seed(3)
    ignorant = dataclasses.replace(pruned, edits=(), weights=task.model().state_dict())
    context = make_context(task, tmp_path, {"original": ignorant})
    kept = Distill(**FAST, weight=30.0, compare=True).run(pruned, context)
    plain = Finetune(**FAST).run(pruned, make_context(task, tmp_path / "f", {}))
    assert kept.digest() == plain.digest()
    assert context.notes[2].endswith(": taught is worse; kept: plain")


def test_the_gain_is_the_paired_one(pruned: Candidate, original: Candidate, context: Context) -> None:
    found = compare(original, pruned, context)
    split, metric = context.task.validation, METRICS["accuracy"]
    images = torch.tensor(split.inputs["image"])
    with torch.no_grad():
        right = [np.asarray(c.module()(images).argmax(1)) == split.labels for c in (original, pruned)]
    expected = paired.paired_drop(metric, *(each.astype(float) for each in right), 0.95)
    assert found.gain == expected
    assert found.values == tuple(pytest.approx(each.mean()) for each in right)
    assert found.first_is_better
    assert not compare(pruned, original, context).first_is_better


@pytest.mark.parametrize(
    ("gain", "said", "kept"),
    [
        ((0.02, 0.01, 0.03), "better", "taught"),
        ((0.01, -0.01, 0.03), "not shown to be better or worse", "taught"),
        ((-0.01, -0.03, 0.01), "not shown to be better or worse", "plain"),
        ((-0.02, -0.03, -0.01), "worse", "plain"),
    ],
)
def test_what_the_interval_does_not_show_is_not_said(gain: tuple[float, float, float], said: str, kept: str) -> None:
    value, low, high = gain
    found = Comparison(metric="f1", values=(0.9, 0.9 - value), gain=Interval(value=value, low=low, high=high))
    assert found.note("taught", "plain") == (
        f"f1 on validation: taught 0.9000, plain {0.9 - value:.4f}, gain {value:.4f} ({low:.4f} to {high:.4f}): "
        f"taught is {said}; kept: {kept}"
    )


def test_a_killed_comparison_goes_on_where_it_was(
    pruned: Candidate,
    original: Candidate,
    task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the second training, 16 steps each: the first, which was finished, is not done again."""
    stage = Distill(**FAST, compare=True)
    whole_context = make_context(task, tmp_path / "whole", {"original": original})
    whole = stage.run(pruned, whole_context)
    taken = kill_training(monkeypatch, 25)
    broken = make_context(task, tmp_path / "broken", {"original": original})
    with pytest.raises(Killed):
        stage.run(pruned, broken)
    again = dataclasses.replace(broken, notes=[])
    assert stage.run(pruned, again).digest() == whole.digest()
    assert again.notes == whole_context.notes
    assert len(taken) == 33  # each step once, and the one that died again


def test_there_is_nothing_to_compare_with_without_labels(task: Task) -> None:
    bare = dataclasses.replace(task, train=None, unlabelled=ArraySplit(task.train.inputs))
    with pytest.raises(TaskError) as caught:
        Distill(id="d", compare=True).check(bare, "w")
    assert str(caught.value) == "task 'digits': w.compare needs the 'train' split; set train= in the task"
