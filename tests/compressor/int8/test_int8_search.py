"""The search on a real runtime: which layers it gives back, and that every choice of layers can be written."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesmith.benches.metrics.metrics import resolve_metric
from edgesmith.benches.report.int8_report import Quality
from edgesmith.compressor.int8 import int8_forms, int8_search
from edgesmith.compressor.int8.bounds import Bounds
from edgesmith.compressor.int8.calibrate import calibrate
from edgesmith.compressor.int8.closeness_judge import Judge, Promise
from edgesmith.compressor.int8.int8_forms import Form, Problem
from edgesmith.compressor.int8.int8_search import search
from edgesmith.compressor.int8.runs import Runs
from edgesmith.compressor.progress import Progress
from edgesmith.core.errors import DataError
from edgesmith.core.values import Artifact, Interval
from edgesmith.exporters.graph.artifact_file import describe_file
from edgesmith.exporters.targets.targets import TARGETS
from tests.exporters import transformer

SIZE = 64
NOISE = 0.01


def chain(spoiled: str = "") -> onnx.ModelProto:
    """Three layers "a", "b", "c" with a Flatten before the last; the spoiled one reads a column of 10,000 times the size.

    It weighs that column by zero, so that in float nothing is lost, and per tensor in INT8 nothing is left of the rest.
    """
    rng, weights = np.random.default_rng(0), {}
    for name in "abc":
        weights[name] = (rng.standard_normal((SIZE, SIZE)) * (2 / SIZE) ** 0.5).astype(np.float32)
    before = {"b": "a", "c": "b"}.get(spoiled)
    if before is not None:
        weights[before][:, 0] *= 1e4
        weights[spoiled][0] = 0
    nodes = [
        helper.make_node("Gemm", ["x", "a"], ["ta"], name="a"),
        helper.make_node("Relu", ["ta"], ["ra"], name="ra"),
        helper.make_node("Gemm", ["ra", "b"], ["tb"], name="b"),
        helper.make_node("Relu", ["tb"], ["rb"], name="rb"),
        helper.make_node("Flatten", ["rb"], ["f"], name="f"),
        helper.make_node("Gemm", ["f", "c"], ["y"], name="c"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", SIZE]) for name in ("x", "y")]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def problem(model: onnx.ModelProto, folder: Path, target: str, promise: Promise = Promise()) -> Problem:  # noqa: B008
    onnx.save(model, folder / "float.onnx")
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((8, SIZE)).astype(np.float32)} for _ in range(8)]
    runs = Runs(feeds=feeds, labels=rng.integers(0, SIZE, 64) if promise.metric is not None else None)
    return Problem(
        model=model,
        params=calibrate(model, feeds, "min-max").params,
        target=TARGETS[target],
        baseline=describe_file(folder / "float.onnx", target),
        judge=Judge(folder / "float.onnx", runs, promise, TARGETS[target].stand_in),
        feeds={8: feeds[:2]},
        threads=1,
        seconds=0.1,
        folder=folder,
    )


@pytest.mark.parametrize("spoiled", ["b", "c"])
def test_the_spoiled_layer_alone_goes_back(spoiled: str, tmp_path: Path) -> None:
    found = search(problem(chain(spoiled), tmp_path, "tensorrt"), {}, Progress())
    assert found.best is not None and found.best.quality is not None
    assert set(found.best.keep_float) == {spoiled}
    assert found.best.quality.snr_db >= 21.5  # 20 and what is held back while choosing
    alone = {decision.node: decision.alone_db for decision in found.decisions}
    assert all(value is not None and value > 20 for name, value in alone.items() if name != spoiled)
    assert alone[spoiled] is not None and alone[spoiled] < 10
    assert [decision.int8 for decision in found.decisions] == [name != spoiled for name in "abc"]


def test_an_output_that_the_metric_does_not_read_is_kept_close_too(tmp_path: Path) -> None:
    model = chain("c")
    model.graph.output.insert(0, helper.make_tensor_value_info("ta", TensorProto.FLOAT, ["n", SIZE]))
    found = search(
        problem(model, tmp_path, "tensorrt", Promise(metric=resolve_metric("accuracy", "m"))), {}, Progress()
    )
    assert found.best is not None and found.best.quality is not None
    assert set(found.best.keep_float) == {"c"}
    assert found.best.quality.unread_db is not None and found.best.quality.unread_db >= 21.5
    assert found.refused[0].endswith(" dB, not good enough") and ", other outputs " in found.refused[0]


def test_a_file_that_is_close_at_once_needs_no_trials(tmp_path: Path) -> None:
    found = search(problem(chain(), tmp_path, "tensorrt"), {}, Progress())
    assert found.best is not None and not found.best.keep_float
    assert {decision.alone_db for decision in found.decisions} == {None}


def test_nothing_is_good_enough(tmp_path: Path) -> None:
    found = search(problem(chain(), tmp_path, "tensorrt", Promise(min_snr_db=150.0)), {}, Progress())
    assert found.best is None and found.forms == ()
    assert len(found.refused) == 1 and found.refused[0].endswith(" dB, not good enough")


def test_what_cannot_be_int8_stays_in_float_with_its_reason(tmp_path: Path) -> None:
    found = search(problem(chain(), tmp_path, "tensorrt"), {"b": "tensor 'ra': holds NaN"}, Progress())
    assert {decision.node: decision.why for decision in found.decisions}["b"] == "tensor 'ra': holds NaN"
    assert found.best is not None
    written = onnx.load(found.best.artifact.path)
    assert not {"ra", "ra_dequantized"} & {
        name for node in written.graph.node if node.name == "a" for name in node.input
    }


def test_forms_are_timed_against_the_baseline_the_best_first(tmp_path: Path) -> None:
    found = search(problem(chain(), tmp_path, "onnxruntime-cpu"), {}, Progress())
    assert {form.artifact.dialect for form in found.forms} == {"u8", "u8-asymmetric"}
    assert all(set(form.speedup) == {8} for form in found.forms)
    assert all(decision.float_ms is not None for decision in found.decisions)


def test_answers_that_may_change_need_answers(tmp_path: Path) -> None:
    model = chain()
    model.graph.node.append(helper.make_node("ReduceMax", ["y"], ["top"], axes=[1], keepdims=1, name="top"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("top", TensorProto.FLOAT, ["n", 1]))
    with pytest.raises(DataError, match=r"^--max-drop: the data has no labels, and no output of the model has answers"):
        problem(model, tmp_path, "tensorrt", Promise(max_drop=0.01))


def larger_is_faster(files: Sequence[Artifact], *_: object, **__: object) -> list[SimpleNamespace]:
    """Instead of a measurement, one in which each byte more saves time."""
    first, *others = (file.file_bytes for file in files)
    speedup = [Interval(value=n / first, low=0, high=9) for n in others]
    latency = [SimpleNamespace(p50=1e3 / file.file_bytes) for file in files]
    return [SimpleNamespace(batch=8, noise_floor=NOISE, speedup=speedup, latency=latency)]


@pytest.mark.parametrize(("room", "in_float"), [(1.0, 2), (0.6, 1), (0.4, 0), (0.1, 2)])
def test_layers_that_are_slow_in_int8_stay_there_where_the_file_has_to_be_small(
    room: float, in_float: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`room`: the limit, as a share of the float file's size; a weight in INT8 is a quarter of one in float."""
    monkeypatch.setattr(int8_forms.latency, "compare", larger_is_faster)
    monkeypatch.setattr(int8_search, "slower_in_int8", lambda *_: [("a",), ("a", "b")])
    case = problem(chain(), tmp_path, "onnxruntime-cpu")
    limit = room * case.baseline.file_bytes
    found = search(dataclasses.replace(case, bounds=Bounds(max_bytes=limit)), {}, Progress())
    assert found.best is not None and len(found.best.keep_float) == in_float
    assert (found.best.artifact.file_bytes <= limit) == (room > 0.1)  # a limit that no form keeps chooses none


