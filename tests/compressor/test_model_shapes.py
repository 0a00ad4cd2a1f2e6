"""Models as users have them: each goes through prune, save, export and INT8 with equal outputs, or is refused in words."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgesmith.compressor import job
from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.data import any_inputs
from edgesmith.compressor.export import Export
from edgesmith.compressor.int8.quantize import Quantize
from edgesmith.compressor.model_checks import check_built, check_loaded
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.stage import Context, Graph
from edgesmith.core.errors import DataError, ExportError, TaskError
from edgesmith.core.task import ArraySplit, Task
from edgesmith.exporters.graph import graph_stats, onnx_file
from edgesmith.exporters.graph.canonical import canonicalise
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession
from edgesmith.exporters.sessions.torch_session import TorchSession
from edgesmith.exporters.targets.targets import TARGETS

from .conftest import make_context

RNG = np.random.default_rng(3)


class Net(nn.Module):
    """Two convolutions and a head, for images `(N, 1, 8, 8)`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu()).relu().mean((2, 3))

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.features(x))


class Tied(Net):
    """Two layers, one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Conv2d(16, 16, 3, padding=1)
        self.third.weight = self.second.weight
        self.last = nn.Conv2d(16, 24, 1)
        self.head = nn.Linear(24, 10)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.third(self.second(self.first(x).relu()).relu()).relu()
        return self.last(x).relu().mean((2, 3))


class Twice(Net):
    """One layer called twice."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.second(self.first(x).relu()).relu()).relu().mean((2, 3))


class Noisy(Net):
    """Other outputs in training mode, which the factory leaves it in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(16), nn.Dropout(0.5)
        self.train()

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(self.second(self.first(x).relu())).relu().mean((2, 3)))


class TwoInTwoOut(Net):
    """Named outputs, in another order than the task's, and one that nobody asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 16)

    def forward(self, x: torch.Tensor, side: torch.Tensor) -> Any:
        features = self.features(x) * self.gate(side).sigmoid()
        return {"features": features, "logits": self.head(features), "unused": x}


class HalfIn(Net):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x.float())


def hooked() -> Net:
    """A hook of the factory's own changes what the layer gives."""
    module = Net()
    module.first.register_forward_hook(lambda layer, inputs, output: output * 2.0)
    return module


def normed() -> Net:
    module = Net()
    nn.utils.parametrizations.weight_norm(module.first)
    return module


