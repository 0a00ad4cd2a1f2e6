"""Ranges for all that INT8 needs, and what has none."""

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesmith.calibration.calibrators import CALIBRATORS
from edgesmith.calibration.ranges import warnings
from edgesmith.compressor.int8.calibrate import calibrate
from edgesmith.core.errors import QuantizationError
from edgesmith.core.values import QuantParams
from edgesmith.exporters.int8.placement import place
from edgesmith.exporters.int8.qdq import activation_grid
from edgesmith.exporters.targets.targets import TARGETS


def rows(nodes: list[onnx.NodeProto], outputs: str = "y", **weights: np.ndarray) -> onnx.ModelProto:
    """A graph over rows `(n, 4)`; the nodes are named after what they write."""
    for node in nodes:
        node.name = f"n_{node.output[0]}"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs.split()]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, results, tensors)
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )


def node(kind: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


EYE = np.eye(4, dtype=np.float32)
FEEDS = [{"x": np.array([[1.0, -2.0, 3.0, 0.5]], np.float32)}, {"x": np.array([[4.0, 0.0, 0.0, 0.0]], np.float32)}]


def test_every_tensor_that_needs_a_range_has_one() -> None:
    nodes = [
        node("Gemm", "x w", "h"), node("Relu", "h", "r"), node("Gemm", "r u", "z"),
        node("Flatten", "r", "f"), node("Gemm", "f v", "y"),
    ]  # fmt: skip
    model = rows(nodes, "y z", w=EYE, u=EYE, v=EYE)
    found = calibrate(model, FEEDS, "min-max")
    assert set(found.params) == {"w", "u", "v", "x", "r"} and not found.keep_float
    assert (found.params["x"].low, found.params["x"].high) == (-2.0, 4.0)


def test_what_reads_infinity_stays_in_float() -> None:
    model = rows(
        [node("Log", "x", "l"), node("Gemm", "l w", "h"), node("Gemm", "x v", "y")], "h y", w=EYE, v=EYE
    )  # the logarithm of 0 is minus infinity
    found = calibrate(model, [{"x": np.array([[1.0, 0.0, 2.0, 3.0]], np.float32)}], "min-max")
    assert found.keep_float == {"n_h": "tensor 'l': holds NaN or infinity; no range can be found"}
    assert set(found.params) == {"x", "v"}


def test_a_layer_stays_in_int8_whatever_others_make_of_its_output() -> None:
    """The second layer's output has a range; its logarithm has none, and the reader of that alone is in float."""
    nodes = [
        node("Gemm", "x w", "h"), node("Relu", "h", "r"), node("Gemm", "r u", "z"),
        node("Log", "z", "l"), node("Gemm", "l v", "y"),
    ]  # fmt: skip
    found = calibrate(rows(nodes, w=EYE, u=EYE, v=EYE), FEEDS, "min-max")
    assert found.keep_float == {"n_y": "tensor 'l': holds NaN or infinity; no range can be found"}
    assert set(found.params) == {"x", "r", "w", "u"}


def test_nothing_that_could_be_quantized() -> None:
    with pytest.raises(QuantizationError) as caught:
        calibrate(rows([node("Sigmoid", "x", "y")]), FEEDS, "mse")
    assert str(caught.value) == (
        "nothing to quantize: no Conv, Gemm or MatMul with constant float weights; the graph holds: Sigmoid"
    )


def test_weights_of_another_type_are_named() -> None:
    model = rows(
        [node("Cast", "x", "d", to=TensorProto.DOUBLE), node("Gemm", "d w", "g"), node("Cast", "g", "y", to=1)],
        w=EYE * np.float64(1),
    )
    with pytest.raises(QuantizationError) as caught:
        calibrate(model, FEEDS, "mse")
    assert str(caught.value) == (
        "nothing to quantize: no Conv, Gemm or MatMul with constant float weights; the graph holds: Cast, Gemm; it has weights in "
        "double: convert the model to float32 first"
    )


def test_nothing_left_that_could_be_quantized() -> None:
    model = rows([node("Log", "x", "l"), node("Gemm", "l w", "y")], w=EYE)
    with pytest.raises(QuantizationError) as caught:
        calibrate(model, [{"x": np.zeros((1, 4), np.float32)}], "mse")
    assert str(caught.value) == (
        "nothing is left to quantize: all of 1 nodes stay in float; 'n_y': tensor 'l': holds NaN or infinity; no range can "
        "be found"
    )


def chain(*widths: int) -> onnx.ModelProto:
    """Gemm and Relu in turn, random weights of the usual size, on rows `(n, widths[0])`."""
    rng, nodes, weights = np.random.default_rng(0), [], {}
    for index, (before, after) in enumerate(itertools.pairwise(widths)):
        weights[f"w{index}"] = (rng.standard_normal((before, after)) * (2 / before) ** 0.5).astype(np.float32)
        nodes += [node("Gemm", f"r{index} w{index}", f"h{index}"), node("Relu", f"h{index}", f"r{index + 1}")]
    nodes[0].input[0] = "x"
    model = rows(nodes, nodes[-1].output[0], **weights)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = widths[0]
    return onnx.shape_inference.infer_shapes(model)


def images(fashion_slice: dict[str, np.ndarray]) -> np.ndarray:
    """Real ones, seeded order, 2x2 pixels taken together: `(512, 196)`."""
    pixels = fashion_slice["images"].astype(np.float32)[np.random.default_rng(0).permutation(512)] / 255
    return pixels.reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, 196)


