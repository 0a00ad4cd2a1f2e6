"""Transposed convolutions: INT8 for who has kernels for them, float in the same recipe's other files."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgesmith.compressor.int8.calibrate import calibrate
from edgesmith.exporters.int8.dialect import Dialect
from edgesmith.exporters.int8.qdq import placed, write_qdq
from edgesmith.exporters.sessions.cpu import this_cpu
from edgesmith.exporters.targets.openvino import OpenVino
from edgesmith.exporters.targets.targets import TARGETS
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
    found = calibrate(decoder(), [FEED], "min-max", dialects=[TAKING, OTHER]).params
    assert (np.shape(found["w"].scale), np.shape(found["t"].scale)) == ((4,), ())
    assert set(calibrate(decoder(), [FEED], "min-max", dialects=[OTHER]).params) == {"x", "r", "w"}


@pytest.mark.parametrize(("dialect", "nodes"), [(TAKING, ("n_c", "n_u")), (OTHER, ("n_c",))], ids=["taken", "left"])
def test_who_has_no_kernel_for_it_leaves_it_in_float(dialect: Dialect, nodes: tuple[str, ...]) -> None:
    model = decoder()
    params = calibrate(model, [FEED], "min-max", dialects=[TAKING, OTHER]).params
    written = write_qdq(model, params, dialect)
    assert placed(model, params, dialect).nodes == nodes
    assert kinds(written)["DequantizeLinear"] == 2 + len(nodes)  # x, r, and a weight for each
    assert decibels(run(model, FEED)["y"], run(written, FEED)["y"]) > 30


def test_without_parameters_it_stays_in_float() -> None:
    """As after a training that quantized only the rest."""
    model = decoder()
    params = calibrate(model, [FEED], "min-max").params
    assert placed(model, params, TAKING).nodes == ("n_c",)
    assert kinds(write_qdq(model, params, TAKING))["DequantizeLinear"] == 3


def test_what_only_passed_through_for_one_has_parameters_for_who_starts_there() -> None:
    model = images(
        [
            node("ConvTranspose", "x t", "u", **UP),
            node("MaxPool", "u", "m", kernel_shape=[2, 2], **UP),
            node("Conv", "m w", "y", pads=[1] * 4),
        ]
    )
    params = calibrate(model, [FEED], "min-max", dialects=[TAKING, OTHER]).params
    assert params["m"] == params["u"]
    for dialect in (TAKING, OTHER):
        assert decibels(run(model, FEED)["y"], run(write_qdq(model, params, dialect), FEED)["y"]) > 30


def test_openvino_runs_it_in_integers_where_the_cpu_has_vnni(tmp_path: Path) -> None:
    """Without, oneDNN computes it in float32, whatever stands around it: the lint says so, and no dialect writes it."""
    dialects = OpenVino().dialects()
    assert {dialect.transposed for dialect in dialects} == {this_cpu() == "x86-vnni"}
    model = decoder()
    forced = dataclasses.replace(dialects[0], transposed=True)
    params = calibrate(model, [FEED], "min-max", dialects=[forced]).params
    OpenVino().write(model, params, forced, tmp_path / "model.onnx")
    found = [finding.text for finding in OpenVino().lint(tmp_path / "model.onnx")]
    slow = "stands between pairs, and OpenVINO runs it in f32 (Deconvolution); keep it in float: its pairs cost time"
    assert found == ([] if dialects[0].transposed else [f"ConvTranspose 'n_u': {slow} [runs-in-float]"])