@pytest.mark.parametrize(
    ("speeds", "noise", "order"),
    [
        ({"far": 2.03, "close": 2.0, "float": 1.0}, 0.001, ["close", "far", "float"]),  # as fast, however quiet it is
        ({"far": 2.2, "close": 2.0, "float": 1.0}, 0.15, ["close", "far", "float"]),
        ({"far": 2.2, "close": 2.0, "float": 1.0}, 0.05, ["far", "close", "float"]),
        ({"far": 0.95, "close": 0.8, "float": 1.0}, 0.1, ["far", "float", "close"]),
        ({"far": 0.95, "close": 0.87, "float": 1.0}, 0.1, ["far", "float", "close"]),  # slower than float beyond noise
        ({"far": 1.015, "close": 0.996, "float": 1.0}, 0.01, ["far", "close", "float"]),  # what gains goes first
        ({"far": 0.995, "close": 0.991, "float": 1.0}, 0.01, ["close", "far", "float"]),
    ],
)
def test_of_forms_that_only_noise_is_between_the_closest_is_taken(
    speeds: dict[str, float], noise: float, order: list[str], tmp_path: Path
) -> None:
    case = problem(chain(), tmp_path, "onnxruntime-cpu")
    for name in speeds:
        (tmp_path / name).touch()
    forms = [
        Form(
            artifact=dataclasses.replace(
                case.baseline, dialect={"float": "float"}.get(name, "u8"), path=tmp_path / name
            ),
            keep_float={},
            quality=Quality(outputs=(), snr_db={"far": 30.0, "close": 40.0, "float": 99.0}[name], drop=None),
            speedup={8: Interval(value=value, low=value, high=value)},
            noise=noise,
        )
        for name, value in speeds.items()
    ]
    for each in (forms, forms[::-1]):
        assert [form.artifact.path.name for form in case.ordered(each)] == order


