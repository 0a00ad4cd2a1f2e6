"""Learning on mixtures: what they are, that labels do not count, and what cannot be mixed."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed

from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.learning.distill import Distill
from edgesmith.compressor.learning.mixup import mixtures
from edgesmith.core.errors import RecipeError
from edgesmith.core.task import ArraySplit, Task

from ..conftest import make_context


def test_a_mixture_lies_between_two_samples_of_the_batch() -> None:
    set_seed(0)
    images = torch.arange(64.0).view(64, 1, 1).expand(64, 3, 2)
    found = mixtures({"image": images, "angle": torch.arange(64.0) * 10})
    assert found["image"].shape == images.shape and found["angle"].shape == (64,)
    torch.testing.assert_close(found["image"][:, 0, 0] * 10, found["angle"])  # all inputs in the same shares
    assert (found["image"] == found["image"][:, :1, :1]).all()  # one share for a whole sample
    apart = found["image"][:, 0, 0] - torch.arange(64.0)
    assert 10 < float(apart.abs().mean()) < 22  # half of the way to another: 64 / 3 / 2
    assert abs(float(found["image"][:, 0, 0].mean()) - 31.5) < 3
    set_seed(0)
    torch.testing.assert_close(mixtures({"image": images})["image"], found["image"])


@pytest.mark.parametrize("seed", range(5))
def test_nobody_is_mixed_with_itself(seed: int) -> None:
    set_seed(seed)
    found = mixtures({"x": torch.eye(5)})["x"]
    assert ((found > 0).sum(1) == 2).all() and (found.sum(1) - 1).abs().max() < 1e-6


def test_labels_do_not_count(original: Candidate, task: Task, tmp_path: Path) -> None:
    torch.manual_seed(1)
    student = dataclasses.replace(original, weights=state_of(original.factory()))
    inputs = {"image": task.train.inputs["image"][:256]}
    wrong = (task.train.labels[:256] + 3) % 10
    results = []
    for number, labels in enumerate((task.train.labels[:256], wrong)):
        known = dataclasses.replace(task, train=ArraySplit(inputs, labels))
        (tmp_path / str(number)).mkdir()
        context = make_context(known, tmp_path / str(number), {"original": original})
        stage = Distill(id="d", epochs=10, batch_size=32, mixup=True, learning_rate=5e-3, augment=False)
        results.append(stage.run(student, context))
        assert context.notes[0].startswith("taught by original, on mixtures, best epoch ")
    assert results[0].digest() == results[1].digest()
    images = torch.tensor(inputs["image"])
    agree = (results[0].module()(images).argmax(1) == original.module()(images).argmax(1)).float().mean()
    assert float(agree) > 0.5  # of ten classes, from the teacher alone


def test_what_has_no_mean_is_refused(task: Task) -> None:
    tokens = ArraySplit({"tokens": np.ones((8, 5), np.int64)}, np.zeros(8, np.int64))
    texts = dataclasses.replace(task, train=tokens, test=tokens)
    with pytest.raises(RecipeError) as caught:
        Distill(id="d", mixup=True).check(texts, "w")
    assert str(caught.value) == "w.mixup: a mean of two samples is no sample where 'tokens' is int64"
