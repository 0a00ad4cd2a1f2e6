"""MACs and parameters against torch's own counter, against numbers worked out by hand, and INT8 against float."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgesmith.core.values import TensorSpec
from edgesmith.exporters import from_torch
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.graph.canonical import canonicalise
from edgesmith.exporters.graph.graph_stats import macs_and_parameters
from edgesmith.exporters.int8 import qdq
from edgesmith.exporters.int8.dialect import Dialect

from ..conftest import Network
from ..graphs import DIALECTS, FLOAT, calibrate, graph, node, random


def single(kind: str, data: Sequence[int | str], weight: Sequence[int], **attributes: object) -> onnx.ModelProto:
    weights = {"w": np.ones(weight, np.float32)}
    return graph([node(kind, "x w", "y", **attributes)], weights, {"x": data}, {"y": None})


@pytest.mark.parametrize(
    ("model", "macs", "parameters"),
    [
        (single("Conv", ["n", 3, 8, 8], [16, 3, 3, 3], pads=[1] * 4), 16 * 64 * 27, 432),
        (single("Conv", ["n", 3, 9, 9], [16, 3, 3, 3], strides=[2, 2]), 16 * 16 * 27, 432),
        (single("Conv", ["n", 8, 8, 8], [16, 2, 3, 3], group=4, pads=[1] * 4), 16 * 64 * 18, 288),
        (single("Conv", ["n", 16, 8, 8], [16, 1, 3, 3], group=16, pads=[1] * 4), 16 * 64 * 9, 144),
        (single("Conv", ["n", 4, 10], [6, 4, 3]), 6 * 8 * 12, 72),
        (single("ConvTranspose", ["n", 8, 4, 4], [8, 5, 2, 2], strides=[2, 2]), 8 * 16 * 5 * 4, 160),
        (single("ConvTranspose", ["n", 8, 4, 4], [8, 3, 2, 2], group=2, strides=[2, 2]), 8 * 16 * 3 * 4, 96),
        (single("Gemm", ["n", 5], [5, 7]), 35, 35),
        (single("Gemm", ["n", 5], [7, 5], transB=1), 35, 35),
        (single("Gemm", [5, 3], [5, 7], transA=1), 3 * 5 * 7, 35),
        (single("MatMul", ["n", 6, 5], [5, 7]), 6 * 5 * 7, 35),
        (single("MatMul", ["n", 2, 6, 5], [2, 5, 7]), 2 * 6 * 5 * 7, 70),
    ],
)
def test_by_hand(model: onnx.ModelProto, macs: int, parameters: int) -> None:
    assert macs_and_parameters(model) == (macs, parameters)


def test_macs_grow_with_the_batch_and_parameters_do_not(digits: Network) -> None:
    one, parameters = macs_and_parameters(digits.model)
    assert one is not None
    assert macs_and_parameters(digits.model, batch=7) == (7 * one, parameters)


def test_what_comes_out_of_a_loop_has_no_rank_and_is_no_scalar() -> None:
    """ONNX infers no shape of a state that a Loop hands on."""
    state = [helper.make_tensor_value_info(name, FLOAT, ["n", 5]) for name in ("s", "t")]
    flags = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("c", "d")]
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    body = helper.make_graph(
        [node("Tanh", "s", "t"), node("Identity", "c", "d")],
        "body",
        [count, flags[0], state[0]],
        [flags[1], state[1]],
    )
    nodes = [helper.make_node("Loop", ["many", "", "x"], ["h"], body=body)]
    nodes += [node("MatMul", "h w", "m"), node("MatMul", "m v", "y")]
    weights = {"many": np.array(3), "w": np.ones((5, 7), np.float32), "v": np.ones((7, 2), np.float32)}
    assert macs_and_parameters(graph(nodes, weights, {"x": ["n", 5]}, {"y": ["n", 2]})) == (None, 49)


def test_two_activations_multiplied() -> None:
    model = graph([node("MatMul", "a b", "y")], {}, {"a": ["n", 4, 6, 5], "b": ["n", 4, 5, 6]}, {"y": None})
    assert macs_and_parameters(model) == (4 * 6 * 5 * 6, 0)


def test_a_shape_that_hangs_on_more_than_the_batch_is_not_guessed() -> None:
    assert macs_and_parameters(single("MatMul", ["n", "length", 5], [5, 7])) == (None, 35)
    assert macs_and_parameters(single("Conv", ["n", 3, "height", 8], [4, 3, 3, 3])) == (None, 108)


def test_what_is_no_parameter_is_not_counted() -> None:
    nodes = [
        node("Reshape", "x shape", "flat"),
        node("Gather", "table ids", "picked"),
        node("Add", "flat picked", "y"),
    ]
    weights = {"shape": np.array([-1, 4]), "ids": np.array([1]), "table": random(3, 4)}
    assert macs_and_parameters(graph(nodes, weights, {"x": ["n", 2, 2]}, {"y": None})) == (0, 12)


def test_a_weight_in_a_constant_node_is_a_parameter() -> None:
    nodes = [node("Constant", "", "w", value=numpy_helper.from_array(random(5, 7))), node("MatMul", "x w", "y")]
    assert macs_and_parameters(graph(nodes, {}, {"x": ["n", 5]}, {"y": None})) == (35, 35)


class Everything(nn.Module):
    """Each kind of layer that is counted, none with a batch norm, so that torch's parameters are the file's."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=4),
            nn.Conv2d(12, 12, 5, padding=2, groups=12), nn.ReLU(),
            nn.ConvTranspose2d(12, 6, 3, stride=2, groups=3),
        )  # fmt: skip
        self.tokens = nn.Linear(9, 5)
        self.head = nn.Linear(5 * 6 * 9, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.tokens(self.features(x)).flatten(1))


