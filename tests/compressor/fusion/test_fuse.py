"""The stage: fitted estimators, networks and files as one graph, what it says of them, and what it refuses."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from sklearn.naive_bayes import GaussianNB

from edgesmith.compressor import values
from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.evaluation import evaluate, task_metrics
from edgesmith.compressor.fusion.fuse import Fuse
from edgesmith.compressor.fusion.fusing import FUSIONS, Mean, Rule
from edgesmith.compressor.stage import Graph
from edgesmith.core.task import Task
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession

from ..conftest import make_context
from .digits_members import MEMBERS, flat_task, fused, measured


@pytest.fixture(scope="module")
def flat(task: Task) -> Task:
    return flat_task(task)


@pytest.mark.parametrize("rule", FUSIONS)
@pytest.mark.parametrize("select", [False, True])
def test_every_rule_fuses_and_what_is_learnt_is_never_worse_than_the_best_member(
    rule: str, select: bool, flat: Task, tmp_path: Path
) -> None:
    graph, context = fused(flat, tmp_path, rule=rule, select=select)
    alone = [measured(tmp_path / "g" / f"{name}.onnx", flat) for name in MEMBERS]
    got = measured(graph.path, flat)
    if select or FUSIONS[rule].fit is not None:
        assert got >= max(alone)
        assert "fused out of fold (5 folds) " in context.notes[0]
    assert context.notes[0].startswith(
        f"accuracy on validation: linear {alone[0]:.4f}, forest {alone[1]:.4f}, bayes {alone[2]:.4f}; fused "
    )
    assert values.digest_of(graph) == graph.digest
    assert sum(node.op_type.startswith("TreeEnsemble") for node in onnx.load(graph.path).graph.node) <= 1


def test_one_file_with_shared_input_and_the_tasks_output(flat: Task, tmp_path: Path) -> None:
    """And the mean of probabilities is what it says, as logarithms, which a softmax takes back."""
    graph, context = fused(flat, tmp_path, calibration="best", smoothing=0.1, returns_logits=False)
    model = onnx_file.load(graph.path)
    assert [value.name for value in model.graph.input] == ["pixels"]
    assert [value.name for value in model.graph.output] == ["probabilities"]
    inputs, _ = flat.split("validation", "t").batch(np.arange(7))
    got = OnnxRuntimeSession(graph.path).run(inputs)["probabilities"]
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-5)
    assert got.min() >= 0.1 / 10 - 1e-6
    note = next(each for each in context.notes if each.startswith("calibration, "))
    losses, taken = note.removeprefix("calibration, log loss on validation out of fold: ").split("; taken: ")
    found = {name: float(loss) for name, loss in (each.split() for each in losses.split(", "))}
    assert set(found) == {"none", "temperature", "platt", "isotonic"}
    assert found[taken] == min(found.values()) < found["none"]


def test_a_member_that_adds_nothing_is_left_out(flat: Task, tmp_path: Path) -> None:
    noise = GaussianNB().fit(np.random.default_rng(0).random((200, 64)), np.arange(200) % 10)
    task = dataclasses.replace(flat, models={**flat.models, "noise": noise})
    graph, context = fused(task, tmp_path, members=(*MEMBERS, "noise"), rule="weighted")
    assert "noise" in context.notes[-1].split("; left out, as adding nothing: ")[1].split(", ")
    assert not any("noise/" in node.name for node in onnx.load(graph.path).graph.node)


def test_torch_members_give_logits(original: Candidate, exported: Graph, task: Task, tmp_path: Path) -> None:
    """A network twice, once as a file: their fusion is that network."""
    context = make_context(task, tmp_path, {"original": original, "file": exported})
    graph = Fuse(id="f", members=("original", "file"), gives="logits").run(None, context)
    inputs, _ = task.split("validation", "t").batch(np.arange(5))
    got, alone = (OnnxRuntimeSession(path).run(inputs)["logits"] for path in (graph.path, exported.path))
    shares = np.exp(alone) / np.exp(alone).sum(1, keepdims=True)
    np.testing.assert_allclose(np.exp(got), np.maximum(shares, 1e-7), rtol=1e-3, atol=1e-6)


def test_test_data_speak_of_the_fusion_and_the_best_member(flat: Task, tmp_path: Path) -> None:
    """And not of the original, which may be no member at all."""
    graph, context = fused(flat, tmp_path, rule="mean")
    best, gain = context.for_verdict["best"], context.for_verdict["gain"]
    stage = Fuse(id="f", members=MEMBERS, gives="probabilities", rule="mean")
    (note,) = stage.after_verdict(graph, context)
    on_test = [
        evaluate(OnnxRuntimeSession(path), flat.test, task_metrics(flat))["accuracy"]
        for path in (graph.path, tmp_path / "g" / f"{best}.onnx")
    ]
    assert note.startswith(
        f"fused beside the best member, {best}: gain {gain:.4f} on validation, {on_test[0] - on_test[1]:.4f} ("
    )
    agrees = gain * (on_test[0] - on_test[1]) > 0
    assert f"on test: the test data {'agree' if agrees else 'do not agree'}" in note
    context.for_verdict["gain"] = -gain  # as if validation had said the contrary
    (other,) = stage.after_verdict(graph, context)
    assert f"on test: the test data {'do not agree' if agrees else 'agree'}" in other


def test_of_the_best_member_alone_nothing_is_claimed(
    flat: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where what a rule learnt is worse than the one."""
    noise = GaussianNB().fit(np.random.default_rng(0).random((200, 64)), np.arange(200) % 10)
    task = dataclasses.replace(flat, models={**flat.models, "noise": noise})
    monkeypatch.setitem(FUSIONS, "weighted", Rule(fit=lambda stack, labels, shares: Mean(np.array([0.0, 1.0]))))  # type: ignore[arg-type]  # a dict
    _, context = fused(task, tmp_path, members=("linear", "noise"), rule="weighted")
    assert context.notes[-1] == "'weighted' is not better than linear, which is taken alone instead"
    assert not context.for_verdict


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_files_of_an_older_opset_are_raised(opset: int, exported: Graph, task: Task, tmp_path: Path) -> None:
    """To that of the nodes behind them, whose Shape, ReduceSum and ReduceMean older ones do not know."""
    value = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("Flatten", ["image"], ["rows"], axis=1),
        onnx.helper.make_node("MatMul", ["rows", "w"], ["logits"]),
    ]
    named: dict[str, Candidate | Graph] = {}
    for seed, name in enumerate("ab"):
        weights = np.random.default_rng(seed).normal(size=(64, 10)).astype(np.float32)
        graph = onnx.helper.make_graph(
            nodes,
            "old",
            [value("image", 1, ["batch", 1, 8, 8])],
            [value("logits", 1, ["batch", 10])],
            [onnx.numpy_helper.from_array(weights, "w")],
        )
        path = tmp_path / f"{name}.onnx"
        onnx_file.save(
            onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=6), path
        )
        named[name] = Graph(path=path, digest="")
    context = make_context(task, tmp_path / "w", named)
    fusion = Fuse(id="f", members=("a", "b"), gives="logits", rule="voting", smoothing=0.1).run(None, context)
    onnx.checker.check_model(onnx.load(fusion.path), full_check=True)
