"""Where INT8 goes: residual sums, shared parameters, fused activations, and what has to stay in float."""

import numpy as np
import onnx
import pytest

from edgesmith.core.errors import QuantizationError
from edgesmith.exporters.int8.placement import Placement, place, tensors_to_observe

from ..conftest import Network
from ..graphs import graph, node, random

CONV = {"pads": [1] * 4}
WEIGHTS = {"w": random(4, 4, 3, 3), "v": random(4, 4, 3, 3, seed=1), "b": random(4, seed=2)}
BOUNDS = {"zero": np.zeros((), np.float32), "six": np.full((), 6, np.float32)}


def images(nodes: list[onnx.NodeProto], outputs: str = "y", **weights: np.ndarray) -> onnx.ModelProto:
    used = {name for node in nodes for name in node.input}
    known = {name: value for name, value in {**WEIGHTS, **BOUNDS, **weights}.items() if name in used}
    return graph(nodes, known, {"x": ["n", 4, 6, 6]}, dict.fromkeys(outputs.split()))


def placed(nodes: list[onnx.NodeProto], outputs: str = "y", **weights: np.ndarray) -> Placement:
    return place(images(nodes, outputs, **weights))


def rows(nodes: list[onnx.NodeProto], outputs: str = "y", **weights: np.ndarray) -> Placement:
    """Of a graph over rows `(n, 6)`."""
    return place(graph(nodes, weights, {"x": ["n", 6]}, dict.fromkeys(outputs.split())))


def test_residual_network(digits: Network) -> None:
    found = place(digits.model)
    nodes = {node.name: node for node in digits.model.graph.node}
    assert sorted(nodes[name].op_type for name in found.nodes) == sorted(
        node.op_type for node in digits.model.graph.node if node.op_type != "Relu"
    )
    outputs = {node.op_type: node.output[0] for node in digits.model.graph.node}
    reads = [name for node in digits.model.graph.node if node.op_type == "Add" for name in node.input]
    assert set(reads) <= set(found.activations)
    # Both inputs of a sum and the Relu behind it have a pair; the sum itself and what a Relu is fused to have none.
    fused = {node.input[0] for node in digits.model.graph.node if node.op_type == "Relu"}
    assert not fused & set(found.activations)
    assert outputs["GlobalAveragePool"] in found.activations
    assert found.source[outputs["Flatten"]] == outputs["GlobalAveragePool"]
    relus = {node.output[0] for node in digits.model.graph.node if node.op_type == "Relu"}
    assert found.never_negative == relus | {outputs["GlobalAveragePool"], outputs["Flatten"]}
    assert len(found.weights) == 11


def test_residual_sum_shares_its_inputs_with_the_convolutions() -> None:
    found = placed([
        node("Conv", "x w b", "c", **CONV), node("Relu", "c", "r"), node("Conv", "r v b", "d", **CONV),
        node("Add", "d r", "s"), node("Relu", "s", "y"),
    ])  # fmt: skip
    assert found.nodes == ("n_c", "n_d", "n_s")
    assert found.activations == ("x", "r", "d", "y")
    assert found.never_negative == {"r", "y"}
    assert found.weights == {"w": 0, "v": 0}
    assert tensors_to_observe(found) == ("x", "r", "d", "y")


def test_what_passes_through_has_the_parameters_of_its_source() -> None:
    nodes = [
        node("Conv", "x w b", "c", **CONV), node("Relu", "c", "r"), node("MaxPool", "r", "p", kernel_shape=[2, 2]),
        node("Transpose", "p", "t", perm=[0, 2, 3, 1]), node("Flatten", "t", "f"), node("Gemm", "f g", "y"),
    ]  # fmt: skip
    found = placed(nodes, g=random(100, 3))
    assert found.activations == ("x", "r", "p", "t", "f")
    assert [found.source[name] for name in ("r", "p", "t", "f")] == ["r"] * 4
    assert tensors_to_observe(found) == ("x", "r")
    assert found.never_negative == {"r", "p", "t", "f"}


