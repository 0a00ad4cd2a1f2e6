"""Transposed convolutions: INT8 for who has kernels for them, float in the same recipe's other files."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgesmith.compressor.int8.calibrate import calibrate
from edgesmith.compressor.int8.quantize import Quantize
from edgesmith.compressor.stage import Graph
from edgesmith.core.task import Task
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.graph.canonical import canonicalise
from edgesmith.exporters.int8.dialect import Dialect
from edgesmith.exporters.int8.qdq import activation_params, placed, write_qdq
from edgesmith.exporters.int8.qdq_read import read_qdq
from edgesmith.exporters.sessions.cpu import this_cpu
from edgesmith.exporters.targets.openvino import OpenVino
from edgesmith.exporters.targets.targets import TARGETS
from tests.compressor.conftest import make_context
from tests.exporters.graphs import decibels, graph, kinds, node, random, run

TAKING = TARGETS["tensorrt"].dialects()[0]
OTHER = TARGETS["onnxruntime-cpu"].dialects()[0]
FEED = {"x": random(2, 4, 6, 6, seed=1)}
UP = {"strides": [2, 2]}


def images(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    weights = {"w": random(4, 4, 3, 3), "t": random(4, 4, 2, 2, seed=2), "e": random(4, seed=3)}
    return graph(nodes, weights, {"x": ["n", 4, 6, 6]}, {"y": None})


def decoder() -> onnx.ModelProto:
    return images(
        [
            node("Conv", "x w", "c", pads=[1] * 4),
            node("Relu", "c", "r"),
            node("ConvTranspose", "r t e", "u", **UP),
            node("Relu", "u", "y"),
        ]
    )


def test_its_weights_have_one_scale() -> None:
    found = calibrate(decoder(), [FEED], "min-max", dialects=[OTHER], transposed=True).params
    assert (np.shape(found["w"].scale), np.shape(found["t"].scale)) == ((4,), ())
    assert set(calibrate(decoder(), [FEED], "min-max").params) == {"x", "r", "w"}


@pytest.mark.parametrize(("dialect", "nodes"), [(TAKING, ("n_c", "n_u")), (OTHER, ("n_c",))], ids=["taken", "left"])
def test_who_has_no_kernel_for_it_leaves_it_in_float(dialect: Dialect, nodes: tuple[str, ...]) -> None:
    model = decoder()
    params = calibrate(model, [FEED], "min-max", dialects=[OTHER], transposed=True).params
    written = write_qdq(model, params, dialect)
    assert placed(model, params, dialect).nodes == nodes
    assert kinds(written)["DequantizeLinear"] == 2 + len(nodes)  # x, r, and a weight for each
    assert decibels(run(model, FEED)["y"], run(written, FEED)["y"]) > 30


@pytest.mark.parametrize("first", ["Conv", "ConvTranspose"])
def test_a_weight_that_both_kinds_read_is_quantized_for_the_first(first: str) -> None:
    """One has its output channels on the other's input channels; the file that leaves one kind in float differs."""
    nodes = [node("Conv", "x t", "y", pads=[1, 1, 0, 0]), node("ConvTranspose", "x t", "y")]
    ordered = nodes if first == "Conv" else nodes[::-1]
    chain = [node(ordered[0].op_type, "x t", "h", pads=[1, 1, 0, 0]), node(ordered[1].op_type, "h t", "y")]
    model = images(chain)
    params = calibrate(model, [FEED], "min-max", transposed=True).params
    assert placed(model, params, TAKING).nodes == ("n_h",)
    assert placed(model, params, OTHER).nodes == ("n_h" if first == "Conv" else "n_y",)
    for dialect in (TAKING, OTHER):
        write_qdq(model, params, dialect)


def test_without_parameters_it_stays_in_float() -> None:
    """As after a training that quantized only the rest."""
    model = decoder()
    params = calibrate(model, [FEED], "min-max").params
    assert placed(model, params, TAKING).nodes == ("n_c",)
    assert kinds(write_qdq(model, params, TAKING))["DequantizeLinear"] == 3


