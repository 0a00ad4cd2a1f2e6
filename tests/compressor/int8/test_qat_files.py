"""Files of a network that was trained in INT8 are held to that network, not to its weights in float."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgesmith.compressor import artifacts, values
from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.int8.int8_forms import Form, Problem
from edgesmith.compressor.int8.qat import QuantizationAwareTraining
from edgesmith.compressor.learning.teaching import open_teacher
from edgesmith.compressor.measure_options import Measure
from edgesmith.compressor.stage import Graph
from edgesmith.core.task import Task
from edgesmith.core.values import Interval
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.sessions.cpu import this_cpu
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession
from edgesmith.exporters.sessions.torch_session import to_tensors

from ..conftest import make_context
from .results import accuracy_of


@pytest.fixture(scope="module")
def trained(unbalanced: tuple[Task, Candidate], tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Graph]:
    task, original = unbalanced
    context = make_context(task, tmp_path_factory.mktemp("trained"), {"original": original})
    return task, QuantizationAwareTraining(id="q", epochs=4, learning_rate=5e-3).run(original, context)


def twice_as_slow(problem: Problem, forms: Sequence[Form]) -> list[Form]:
    slow = dict.fromkeys(problem.feeds, Interval(value=0.5, low=0.5, high=0.5))
    return [dataclasses.replace(form, speedup=slow, milliseconds=dict.fromkeys(slow, 1.0)) for form in forms]


def test_float_is_not_taken_where_the_weights_need_their_rounding(
    trained: tuple[Task, Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much faster: without rounding the trained weights of this network do no better than chance."""
    task, graph = trained
    monkeypatch.setattr(Problem, "timed", twice_as_slow)
    written = artifacts.write(graph, "onnxruntime-cpu", task, tmp_path, Measure(batch_sizes=(1,)), 1)
    assert graph.trained is not None
    assert accuracy_of(graph.path, task) < 0.3
    assert written.artifact.dialect == "u8"
    narrow = this_cpu() == "x86"  # the file's weights have 7 bits there, and were trained with 8
    apart = 0.03 if narrow else 0.015
    assert accuracy_of(written.artifact.path, task) == pytest.approx(accuracy_of(graph.trained, task), abs=apart)
    if narrow:
        assert written.reason.startswith("no form is good enough, nor is float; u8 is closest to what was trained; ")
        return
    assert written.reason.startswith("the fastest of 1 form (against this network in float, at batch size 1: u8 0.50x)")
    assert "; float: 0." in written.reason and written.reason.endswith(", not good enough")


def test_what_was_trained_is_kept_and_is_who_teaches(trained: tuple[Task, Graph], tmp_path: Path) -> None:
    task, graph = trained
    values.save(graph, tmp_path)
    kept = values.load(tmp_path, None)
    assert isinstance(kept, Graph) and kept.trained is not None
    assert values.digest_of(kept) == values.digest_of(graph)
    inputs, _ = task.validation.batch(range(8))  # type: ignore[union-attr, arg-type]
    expected = OnnxRuntimeSession(kept.trained).run(inputs)["logits"]
    assert not any(node.metadata_props for node in onnx_file.load(kept.trained).graph.node), "paths of this machine"
    context = make_context(task, tmp_path / "work", {})
    assert (open_teacher(kept, context)(to_tensors(inputs, "cpu")).numpy() == expected).all()