def test_moving_values_that_are_not_int8_is_not_worth_a_pair() -> None:
    found = placed([node("Sigmoid", "x", "s"), node("Transpose", "s", "t"), node("Softmax", "t", "y")])
    assert found.nodes == () and found.activations == ()


def test_concat_has_parameters_for_each_input() -> None:
    found = placed([
        node("Conv", "x w", "c", **CONV), node("Relu", "c", "r"), node("Conv", "x v", "d", **CONV),
        node("Concat", "r d", "y", axis=1),
    ])  # fmt: skip
    assert found.activations == ("x", "r", "d", "y")
    assert found.source == {name: name for name in found.activations}
    assert found.never_negative == {"r"}
    both = placed([
        node("Conv", "x w", "c", **CONV), node("Relu", "c", "r"), node("Concat", "r r", "y", axis=1),
    ])  # fmt: skip
    assert both.never_negative == {"r", "y"}


def test_a_convolution_read_by_more_than_its_relu_has_a_pair_of_its_own() -> None:
    found = placed([
        node("Conv", "x w", "c", **CONV), node("Relu", "c", "r"), node("Conv", "r v", "d", **CONV),
        node("Add", "d c", "y"),
    ])  # fmt: skip
    assert found.activations == ("x", "c", "r", "d", "y")
    assert found.never_negative == {"r"}


def test_a_convolution_read_by_a_float_operator_too_is_not_fused_to_its_relu() -> None:
    found = placed([node("Conv", "x w", "c", **CONV), node("Relu", "c", "r"), node("Sigmoid", "c", "s")], "r s")
    assert found.activations == ("x", "c")
    assert found.never_negative == frozenset()


def test_a_convolution_that_is_an_output_as_well_has_a_pair_of_its_own() -> None:
    found = placed([node("Conv", "x w", "c", **CONV), node("Relu", "c", "y")], "c y")
    assert found.activations == ("x", "c")


@pytest.mark.parametrize(
    ("bounds", "fused", "upper"),
    [
        ("zero six", True, {"y": 6.0}),
        ("zero", True, {}),
        ("zero infinity", True, {}),
        ("minus six", False, {}),
    ],
)
def test_only_a_clip_from_zero_is_fused(bounds: str, fused: bool, upper: dict[str, float]) -> None:
    found = placed(
        [node("Conv", "x w", "c", **CONV), node("Clip", f"c {bounds}", "y")],
        minus=np.full((), -1, np.float32), infinity=np.full((), np.inf, np.float32),
    )  # fmt: skip
    assert found.activations == (("x", "y") if fused else ("x", "c"))
    assert ("y" in found.never_negative) == fused
    assert found.upper == upper


def test_the_bound_of_a_clip_goes_where_its_values_go() -> None:
    found = placed([
        node("Conv", "x w", "c", **CONV), node("Clip", "c zero six", "r"),
        node("MaxPool", "r", "p", kernel_shape=[2, 2]), node("Conv", "p v", "y", **CONV),
    ])  # fmt: skip
    assert found.upper == {"r": 6.0, "p": 6.0}


def test_weights_that_are_no_constants_stay_float() -> None:
    nodes = [node("MatMul", "x k", "y")]
    model = graph(nodes, {}, {"x": ["n", 6], "k": [6, 6]}, {"y": None})
    assert place(model).nodes == ()
    found = rows([node("MatMul", "x w", "q"), node("Transpose", "q", "k"), node("MatMul", "q k", "y")], w=random(6, 6))
    assert "n_y" not in found.nodes and found.weights == {"w": 1}


@pytest.mark.parametrize("attributes", [{"alpha": 0.5}, {"beta": 0.5}, {"transA": 1}], ids=["alpha", "beta", "transA"])
def test_a_gemm_with_factors_stays_float(attributes: dict[str, float]) -> None:
    model = graph(
        [node("Gemm", "x w b", "y", **attributes)], {"w": random(6, 6), "b": random(6)}, {"x": [6, 6]}, {"y": None}
    )
    assert place(model).nodes == ()


