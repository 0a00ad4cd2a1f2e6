"""Every stage that computes with torch, on a device other than the CPU: the same result, back on the CPU.

The tests marked gpu in test_devices.py and test_training.py run some of them on CUDA.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.data import batches, reestimate_batch_norm
from edgesmith.compressor.fusion.merge import Merge
from edgesmith.compressor.int8.qat import QuantizationAwareTraining
from edgesmith.compressor.learning.distill import Distill
from edgesmith.compressor.learning.distillation import DISTILLATIONS
from edgesmith.compressor.learning.feature_losses import FEATURES
from edgesmith.compressor.learning.finetune import Finetune
from edgesmith.compressor.learning.losses import task_loss
from edgesmith.compressor.learning.teaching import open_teacher
from edgesmith.compressor.pruning import channel_statistics, coupling
from edgesmith.compressor.pruning.importance import IMPORTANCES
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.pruning.prune_blocks import PruneBlocks
from edgesmith.compressor.stage import Context, Graph
from edgesmith.core.task import ArraySplit, Split, Task
from edgesmith.exporters.sessions.torch_session import TorchSession

from .conftest import Killed, kill_training, make_context
from .elsewhere import ELSEWHERE, Away, elsewhere

TRAINING: dict[str, Any] = {"id": "stage", "epochs": 1, "batch_size": 32, "learning_rate": 3e-3}
STAGES: dict[str, Any] = {
    **{
        f"prune by {name}": Prune(id="p", macs_ratio=0.6, importance=name, samples=16, batch_size=8)
        for name, importance in IMPORTANCES.items()
        if importance.needs != "nothing"
    },
    "prune-blocks": PruneBlocks(id="p", count=1, samples=16),
    "finetune": Finetune(**TRAINING, accumulation=2, max_gradient_norm=1.0, channels_last=True, class_report=True),
    "a probe first": Finetune(**TRAINING, probe_epochs=1),
    "layer by layer": Finetune(
        **TRAINING | {"epochs": 6}, unfreeze="gradual", layer_decay=0.5, class_weights="balanced"
    ),
    "adalora": Finetune(**TRAINING | {"epochs": 2, "batch_size": 16}, adapter="adalora"),
    "lwf": Finetune(**TRAINING, keep="lwf"),
    "ewc": Finetune(**TRAINING, keep="ewc", keep_samples=8),
    "pseudo-labels": Finetune(**TRAINING, pseudo_labels=0.9),
    **{loss: Distill(**TRAINING, loss=loss) for loss in DISTILLATIONS},
    **{features: Distill(**TRAINING, features=features) for features in FEATURES},
    "competence": Distill(**TRAINING, teachers=("original", "other"), teacher_weights="competence"),
    "mixup": Distill(**TRAINING, mixup=True),
    "asked once": Distill(**TRAINING, augment=False),
    "qat": QuantizationAwareTraining(**TRAINING, teacher="original"),
    **{
        f"merge by {rule}": Merge(id="m", members=("original", "other"), rule=rule, samples=8)
        for rule in ("fisher", "regmean")
    },
    "align": Merge(id="m", members=("original", "other"), align=True, samples=8),
}


class Misplaced(nn.Module):
    """Adds a tensor that does not move with the module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.offset = [torch.zeros(8, 8)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x + self.offset[0])


@pytest.fixture(scope="module")
def few(task: Task) -> Task:
    """The task with a few of its samples, some without labels."""

    def some(split: Split | None, start: int, count: int, labelled: bool = True) -> ArraySplit:
        assert split is not None
        inputs, labels = split.batch(np.arange(start, start + count))
        return ArraySplit(inputs, labels if labelled else None)

    train, validation = some(task.train, 0, 128), some(task.validation, 0, 64)
    made = dataclasses.replace(task, train=train, validation=validation, unlabelled=some(task.train, 128, 64, False))
    return dataclasses.replace(made, old=made)


@pytest.fixture
def here(few: Task, original: Candidate, tmp_path: Path) -> Context:
    """`other` is a network near the original."""
    weights = {name: 1.01 * each if each.is_floating_point() else each for name, each in original.weights.items()}
    named = {"original": original, "other": dataclasses.replace(original, weights=weights)}
    return make_context(few, tmp_path / "here", named)


