"""The training loop: what it learns, what it keeps, and that a kill changes nothing."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.export import Export
from edgesmith.compressor.int8.qat import QuantizationAwareTraining
from edgesmith.compressor.learning.distill import Distill
from edgesmith.compressor.learning.finetune import Finetune
from edgesmith.compressor.learning.training_data import TrainingData
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.stage import Context
from edgesmith.core.errors import DataError, RecipeError, TaskError, TrainingError
from edgesmith.core.task import ArraySplit, Metric, Task

from ..conftest import Killed, kill_training

FAST: dict[str, Any] = {"id": "t", "epochs": 3, "learning_rate": 2e-3}


@pytest.fixture(scope="module")
def pruned(original: Candidate, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    context = Context(
        task=task,
        machine=training_machine(),
        targets=("onnxruntime-cpu",),
        work=tmp_path_factory.mktemp("work"),
        progress=silent(),
        named={"original": original}.__getitem__,
        where="stages[0] 'prune'",
    )
    return Prune(id="p", macs_ratio=0.35, round_to=1).run(original, context)


def training_machine() -> Any:
    from edgesmith.compressor.stage import Machine

    return Machine()


def silent() -> Any:
    from edgesmith.compressor.progress import Progress

    return Progress()


@pytest.mark.parametrize("stage", [Finetune, Distill])
def test_training_gives_accuracy_back(
    stage: Any, pruned: Candidate, context: Context, accuracy: Callable[[Candidate], float]
) -> None:
    trained = stage(**FAST).run(pruned, context)
    assert accuracy(trained) > accuracy(pruned) + 0.05
    assert accuracy(trained) > 0.93
    assert trained.edits == pruned.edits


def test_a_distilled_student_agrees_with_its_teacher(pruned: Candidate, original: Candidate, context: Context) -> None:
    """Without a single label: the soft part alone, on unlabelled images, brings the student to the teacher's answers."""
    bare = ArraySplit({"image": context.task.train.inputs["image"]})
    unlabelled = dataclasses.replace(context, task=dataclasses.replace(context.task, train=None, unlabelled=bare))
    student = Distill(**FAST).run(pruned, unlabelled)
    images = torch.tensor(context.task.validation.inputs["image"])
    with torch.no_grad():
        answers = {name: c.module()(images).argmax(1) for name, c in (("t", original), ("s", student), ("p", pruned))}
    agreement = {name: float((answers[name] == answers["t"]).float().mean()) for name in ("s", "p")}
    assert agreement["s"] > 0.93
    assert agreement["s"] > agreement["p"] + 0.05