@pytest.mark.parametrize(
    ("shape", "placed"), [((6,), True), ((1, 6), True), ((1,), False), ((), False), ((2, 6), False), ((2, 1), False)]
)
def test_only_a_bias_per_channel_is_taken(shape: tuple[int, ...], placed: bool) -> None:
    model = graph([node("Gemm", "x w b", "y")], {"w": random(6, 6), "b": random(*shape)}, {"x": [2, 6]}, {"y": None})
    assert place(model).nodes == (("n_y",) if placed else ())


def test_an_empty_name_is_no_bias() -> None:
    nodes = [onnx.helper.make_node("Conv", ["x", "w", ""], ["y"], name="n_y", **CONV)]
    assert placed(nodes).nodes == ("n_y",)


@pytest.mark.parametrize(("attributes", "axis"), [({}, 1), ({"transB": 0}, 1), ({"transB": 1}, 0)])
def test_axis_of_a_gemms_channels(attributes: dict[str, int], axis: int) -> None:
    assert rows([node("Gemm", "x w", "y", **attributes)], w=random(6, 6)).weights == {"w": axis}


def test_tied_weights_used_twice_and_along_another_axis() -> None:
    twice = rows([node("Gemm", "x w", "h", transB=1), node("Gemm", "h w", "y", transB=1)], w=random(6, 6))
    assert twice.nodes == ("n_h", "n_y") and twice.weights == {"w": 0}
    turned = rows([node("Gemm", "x w", "h", transB=1), node("MatMul", "h w", "y")], w=random(6, 6))
    assert turned.nodes == ("n_h",) and turned.weights == {"w": 0}


def test_the_axis_of_tied_weights_does_not_hang_on_what_stays_in_float() -> None:
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("Gemm", "r w", "t", transB=1)]
    model = graph([*nodes, node("MatMul", "t w", "y")], {"w": random(6, 6)}, {"x": ["n", 6]}, {"y": None})
    whole, less = place(model), place(model, ("n_h",))
    assert whole.nodes == ("n_h", "n_y") and whole.activations == ("x", "t")
    # Without the first reader the second one is none the more in INT8: of 'r' no range was ever found.
    assert less.nodes == ("n_y",) and less.activations == ("t",)
    assert whole.weights == less.weights == {"w": 1}


def test_a_sum_with_a_constant_stays_float() -> None:
    found = rows([node("MatMul", "x w", "h"), node("Add", "h c", "y")], w=random(6, 6), c=random(6))
    assert found.nodes == ("n_h",) and found.activations == ("x",)


def test_a_sum_of_floats_stays_float() -> None:
    # An attention mask is added to scores that two activations made; a scale for -3e38 would leave nothing of them.
    nodes = [
        node("MatMul", "x w", "q"), node("MatMul", "x v", "k"), node("Transpose", "k", "t"), node("MatMul", "q t", "scores"),
        node("Mul", "x big", "masked"), node("MatMul", "masked x", "mask"), node("Add", "scores mask", "y"),
    ]  # fmt: skip
    weights = {"w": random(6, 6), "v": random(6, 6), "big": np.full(1, -3e38, np.float32)}
    found = place(graph(nodes, weights, {"x": [6, 6]}, {"y": None}))
    assert found.nodes == ("n_q", "n_k")
    assert found.activations == ("x",)


def test_a_product_with_a_float_result_has_a_pair_only_for_a_reader() -> None:
    # One behind a MatMul whose bias is added in float would round the sum's larger half a second time.
    last = rows([node("MatMul", "x w", "y")], w=random(6, 6))
    assert last.nodes == ("n_y",) and last.activations == ("x",)
    read = rows([node("Gemm", "x w", "h"), node("Gemm", "h w", "y")], w=random(6, 6))
    assert read.nodes == ("n_h", "n_y") and read.activations == ("x", "h")


def test_a_gate_of_two_activations_is_int8_where_one_of_them_is() -> None:
    found = placed([
        node("Conv", "x w", "c", **CONV), node("HardSigmoid", "c", "g"), node("Mul", "c g", "m"),
        node("Conv", "m v", "y", **CONV),
    ])  # fmt: skip
    assert found.nodes == ("n_c", "n_m", "n_y") and found.activations == ("x", "c", "g", "m", "y")