@pytest.fixture
def there(here: Context, tmp_path: Path) -> Context:
    """The same, with a folder of its own."""
    (tmp_path / "there").mkdir()
    machine = dataclasses.replace(here.machine, device=ELSEWHERE.type)  # type: ignore[arg-type]  # it stands for CUDA
    return dataclasses.replace(here, machine=machine, work=tmp_path / "there", notes=[])


@pytest.mark.parametrize("name", STAGES)
def test_a_stage(name: str, original: Candidate, here: Context, there: Context) -> None:
    expected = STAGES[name].run(original, here)
    with elsewhere(same=isinstance(STAGES[name], (Finetune, Distill))):
        found = STAGES[name].run(original, there)
    assert there.notes == here.notes
    expected, found = tensors(expected), tensors(found)
    assert {type(each) for each in found.values()} == {torch.Tensor}
    assert {each.device.type for each in found.values()} == {"cpu"}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["finetune", "adalora", "ewc", "fitnets"])
def test_a_training_that_was_killed_goes_on_there(
    name: str, original: Candidate, here: Context, there: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its checkpoint holds comes from the CPU."""
    expected = STAGES[name].run(original, here)
    kill_training(monkeypatch, at=3)
    with elsewhere(same=True):
        with pytest.raises(Killed):
            STAGES[name].run(original, there)
        found = STAGES[name].run(original, there)
    torch.testing.assert_close(tensors(found), tensors(expected), rtol=1e-4, atol=1e-5)


def tensors(value: Candidate | Graph) -> dict[str, torch.Tensor]:
    """Weights by name."""
    if isinstance(value, Candidate):
        return dict(value.weights)
    constants = onnx.load(value.path).graph.initializer
    return {each.name: torch.tensor(onnx.numpy_helper.to_array(each)) for each in constants}


def test_importances_and_batch_norms_of_a_model_that_does_not_move(original: Candidate, there: Context) -> None:
    """What mixes devices is an error."""
    groups = [dataclasses.replace(group, members=()) for group in coupling.find(original.module(), original.example)]
    loss = task_loss(there.task)
    with elsewhere():
        module = Misplaced(original.module()).to(ELSEWHERE)
        data = list(batches(there, "train", 64, 32))
        for gather in (
            lambda: channel_statistics.activations(module, groups, data),
            lambda: channel_statistics.gradients(module, groups, data, lambda x, y: loss(module, x, y)),
            lambda: reestimate_batch_norm(module, there, 64, 32),
        ):
            with pytest.raises(RuntimeError, match="to be on the same device"):
                gather()


def test_sessions_and_teachers(original: Candidate, here: Context, there: Context) -> None:
    specs, images = here.task.input_specs(), here.task.validation.batch(np.arange(4))[0]
    expected = TorchSession(original.module(), specs, ("logits",)).run(images)["logits"]
    with elsewhere():
        session = TorchSession(original.module().to(ELSEWHERE), specs, ("logits",))
        session.bind(images)()
        np.testing.assert_allclose(session.run(images)["logits"], expected, rtol=1e-4, atol=1e-5)
        wrong = TorchSession(Misplaced(original.module()).to(ELSEWHERE), specs, ("logits",))
        with pytest.raises(RuntimeError, match="to be on the same device"):
            wrong.run(images)
        teacher = open_teacher(original, there)
        answer = teacher({"image": torch.tensor(images["image"], device=ELSEWHERE)})
        assert answer.device == ELSEWHERE
        np.testing.assert_allclose(answer.cpu().numpy(), expected, rtol=1e-4, atol=1e-5)
        with pytest.raises(RuntimeError, match="to be on the same device"):
            teacher({"image": torch.zeros(2, 1, 8, 8)})


def test_a_second_device_is_one() -> None:
    """The simulation itself: what CUDA refuses is refused."""
    with elsewhere():
        away = torch.arange(3.0).to(ELSEWHERE)
        assert isinstance(away + 1, Away) and float(away.sum()) == 3.0 and type(away.cpu()) is torch.Tensor
        assert float((away * torch.tensor(2.0)).sum()) == 6.0  # a single number may come from the CPU
        for wrong in (lambda: away + torch.ones(3), lambda: torch.ones(3)[away.long()], lambda: away.numpy()):
            with pytest.raises(RuntimeError):
                wrong()
        with pytest.raises(RuntimeError, match="generator of device"):
            torch.rand(2, generator=torch.Generator(), device=ELSEWHERE)