def images(count: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    return {"image": RNG.standard_normal((count, 1, 8, 8)).astype(dtype)}


def make_task(
    model: Callable[[], Any] | str,
    inputs: Callable[[int], Mapping[str, np.ndarray]] = images,
    outputs: tuple[str, ...] = ("logits",),
    **keys: Any,
) -> Task:
    split = [ArraySplit(inputs(48), np.arange(48) % 10) for _ in range(3)]
    return Task(name="shapes", model=model, train=split[0], validation=split[1], test=split[2], outputs=outputs, **keys)


def candidate_of(task: Task) -> Candidate:
    assert callable(task.model)
    module = task.model()
    check_built(module, "model")
    example = {name: torch.tensor(array) for name, array in any_inputs(task, 2).items()}
    return Candidate(factory=task.model, example=example, edits=(), weights=state_of(module))


def outputs_of(module: nn.Module, task: Task) -> dict[str, np.ndarray]:
    return TorchSession(module, task.input_specs(), task.outputs).run(any_inputs(task))


def through(candidate: Candidate, task: Task, work: Path) -> None:
    """Save and load, export, quantize: every step gives the outputs of the one before, INT8 within its rounding."""
    candidate.save(work / "model.safetensors")
    again = Candidate.load(work / "model.safetensors", candidate.factory, candidate.example)
    assert again.digest() == candidate.digest()
    expected = outputs_of(candidate.module(), task)
    context = make_context(task, work / "stages", {"original": candidate})
    for name, values in outputs_of(again.module(), task).items():
        np.testing.assert_array_equal(values, expected[name])
    graph = Export(id="e").run(again, context)  # compares at three batch sizes itself
    _, parameters = graph_stats.macs_and_parameters(onnx_file.load(graph.path))
    assert parameters == pytest.approx(candidate.parameters(), rel=0.02)  # folded norms, one number for one weight
    quantized(graph, task, expected, context)


def quantized(graph: Graph, task: Task, expected: Mapping[str, np.ndarray], context: Context) -> None:
    params = Quantize(id="q", samples=32).run(graph, dataclasses.replace(context, work=graph.path.parent))
    model, target = canonicalise(onnx_file.load(params.path)), TARGETS["onnxruntime-cpu"]
    for dialect in target.dialects():
        artifact = target.write(model, params.params, dialect, graph.path.parent / f"{dialect.name}.onnx")
        found = OnnxRuntimeSession(artifact.path).run(any_inputs(task))
        for name, values in expected.items():
            assert float(np.abs(found[name] - values).max()) < 0.06 * float(np.abs(values).max())


def both(count: int) -> dict[str, np.ndarray]:
    return {**images(count), "side": RNG.standard_normal((count, 4)).astype(np.float32)}


CASES: dict[str, tuple[Task, list[str]]] = {
    "train mode": (make_task(Noisy), []),
    "hook of the factory": (make_task(hooked), []),
    "one layer twice": (make_task(Twice), []),
    "two inputs, named outputs": (make_task(TwoInTwoOut, both, ("logits", "features")), []),
    "half inputs": (make_task(HalfIn, lambda count: images(count, "float16")), []),
    "weight norm": (
        make_task(normed),
        ["not pruned: first: the weights of first are parametrized; fold them with remove_parametrizations first"],
    ),
    "tied": (
        make_task(Tied),
        [
            "not pruned: first: weights of second are tied to third.weight; cutting them would untie them",
            "not pruned: second: weights of second are tied to third.weight; cutting them would untie them",
            "not pruned: third: weights of third are tied to second.weight; cutting them would untie them",
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_goes_through_whole_and_pruned(case: str, tmp_path: Path) -> None:
    task, notes = CASES[case]
    original = candidate_of(task)
    through(original, task, tmp_path)
    context = make_context(task, tmp_path / "prune", {"original": original})
    pruned = Prune(id="p", channel_ratio=0.8, round_to=1).run(original, context)
    assert pruned.parameters() < original.parameters()
    assert [note for note in context.notes if "not pruned" in note and "model's output" not in note] == notes
    (tmp_path / "pruned").mkdir()
    through(pruned, task, tmp_path / "pruned")


def test_tied_weights_are_counted_and_stay_one(tmp_path: Path) -> None:
    task = CASES["tied"][0]
    original = candidate_of(task)
    separate = sum(tensor.numel() for tensor in original.weights.values())
    assert original.parameters() == separate - 16 * 16 * 9
    pruned = Prune(id="p", channel_ratio=0.8, round_to=1).run(
        original, make_context(task, tmp_path, {"original": original})
    )
    module = pruned.module()
    assert module.second.weight is module.third.weight


def test_training_mode_is_not_what_is_measured() -> None:
    task = CASES["train mode"][0]
    original = candidate_of(task)
    np.testing.assert_array_equal(*(outputs_of(original.module(), task)["logits"] for _ in range(2)))
    inputs = torch.tensor(any_inputs(task)["image"])
    module = original.module().train()
    assert not torch.equal(module(inputs), module(inputs))


def test_other_dynamic_axes_of_a_file_stay_dynamic(tmp_path: Path) -> None:
    """A file whose height and width are open: INT8 from 8x8 samples also runs, and agrees, at 12x10."""
    torch.manual_seed(0)
    task = make_task(Net)
    context = make_context(task, tmp_path, {})
    model = onnx_file.load(Export(id="e").run(candidate_of(task), context).path)
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "open.onnx")
    task = make_task(str(tmp_path / "open.onnx"))
    job.prepare({"task": "t.py", "stages": [{"use": "quantize"}], "limits": {"drop": 0.1}}, task)
    graph = Graph(path=tmp_path / "open.onnx", digest="")
    result = Quantize(id="q", samples=32).run(graph, dataclasses.replace(context, work=tmp_path))
    target = TARGETS["onnxruntime-cpu"]
    artifact = target.write(
        canonicalise(onnx_file.load(result.path)), result.params, target.dialects()[0], tmp_path / "int8.onnx"
    )
    feed = {"image": RNG.standard_normal((3, 1, 12, 10)).astype(np.float32)}
    expected, found = (OnnxRuntimeSession(file).run(feed)["logits"] for file in (tmp_path / "open.onnx", artifact.path))
    assert float(np.abs(found - expected).max()) < 0.06 * float(np.abs(expected).max())


def refusal(task: Task) -> str:
    with pytest.raises((TaskError, DataError)) as caught:
        job.prepare({"task": "t.py", "stages": [{"use": "export"}], "limits": {"drop": 0.1}}, task)
    return str(caught.value)


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Net()


def lazy() -> nn.Module:
    module = Net()
    module.head = nn.LazyLinear(10)
    return module


def old_norm() -> nn.Module:
    module = Net()
    layer = nn.Conv2d(1, 16, 3, padding=1)
    layer.register_parameter("g", nn.Parameter(torch.ones(1)))
    del layer._parameters["weight"]
    layer.weight = module.first.weight * layer.g  # what the old weight_norm leaves: a tensor with a history
    module.first = layer
    return module


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no module": (lambda: 3, "must build a torch.nn.Module, it returned int"),
    "meta": (
        on_meta,
        ": the model's parameters are on 'meta' ('first.weight' is); build it on the CPU, it is moved to --device "
        "where that is needed",
    ),
    "lazy": (
        lazy,
        ": parameter 'head.weight' has no shape yet (a lazy module); give its layer the sizes, or run the model on one "
        "batch in the function that builds it",
    ),
    "double": (
        lambda: Net().double(),
        ": parameter 'first.weight' is float64; the original's must be float32 (module.float()), its inputs may be of "
        "other types",
    ),
    "half": (
        lambda: Net().half(),
        ": parameter 'first.weight' is float16; the original's must be float32 (module.float()), its inputs may be of "
        "other types",
    ),
    "not to be copied": (
        old_norm,
        ": the model cannot be copied (Only Tensors created explicitly by the user (graph leaves) support the deepcopy "
        "protocol at the moment); the old torch.nn.utils.weight_norm and spectral_norm are such a case: use those of "
        "torch.nn.utils.parametrizations",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_are_refused_before_any_work(case: str) -> None:
    model, text = REFUSED[case]
    assert refusal(make_task(model)) == f"task 'shapes': model{' ' if text[0] != ':' else ''}{text}"
    named = f"task 'shapes': models['small']{' ' if text[0] != ':' else ''}{text}"
    assert refusal(make_task(Net, models={"small": model})) == named


@pytest.mark.parametrize("dtype", ["complex64", "<U3", "datetime64[D]"])
def test_inputs_no_runtime_takes(dtype: str) -> None:
    task = make_task(Net, lambda count: {"image": np.zeros((count, 1, 8, 8), dtype)})
    assert refusal(task) == (
        f"task 'shapes': input 'image' is {np.dtype(dtype)}, which no runtime here takes; give real numbers (the parts "
        "of complex ones on an axis of their own), integers or booleans"
    )


def changed(change: Callable[[Net], Any]) -> Net:
    module = Net()
    change(module)
    return module


LOADED: dict[str, tuple[Callable[[Net], Any], str]] = {
    "another head": (
        lambda module: setattr(module, "head", nn.Linear(16, 3)),
        " has changed 'head.weight' from float32 (10, 16) to float32 (3, 16); it may only fill weights",
    ),
    "another type": (
        lambda module: module.half(),
        " has changed 'first.weight' from float32 (16, 1, 3, 3) to float16 (16, 1, 3, 3); it may only fill weights",
    ),
    "a new layer": (
        lambda module: setattr(module, "extra", nn.Linear(2, 2)),
        " has added 'extra.weight'; it may only fill weights: build the same architecture in the task's model function",
    ),
    "a layer less": (
        lambda module: setattr(module, "second", nn.Identity()),
        " has removed 'second.weight'; it may only fill weights: build the same architecture in the task's model "
        "function",
    ),
    "meta": (
        lambda module: module.to("meta"),
        ": the model's parameters are on 'meta' ('first.weight' is), so there are no weights",
    ),
    "a hook": (
        lambda module: module.second.register_forward_pre_hook(lambda layer, inputs: None),
        " has left a forward hook on 'second', which would be lost when the model is built again; register it in the "
        "task's model function (it is exported from there), or remove it",
    ),
    "a hook on the whole": (
        lambda module: module.register_forward_hook(lambda layer, inputs, output: None),
        " has left a forward hook on the model itself, which would be lost when the model is built again; register it "
        "in the task's model function (it is exported from there), or remove it",
    ),
    "a layer frozen": (
        lambda module: module.second.requires_grad_(False),
        " has frozen 'second.weight', which would be lost when the model is built again; unfreeze it at its end, or freeze "
        "it in the task's model function",
    ),
}


@pytest.mark.parametrize("case", LOADED)
def test_load_weights_only_fills_weights(case: str) -> None:
    change, text = LOADED[case]
    with pytest.raises(TaskError, match=f"^{re.escape('load_weights' + text)}$"):
        check_loaded(changed(change), Net(), "load_weights")


def test_what_the_model_function_froze_stays_frozen() -> None:
    def frozen() -> nn.Module:
        module = Net()
        module.first.requires_grad_(False)
        return module

    check_loaded(frozen(), frozen(), "load_weights")
    with pytest.raises(TaskError) as caught:
        check_loaded(frozen().requires_grad_(True), frozen(), "load_weights")
    assert str(caught.value) == (
        "load_weights has unfrozen 'first.weight', which would be lost when the model is built again; freeze it again at its "
        "end, or leave it trainable in the task's model function"
    )


def test_what_load_weights_may_do() -> None:
    for module in (changed(nn.Module.train), hooked()):
        check_loaded(module, hooked(), "load_weights")


def test_outputs_whose_number_depends_on_the_data() -> None:
    class Picks(Net):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x)[x.sum((1, 2, 3)) > 1e9]

    assert refusal(make_task(Picks)) == (
        "task 'shapes': the model returns (0, 10) as 'logits' for 4 samples; axis 0 of an output is the sample: return "
        "one row for each, and mask instead of selecting"
    )


def test_control_flow_that_depends_on_the_data(tmp_path: Path) -> None:
    class Branches(Net):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x * 2 if x.sum() > 0 else x)

    task = make_task(Branches)
    with pytest.raises(ExportError) as caught:
        Export(id="e").run(candidate_of(task), make_context(task, tmp_path, {}))
    assert str(caught.value).startswith("the model cannot be exported to ONNX: ")
    assert str(caught.value).endswith(
        "replace data-dependent control flow in forward() with tensor operations, or start from an ONNX file"
    )