@pytest.mark.parametrize(
    ("first", "value", "measured"),
    [(0.2, 1.1, 2), (0.2, 1.3, 1), (0.04, 1.02, 1)],
    ids=["undecided", "decided", "quiet"],
)
def test_a_comparison_that_a_busy_machine_spoilt_is_made_once_more(
    first: float, value: float, measured: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quieter one counts: in it the INT8 file is slower."""
    noises = iter([first, 0.01, 0.01])

    def compare(files: Sequence[Artifact], *_: object, **__: object) -> list[SimpleNamespace]:
        noise = next(noises)
        found = Interval(value=value if noise == first else 0.9, low=0, high=9)
        latency = [SimpleNamespace(p50=1.0) for _ in files]
        return [SimpleNamespace(batch=8, noise_floor=noise, speedup=[found] * (len(files) - 1), latency=latency)]

    monkeypatch.setattr(int8_forms.latency, "compare", compare)
    case = problem(chain(), tmp_path, "onnxruntime-cpu")
    (form,) = case.timed([case.write("u8", {}, "form")])
    assert (form.noise, form.mean) == ((0.01, 0.9) if measured == 2 else (first, value))
    assert len(list(noises)) == 3 - measured


@pytest.mark.parametrize(("second", "measured"), [(2.8, 2), (2.0, 1)], ids=["may be the fastest", "is not"])
def test_so_is_one_that_does_not_tell_which_form_is_the_fastest(
    second: float, measured: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of forms that only noise is between the closest is taken, be it a fifth slower."""
    noises = iter([0.2, 0.01])

    def compare(files: Sequence[Artifact], *_: object, **__: object) -> list[SimpleNamespace]:
        speedup = [Interval(value=value, low=0, high=9) for value in (3.0, second)]
        latency = [SimpleNamespace(p50=1.0) for _ in files]
        return [SimpleNamespace(batch=8, noise_floor=next(noises), speedup=speedup, latency=latency)]

    monkeypatch.setattr(int8_forms.latency, "compare", compare)
    case = problem(chain(), tmp_path, "onnxruntime-cpu")
    forms = case.timed([case.write("u8", {}, "one"), case.write("u8", {}, "other")])
    assert {form.noise for form in forms} == {0.2 if measured == 1 else 0.01}
    assert len(list(noises)) == 2 - measured


@pytest.mark.parametrize("same", [True, False])
def test_the_original_is_timed_beside_the_forms_unless_it_is_the_baseline(
    same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_forms.latency, "compare", larger_is_faster)
    case = problem(chain(), tmp_path, "onnxruntime-cpu")
    whole, large = tmp_path / "original.onnx", 2 * case.baseline.file_bytes
    whole.write_bytes(bytes(large))
    original = case.baseline if same else dataclasses.replace(case.baseline, path=whole, digest="another")
    case = dataclasses.replace(case, bounds=Bounds(original=original))
    (form,) = case.timed([case.write("u8", {}, "form")])
    size = form.artifact.file_bytes
    assert form.mean == size / case.baseline.file_bytes
    assert form.original_speedup == ({} if same else {8: 2.0})
    assert form.least == (form.mean if same else size / large)
    beaten = case.beating(form)
    assert (beaten.baseline, beaten.bounds) == (form.artifact, Bounds())


def forms_tried(model: onnx.ModelProto, feed: dict[str, np.ndarray], folder: Path) -> set[str]:
    onnx.save(model, folder / "float.onnx")
    case = Problem(
        model=model,
        params=calibrate(model, [feed], "min-max").params,
        target=TARGETS["onnxruntime-cpu"],
        baseline=describe_file(folder / "float.onnx", "onnxruntime-cpu"),
        judge=Judge(folder / "float.onnx", Runs(feeds=[feed], labels=None), Promise()),
        feeds={3: [feed]},
        threads=1,
        seconds=0.1,
        folder=folder,
    )
    found = search(case, {}, Progress(), give_back=False)
    return {form.artifact.dialect for form in found.forms} | {text.split(":")[0] for text in found.refused}


def test_ranges_are_found_at_run_time_too_where_products_lead(tmp_path: Path) -> None:
    assert forms_tried(transformer.block(), transformer.FEED, tmp_path) == {"u8", "u8-asymmetric", "dynamic"}
    feed = {"x": np.ones((3, SIZE), np.float32)}
    assert forms_tried(chain(), feed, tmp_path) == {"u8", "u8-asymmetric"}


def test_layers_are_given_back_only_where_asked(tmp_path: Path) -> None:
    found = search(problem(chain("b"), tmp_path, "tensorrt"), {}, Progress(), give_back=False)
    assert found.best is None
    assert [decision.alone_db for decision in found.decisions] == [None] * 3