def test_no_pair_stands_inside_a_gelu() -> None:
    """Runtimes fuse Div, Erf, Add and the two Mul to one kernel; a pair inside would leave five."""
    numbers = {
        "root": np.full((), 2**0.5, np.float32),
        "one": np.ones((), np.float32),
        "half": np.full((), 0.5, np.float32),
    }
    found = placed([
        node("Conv", "x w b", "c", **CONV), node("Div", "c root", "d"), node("Erf", "d", "e"), node("Add", "e one", "a"),
        node("Mul", "c a", "m"), node("Mul", "m half", "g"), node("Conv", "g v b", "y", **CONV),
    ], **numbers)  # fmt: skip
    assert found.nodes == ("n_c", "n_y")
    assert found.activations == ("x", "c", "g", "y")


def test_nodes_that_are_to_stay_float_and_what_hangs_on_them() -> None:
    nodes = [
        node("Conv", "x w", "c", **CONV), node("Relu", "c", "r"), node("MaxPool", "r", "p", kernel_shape=[2, 2]),
        node("Conv", "p v", "y", **CONV),
    ]  # fmt: skip
    whole, later, first = (place(images(nodes), keep) for keep in ((), ("n_y",), ("n_c",)))
    assert whole.nodes == ("n_c", "n_p", "n_y")
    assert later.nodes == ("n_c", "n_p") and later.activations == ("x", "r", "p")
    assert first.nodes == ("n_y",) and first.activations == ("p", "y")  # the pool only moves floats now
    assert first.source["p"] == "p"


def test_a_node_to_keep_that_is_not_there() -> None:
    with pytest.raises(QuantizationError, match=r"^keep_float: the graph has no node 'n_z'$"):
        place(images([node("Conv", "x w", "y", **CONV)]), ("n_z",))


def test_integers_are_left_alone() -> None:
    nodes = [node("Cast", "x", "i", to=onnx.TensorProto.INT64), node("Add", "i i", "s"), node("Flatten", "s", "f")]
    nodes += [node("Cast", "f", "g", to=onnx.TensorProto.FLOAT), node("MatMul", "g w", "y")]
    assert rows(nodes, w=random(6, 6)).nodes == ("n_y",)


def test_what_a_branch_reads_is_not_fused_away() -> None:
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)
    branch = onnx.helper.make_graph([node("Neg", "c", "out")], "branch", [], [out])
    other = onnx.helper.make_graph([node("Abs", "c", "out")], "other", [], [out])
    model = images(
        [
            node("Conv", "x w", "c", **CONV), node("Relu", "c", "r"),
            node("If", "on", "z", then_branch=branch, else_branch=other),
        ],
        "r z",
    )  # fmt: skip
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "on"))
    assert place(model).activations == ("x", "c")


UP = {"strides": [2, 2]}
DECODER = [
    node("Conv", "x w b", "c", **CONV), node("Relu", "c", "r"),
    node("ConvTranspose", "r t e", "u", **UP), node("Relu", "u", "s"),
    node("ConvTranspose", "s g", "y", group=2, **UP),
]  # fmt: skip
UPSAMPLING = {"t": random(4, 6, 2, 2), "e": random(6), "g": random(6, 2, 2, 2)}


def test_transposed_convolutions_are_taken_where_asked_but_for_those_in_groups() -> None:
    model = images(DECODER, **UPSAMPLING)
    assert place(model).nodes == ("n_c",) and not place(model).one_scale
    found = place(model, (), transposed=True)
    assert found.nodes == ("n_c", "n_u")
    assert found.activations == ("x", "r", "s")  # the Relu is fused to it
    assert (found.weights, found.one_scale) == ({"w": 0, "t": 1}, {"t"})
    assert place(model, ["n_u"], transposed=True) == place(model)


def test_a_weight_of_a_transposed_convolution_and_a_matrix_are_not_mistaken() -> None:
    """A bias of the input's channels, or a weight without spatial axes, is none."""
    for weights in ({"e": random(4)}, {"t": random(4, 6)}):
        model = images(DECODER[:3], "u", **UPSAMPLING | weights)
        assert place(model, (), transposed=True).nodes == ("n_c",)