@pytest.mark.parametrize(
    "keys", [{}, {"accumulation": 2, "optimizer": "sgd", "max_gradient_norm": 1.0, "channels_last": True}]
)
def test_a_killed_training_ends_with_the_same_weights(
    keys: dict[str, Any], pruned: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps before, inside and after an epoch's end (16 steps each); dropout and augmentation included."""
    stage = Finetune(**{**FAST, **keys})
    candidate = dataclasses.replace(pruned, factory=lambda: with_dropout(pruned.factory()))
    whole = stage.run(candidate, dataclasses.replace(context, work=fresh(context, "whole")))
    for killed_at in (4, 20, 33):
        broken = dataclasses.replace(context, work=fresh(context, f"broken-{killed_at}"))
        with monkeypatch.context() as patch:
            taken = kill_training(patch, killed_at)
            with pytest.raises(Killed):
                stage.run(candidate, broken)
            resumed = stage.run(candidate, broken)
        assert len(taken) < 2 * killed_at + 48  # it did go on, not begin again
        assert resumed.digest() == whole.digest(), killed_at


def fresh(context: Context, name: str) -> Any:
    folder = context.work / name
    folder.mkdir()
    return folder


def with_dropout(module: nn.Module) -> nn.Module:
    module.stage1.append(nn.Dropout2d(0.1))  # type: ignore[union-attr, operator]
    return module


def test_the_best_epoch_is_kept_even_if_it_is_the_start(original: Candidate, context: Context) -> None:
    """A learning rate that ruins a good network: the network stays."""
    ruined = Finetune(id="t", epochs=2, learning_rate=0.5, optimizer="sgd").run(original, context)
    assert ruined.digest() == Candidate.of(original.module(), original).digest()
    assert context.notes[-1] == "best epoch 0 of 2"


def test_patience_stops_early(original: Candidate, context: Context) -> None:
    Finetune(id="t", epochs=9, patience=2, learning_rate=0.5, optimizer="sgd").run(original, context)
    assert context.notes[-1] == "best epoch 0 of 2"


def test_a_diverged_loss_is_an_error(original: Candidate, context: Context) -> None:
    task = dataclasses.replace(
        context.task, augment=lambda inputs, generator: {"image": inputs["image"] * float("nan")}
    )
    changed = dataclasses.replace(context, task=task)
    with pytest.raises(
        TrainingError, match=r"stages\[0\] 'stage': the loss became (nan|inf) at epoch 1, step \d+; lower learning_rate"
    ):
        Finetune(id="t", epochs=2, learning_rate=1.0, optimizer="sgd").run(original, changed)


def far_too_fast(**keys: Any) -> dict[str, Any]:
    """One step an epoch, whose loss is still that of the start."""
    return {"id": "t", "epochs": 2, "batch_size": 2000, "optimizer": "sgd", "augment": False, **keys}


def test_a_step_that_leaves_nothing_to_judge_is_a_divergence(original: Candidate, context: Context) -> None:
    """Its loss was finite; it was said to be the preprocessing."""
    with pytest.raises(TrainingError) as caught:
        Finetune(**far_too_fast(learning_rate=1e30)).run(original, context)
    assert str(caught.value) == (
        "stages[0] 'stage': the network that epoch 1 left cannot be judged (metric 'accuracy': the model's output is NaN or "
        "infinite for 360 of 360 samples (first: sample 0); check the weights and the input preprocessing); lower "
        "learning_rate (now 1e+30) or set max_gradient_norm"
    )


def test_such_a_rate_is_out_of_a_search(original: Candidate, context: Context) -> None:
    Finetune(**far_too_fast(learning_rates=(1e-3, 1e30))).run(original, context)
    assert context.notes[0].startswith("learning rate 0.001, the best of ")
    assert context.notes[0].endswith(", 1e+30 diverges")


def test_a_metric_that_is_undefined_at_the_start_is_no_reason_to_keep_it(original: Candidate, context: Context) -> None:
    """As a precision where nothing has been answered yet: any number is better than none."""
    values = iter([float("nan"), 0.2, 0.6, 0.4])

    def reduced(rows: np.ndarray) -> float:
        return next(values)

    metric = Metric(name="m", scores=lambda out, labels: np.zeros(len(labels)), kind="statistic", reduce=reduced)
    changed = dataclasses.replace(context, task=dataclasses.replace(context.task, metrics=(metric,)))
    Finetune(**FAST).run(original, changed)
    assert changed.notes == ["best epoch 2 of 3"]


def test_bfloat16_trains(pruned: Candidate, context: Context, accuracy: Callable[[Candidate], float]) -> None:
    trained = Finetune(**{**FAST, "epochs": 2}, mixed_precision="bf16").run(pruned, context)
    assert accuracy(trained) > accuracy(pruned)
    assert all(tensor.dtype != torch.bfloat16 for tensor in trained.weights.values())


def test_channels_last_is_a_layout_and_nothing_else(
    pruned: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The convolutions really see it; the first step computes the same up to rounding; what is kept is contiguous."""
    seen: list[bool] = []
    convolve = nn.Conv2d.forward

    def watched(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        if layer.training and layer.in_channels > 1:
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
        return convolve(layer, x)

    monkeypatch.setattr(nn.Conv2d, "forward", watched)
    keys = {**FAST, "epochs": 1, "batch_size": 1024, "optimizer": "sgd"}  # a single step
    plain, last = (
        Finetune(**keys, channels_last=on).run(pruned, dataclasses.replace(context, work=fresh(context, str(on))))
        for on in (False, True)
    )
    assert seen == [False] * (len(seen) // 2) + [True] * (len(seen) // 2)
    assert last.digest() != pruned.digest()
    for name, tensor in last.weights.items():
        torch.testing.assert_close(tensor, plain.weights[name], rtol=1e-2, atol=1e-4)
        assert tensor.is_contiguous()


def test_order_depends_on_seed_and_epoch_alone() -> None:
    data = TrainingData(ArraySplit({"x": np.zeros((10, 1), np.float32)}, np.arange(10)))
    first, again, other = data.order(0, 0, 4), data.order(0, 0, 4), data.order(0, 1, 4)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert len(np.unique(np.concatenate(first))) == 8


def test_labelled_samples_come_first() -> None:
    data = TrainingData(
        ArraySplit({"x": np.arange(4, dtype=np.float32)}, np.arange(4)),
        ArraySplit({"x": np.arange(10, 16, dtype=np.float32)}),
    )
    inputs, labels, labelled = data.batch(np.array([1, 3, 4, 9]), None, 0, torch.device("cpu"))
    assert inputs["x"].tolist() == [1, 3, 10, 15]
    assert labels is not None
    assert labels.tolist() == [1, 3]
    assert labelled == 2


def test_augmented_inputs_are_passed_in_the_order_of_the_task() -> None:
    """Modules are called by position, whatever order the augmentation builds its answer in."""
    split = ArraySplit({"a": np.zeros((4, 1), np.float32), "b": np.ones((4, 1), np.float32)})

    def reversed_and_doubled(inputs: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {name: 2 * inputs[name] for name in reversed(inputs)}

    inputs, _, _ = TrainingData(None, split).batch(np.arange(4), reversed_and_doubled, 0, torch.device("cpu"))
    assert [(name, float(tensor.max())) for name, tensor in inputs.items()] == [("a", 0.0), ("b", 2.0)]


AS_GIVEN = "return a tensor of torch.float32 with the 64 samples it was given on axis 0"


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (lambda x, g: None, "returned NoneType; return a tensor for each of ['image']"),
        (lambda x, g: {"images": x["image"]}, "returned ['images']; return a tensor for each of ['image']"),
        (lambda x, g: {**x, "more": x["image"]}, "returned ['image', 'more']; return a tensor for each of ['image']"),
        (
            lambda x, g: {"image": x["image"].numpy()},
            f"returned 'image' as ndarray float32 (64, 1, 8, 8); {AS_GIVEN}",
        ),
        (
            lambda x, g: {"image": x["image"].double()},
            f"returned 'image' as Tensor torch.float64 (64, 1, 8, 8); {AS_GIVEN}",
        ),
        (lambda x, g: {"image": x["image"][:5]}, f"returned 'image' as Tensor torch.float32 (5, 1, 8, 8); {AS_GIVEN}"),
        (lambda x, g: {"image": x["picture"]}, "raised KeyError: 'picture' (test_training.py, line"),
    ],
)
def test_an_augmentation_that_gives_something_else_back(augment: Any, message: str, context: Context) -> None:
    data = TrainingData(context.task.train)
    with pytest.raises(TaskError) as caught:
        data.batch(np.arange(64), augment, 0, torch.device("cpu"))
    assert str(caught.value).startswith(f"the task's augment {message}")


def test_an_augmentation_may_turn_bytes_into_floats() -> None:
    data = TrainingData(ArraySplit({"image": np.full((4, 3), 8, np.uint8)}))
    inputs, _, _ = data.batch(np.arange(4), lambda x, g: {"image": x["image"] / 4}, 0, torch.device("cpu"))
    assert inputs["image"].tolist() == [[2.0] * 3] * 4
    with pytest.raises(TaskError, match=r"^the task's augment returned 'image' as Tensor torch.float32 \(\); "):
        data.batch(np.arange(4), lambda x, g: {"image": x["image"].float().mean()}, 0, torch.device("cpu"))


def test_an_onnx_file_teaches(pruned: Candidate, original: Candidate, context: Context) -> None:
    """A teacher that is only a file gives the same lesson as the module it was exported from."""
    graph = Export(id="e").run(original, context)
    by_module = Distill(**FAST).run(pruned, dataclasses.replace(context, work=fresh(context, "module")))
    changed = dataclasses.replace(context, work=fresh(context, "file"), named=lambda name: graph)
    by_file = Distill(**FAST).run(pruned, changed)
    for name, tensor in by_module.weights.items():
        torch.testing.assert_close(by_file.weights[name], tensor, rtol=0.02, atol=0.02)


def test_another_student_is_taught_in_place_of_the_input(original: Candidate, context: Context) -> None:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    student = Candidate(factory=Tiny, example=original.example, edits=(), weights=state_of(Tiny()))
    named = {"original": original, "tiny": student}.__getitem__
    taught = Distill(**FAST, student="tiny").run(original, dataclasses.replace(context, named=named))
    assert taught.factory is Tiny
    assert taught.digest() != student.digest()


def test_a_teacher_with_other_outputs_is_refused(pruned: Candidate, context: Context) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 7)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1))

    teacher = Candidate(factory=Other, example=pruned.example, edits=(), weights=state_of(Other()))
    with pytest.raises(
        DataError, match=r"output 'logits' is \(64, 10\) for the student, \(64, 7\) for teacher 'original'"
    ):
        Distill(**FAST).run(pruned, dataclasses.replace(context, named=lambda name: teacher))
    for stage in (Distill(**FAST), QuantizationAwareTraining(**FAST)):  # before any work, on the example's samples
        with pytest.raises(DataError) as caught:
            stage.rehearse(pruned, dataclasses.replace(context, named=lambda name: teacher))
        assert str(caught.value) == (
            "stages[0] 'stage': output 'logits' is (2, 10) for the student, (2, 7) for teacher 'original'; they must agree"
        )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"optimizer": "adamm"}, "w.optimizer: unknown 'adamm'; did you mean 'adam'? known: adam, adamw, sgd"),
        ({"schedule": "cosin"}, "w.schedule: unknown 'cosin'; did you mean 'cosine'? known: constant, cosine, linear"),
    ],
)
def test_unknown_choices_are_refused(keys: dict[str, Any], message: str, task: Task) -> None:
    with pytest.raises(RecipeError) as caught:
        Finetune(id="t", **keys).check(task, "w")
    assert str(caught.value) == message


def test_missing_data_is_refused_before_any_work(task: Task) -> None:
    with pytest.raises(TaskError, match="task 'digits': w needs the 'train' split; set train= in the task"):
        Finetune(id="t").check(dataclasses.replace(task, train=None), "w")
    bare = ArraySplit({"image": np.zeros((4, 1, 8, 8), np.float32)})
    with pytest.raises(TaskError, match="task 'digits': w needs labels, and the 'train' split has none"):
        Finetune(id="t").check(dataclasses.replace(task, train=bare), "w")
    with pytest.raises(TaskError, match="w: choosing the best epoch needs the 'validation' split"):
        Distill(id="t").check(dataclasses.replace(task, validation=None), "w")
    with pytest.raises(RecipeError, match=r"w\.student: 'tiny' is not in the task's models; known: none"):
        Distill(id="t", student="tiny").check(task, "w")


def test_cuda_without_a_device_is_refused(original: Candidate, context: Context) -> None:
    if torch.cuda.is_available():
        return  # the tests marked gpu train on it
    machine = dataclasses.replace(context.machine, device="cuda")
    with pytest.raises(RecipeError, match="--device cuda, but there is no CUDA device; use --device cpu"):
        Finetune(**FAST).run(original, dataclasses.replace(context, machine=machine))


@pytest.mark.gpu
@pytest.mark.parametrize("stage", [Finetune, Distill])
def test_training_on_cuda(
    stage: Any, pruned: Candidate, context: Context, accuracy: Callable[[Candidate], float]
) -> None:
    machine = dataclasses.replace(context.machine, device="cuda")
    trained = stage(**FAST).run(pruned, dataclasses.replace(context, machine=machine))
    assert accuracy(trained) > accuracy(pruned) + 0.05
    assert all(tensor.device.type == "cpu" for tensor in trained.weights.values())