def test_against_torch(tmp_path: Path) -> None:
    module, images = Everything().eval(), random(8, 3, 8, 8)
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 3, 8, 8))
    from_torch.export(module, {"x": images}, (spec,), ("y",), tmp_path / "model.onnx")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.tensor(images[:1]))
    expected = counter.get_total_flops() // 2, sum(weight.numel() for weight in module.parameters())
    exported = onnx_file.load(tmp_path / "model.onnx")
    assert macs_and_parameters(exported) == expected
    assert macs_and_parameters(canonicalise(exported)) == expected


def test_trained_networks_against_torch(network: Network) -> None:
    (name, array), *_ = network.feed.items()
    assert name in ("image", "x")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.module.eval()(torch.tensor(array[:1]))
    macs, parameters = macs_and_parameters(network.model)
    assert macs == counter.get_total_flops() // 2
    # A folded batch norm leaves one number per channel where torch has two (its weight and its bias); a Clip has 0 and 6.
    norms = sum(layer.num_features for layer in network.module.modules() if isinstance(layer, nn.BatchNorm2d))
    clips = 2 if any(isinstance(layer, nn.ReLU6) for layer in network.module.modules()) else 0
    assert parameters == sum(weight.numel() for weight in network.module.parameters()) - norms + clips


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_int8_counts_as_its_float_original(network: Network, dialect: Dialect) -> None:
    written = qdq.write_qdq(network.model, network.params, dialect)
    assert macs_and_parameters(written) == macs_and_parameters(network.model)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_tied_weights_are_counted_once(dialect: Dialect) -> None:
    nodes = [node("Gemm", "x w b", "h"), node("Relu", "h", "r"), node("Gemm", "r w c", "y")]
    weights = {"w": random(6, 6), "b": random(6, seed=1), "c": random(6, seed=2)}
    model = graph(nodes, weights, {"x": ["n", 6]}, {"y": ["n", 6]})
    assert macs_and_parameters(model) == (72, 48)
    written = qdq.write_qdq(model, calibrate(model, {"x": random(32, 6)}), dialect)
    assert macs_and_parameters(written) == (72, 48)