def test_what_a_quantized_file_leaves_open_is_found_for_who_takes_it() -> None:
    """Training in INT8 and neural-compressor leave it in float: its weight is rounded as it is, its pairs are calibrated."""
    nodes = [*decoder().graph.node[:-1], node("Relu", "u", "s"), node("ConvTranspose", "s t", "y", **UP)]
    written = write_qdq(images(nodes), calibrate(images(nodes), [FEED], "min-max").params, OTHER)
    found = read_qdq(written, transposed=True)
    assert (found.guessed, found.unseen) == (("t",), ("s", "y"))
    assert (read_qdq(written).guessed, read_qdq(written).unseen) == ((), ())
    params = {**found.params, **dict.fromkeys(found.unseen, activation_params(-3, 3, "given"))}
    assert placed(found.model, params, TAKING).nodes == ("n_c", "n_u", "n_y")
    assert placed(found.model, params, OTHER).nodes == ("n_c",)
    for dialect in (TAKING, OTHER):
        write_qdq(found.model, params, dialect)


def test_what_only_passed_through_for_one_has_parameters_for_who_starts_there() -> None:
    model = images(
        [
            node("ConvTranspose", "x t", "u", **UP),
            node("MaxPool", "u", "m", kernel_shape=[2, 2], **UP),
            node("Conv", "m w", "y", pads=[1] * 4),
        ]
    )
    params = calibrate(model, [FEED], "min-max", dialects=[OTHER], transposed=True).params
    assert {"u", "m"} <= set(params)
    for dialect in (TAKING, OTHER):
        assert decibels(run(model, FEED)["y"], run(write_qdq(model, params, dialect), FEED)["y"]) > 30


@pytest.mark.parametrize("targets", [("onnxruntime-cpu",), ("onnxruntime-cpu", "tensorrt")], ids=len)
def test_the_stage_finds_parameters_for_whichever_target_takes_it(
    targets: tuple[str, ...], task: Task, tmp_path: Path
) -> None:
    nodes = [node("Conv", "image w", "c", pads=[1] * 4), node("ConvTranspose", "c t", "y", **UP)]
    weights = {"w": random(4, 1, 3, 3), "t": random(4, 4, 2, 2, seed=2)}
    onnx_file.save(graph(nodes, weights, {"image": ["n", 1, 8, 8]}, {"y": None}), tmp_path / "model.onnx")
    context = dataclasses.replace(make_context(task, tmp_path / "work", {}), targets=targets)
    found = Quantize(id="q", samples=32).run(Graph(path=tmp_path / "model.onnx", digest=""), context)
    model, written = canonicalise(onnx_file.load(found.path)), []
    assert found.params is not None
    for target in targets:
        dialect = TARGETS[target].dialects()[0]
        written.append(placed(model, found.params, dialect).nodes)
    assert written == [("n_c",), ("n_c", "n_y")][: len(targets)]


def test_openvino_has_a_kernel_for_it_where_the_cpu_has_vnni(tmp_path: Path) -> None:
    """Without, it runs in float whatever stands around it: the lint says so, and no dialect writes it."""
    dialects = OpenVino().dialects()
    assert {dialect.transposed for dialect in dialects} == {this_cpu() == "x86-vnni"}
    model = decoder()
    forced = dataclasses.replace(dialects[0], transposed=True)
    params = calibrate(model, [FEED], "min-max", transposed=True).params
    OpenVino().write(model, params, forced, tmp_path / "model.onnx")
    found = [finding.text for finding in OpenVino().lint(tmp_path / "model.onnx")]
    slow = "stands between pairs, and OpenVINO runs it in f32 (Deconvolution); keep it in float: its pairs cost time"
    in_float = [f"ConvTranspose 'n_u': {slow} [runs-in-float]"]
    assert found == ([] if this_cpu() == "x86-vnni" else in_float)