def batches(data: np.ndarray, size: int) -> list[dict[str, np.ndarray]]:
    return [{"x": data[start : start + size]} for start in range(0, len(data), size)]


def test_a_few_pictures_of_two_kinds_warn_and_many_of_all_kinds_do_not(fashion_slice: dict[str, np.ndarray]) -> None:
    model, data = chain(196, 64, 64, 10), images(fashion_slice)
    labels = fashion_slice["labels"][np.random.default_rng(0).permutation(512)]
    few = np.concatenate([data[labels == 5][:4], data[labels == 4][:4]])  # sandals, coats
    found = [calibrate(model, batches(*given), "mse").ranges for given in ((few, 4), (data, 32))]
    assert [each.tensor for each in found[0]] == ["x", "r1", "r2"]
    assert warnings(found[0]) == [
        "warning: more samples would still move the ranges: 2 of 3 differ by 10% or more between half of the samples and all, "
        "most 'r1' by 22%; give more samples"
    ]
    assert warnings(found[1]) == []
    assert max(each.moved or 0.0 for each in found[1]) < 0.05


def test_one_overexposed_picture_among_many_warns(fashion_slice: dict[str, np.ndarray]) -> None:
    data = images(fashion_slice)
    data[40] *= 5
    found = calibrate(chain(196, 64, 10), batches(data, 32), "min-max").ranges
    assert [each.moved for each in found] == [pytest.approx(0.38, abs=0.01), pytest.approx(0.29, abs=0.01)]
    assert warnings(found)[0].startswith(
        "warning: more samples would still move the ranges: 2 of 2 differ by 10% or more"
    )


def test_one_batch_says_that_it_cannot_tell() -> None:
    found = calibrate(chain(4, 4), batches(np.ones((8, 4), np.float32), 8), "mse").ranges
    assert [each.moved for each in found] == [None]


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "tensorrt"])
def test_auto_is_on_the_files_grids_as_good_as_the_best_rule(target: str, fashion_slice: dict[str, np.ndarray]) -> None:
    """Every tensor, on its real values and the writer's own scales; what was taken stands beside it."""
    model, data = chain(196, 64, 64, 10), images(fashion_slice)
    placed, dialects = place(model), TARGETS[target].dialects()
    values = dict(zip(["x", "r1", "r2"], _values(model, data), strict=False))

    def mean_error(tensor: str, params: QuantParams) -> float:
        errors = []
        for dialect in dialects:
            scale, zero = (np.float64(part) for part in activation_grid(params, tensor, placed, dialect))
            ends = np.iinfo(np.int8 if dialect.activations == "s8" else np.uint8)
            back = (np.clip(np.rint(values[tensor] / scale) + zero, ends.min, ends.max) - zero) * scale
            errors.append(float(np.mean((values[tensor] - back) ** 2)))
        return float(np.mean(errors))

    found = {rule: calibrate(model, batches(data, 32), rule, dialects=dialects) for rule in CALIBRATORS}
    for each in found["auto"].ranges:
        errors = {rule: mean_error(each.tensor, found[rule].params[each.tensor]) for rule in CALIBRATORS}
        assert errors["auto"] <= 1.002 * min(errors.values())
        assert errors["auto"] == errors[each.rule] and found["auto"].params[each.tensor].origin == each.rule


def _values(model: onnx.ModelProto, data: np.ndarray) -> list[np.ndarray]:
    values = [data.astype(np.float64)]
    for tensor in model.graph.initializer:
        values.append(np.maximum(values[-1] @ numpy_helper.to_array(tensor).astype(np.float64), 0))
    return values
