"""`--device`: what is missing for it is said before any work. The tests marked gpu run stages on CUDA, those of training
beside the others in test_training.py; test_elsewhere.py runs all of them on a device that is made up.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from edgesmith.compressor import job
from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.data import batches
from edgesmith.compressor.export import Export
from edgesmith.compressor.int8.quantize import Quantize
from edgesmith.compressor.learning.teaching import open_teacher
from edgesmith.compressor.pruning import channel_statistics, coupling
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.stage import Context, Machine
from edgesmith.core.errors import RecipeError, UsageError
from edgesmith.core.task import Task
from edgesmith.core.values import TensorSpec
from edgesmith.exporters.sessions.torch_session import TorchSession, forward


def test_statistics_do_not_depend_on_where_they_are_taken(original: Candidate, context: Context) -> None:
    """They come back to the CPU, whatever the module ran on."""
    groups = coupling.find(original.module(), original.example)
    found = channel_statistics.activations(original.module(), groups, batches(context, "train", 64, 32))
    assert {tensor.device.type for tensor in found.activation.values()} == {"cpu"}
    # By hand for one layer: the mean of |x| over what the head reads.
    values: list[torch.Tensor] = []
    module = original.module()
    module.head.register_forward_pre_hook(lambda layer, inputs: values.append(inputs[0].detach().abs()))  # type: ignore[union-attr]
    with torch.no_grad():
        for inputs, _ in batches(context, "train", 64, 32):
            module(*inputs.values())
    torch.testing.assert_close(found.activation["head"], torch.cat(values).mean(0))


def test_a_teacher_that_is_a_file_has_the_tasks_output(original: Candidate, context: Context) -> None:
    graph = Export(id="e").run(original, context)
    other = dataclasses.replace(context, task=dataclasses.replace(context.task, outputs=("scores",)))
    with pytest.raises(RecipeError) as caught:
        open_teacher(graph, other)
    assert str(caught.value) == (
        f"stages[0] 'stage'.teacher: {graph.path} has the outputs ['logits'], but the task's first is 'scores'"
    )


def test_no_cuda_device(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError) as caught:
        job.prepare(recipe(), task, machine=Machine(device="cuda"))
    assert str(caught.value) == "--device cuda: no CUDA device here; use --device cpu"


def recipe(*stages: dict[str, Any]) -> dict[str, Any]:
    return {"task": "task.py", "stages": [*stages, {"use": "export"}], "limits": {"drop": 0.1}}


def test_an_onnx_runtime_without_cuda(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device alone does not do: calibration runs in ONNX Runtime. Said before any work; never a way back to the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    wanted = recipe()
    wanted["stages"].append({"use": "quantize"})
    with pytest.raises(RecipeError) as caught:
        job.prepare(wanted, task, machine=Machine(device="cuda"))
    assert str(caught.value) == (
        f"--device cuda: this ONNX Runtime {onnxruntime.__version__} cannot run on 'cuda'; "
        "pip install onnxruntime-gpu; or use --device cpu"
    )


def test_calibration_does_not_fall_back(original: Candidate, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Export(id="e").run(original, context)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    there = dataclasses.replace(context, machine=Machine(device="cuda"))
    with pytest.raises(UsageError, match=r"cannot run on 'cuda'; pip install onnxruntime-gpu$"):
        Quantize(id="q").run(graph, there)


@pytest.fixture
def on_cuda(context: Context) -> Context:
    return dataclasses.replace(context, machine=dataclasses.replace(context.machine, device="cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("importance", ["taylor", "activation"])
def test_pruning_on_cuda(
    importance: str, original: Candidate, context: Context, on_cuda: Context, accuracy: Callable[[Candidate], float]
) -> None:
    stage = Prune(id="p", macs_ratio=0.6, importance=importance)
    there, here = stage.run(original, on_cuda), stage.run(original, context)
    assert all(tensor.device.type == "cpu" for tensor in there.weights.values())
    assert there.parameters() == pytest.approx(here.parameters(), rel=0.05)
    assert accuracy(there) == pytest.approx(accuracy(here), abs=0.1)


@pytest.mark.gpu
def test_calibration_on_cuda(original: Candidate, context: Context, on_cuda: Context) -> None:
    """The same ranges as on the CPU. Needs onnxruntime-gpu in place of onnxruntime on the machine with the device."""
    graph = Export(id="e").run(original, context)
    there = Quantize(id="q", samples=128).run(graph, on_cuda).params
    here = Quantize(id="q", samples=128).run(graph, context).params
    assert there is not None and here is not None
    assert set(there) == set(here)
    for name, params in here.items():
        np.testing.assert_allclose(there[name].scale, params.scale, rtol=0.02)


@pytest.mark.gpu
def test_a_teacher_that_is_a_file_on_cuda(original: Candidate, context: Context, on_cuda: Context) -> None:
    graph = Export(id="e").run(original, context)
    (inputs, _), *_ = batches(on_cuda, "train", 8, 8)
    by_file, by_module = open_teacher(graph, on_cuda)(inputs), open_teacher(original, on_cuda)(inputs)
    assert by_file.device.type == by_module.device.type == "cuda"
    torch.testing.assert_close(by_file, by_module, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_a_session_on_cuda() -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 3))
    module = nn.Linear(3, 2)
    x = {"x": np.ones((2, 3), np.float32)}
    expected = TorchSession(module, (spec,), ("y",)).run(x)["y"]
    session = TorchSession(module.cuda(), (spec,), ("y",))
    session.bind(x)()
    np.testing.assert_allclose(session.run(x)["y"], expected, rtol=1e-3)
    assert forward(module, {"x": torch.ones(2, 3, device="cuda")}, ["y"])["y"].device.type == "cuda"
