"""Lookup tables in INT8: a quarter of the size, every number within half a step of its row, nothing else touched."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgesmith.core.values import Arrays
from edgesmith.exporters.int8.placement import place
from edgesmith.exporters.int8.qdq import activation_params, weight_params
from edgesmith.exporters.int8.tables import write_tables
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession
from edgesmith.exporters.targets.targets import TARGETS

ROWS, COLUMNS = 500, 24
IDS = np.random.default_rng(3).integers(0, ROWS, (5, 7))


def table(rows: int = ROWS) -> np.ndarray:
    """Rows of very different size, one of them of zeros."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((rows, COLUMNS)) * np.exp(3 * rng.standard_normal((rows, 1)))
    values[7 % rows] = 0
    return values.astype(np.float32)


def lookup(values: np.ndarray, *more: onnx.NodeProto, axis: int = 0, **constants: np.ndarray) -> onnx.ModelProto:
    """`y`: rows of the table "t", looked up by `ids`."""
    nodes = [helper.make_node("Gather", ["t", "ids"], ["y"], name="lookup", axis=axis), *more]
    given = [helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n", "tokens"])]
    outputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in ("y", *(n.output[0] for n in more))
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in {"t": values, **constants}.items()]
    graph = helper.make_graph(nodes, "g", given, outputs, tensors)
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )


def answers(model: onnx.ModelProto, folder: Path) -> Arrays:
    onnx.checker.check_model(model)
    onnx.save(model, folder / "m.onnx")
    session = OnnxRuntimeSession(folder / "m.onnx")
    try:
        return session.run({"ids": IDS})
    finally:
        session.close()


def test_every_number_is_within_half_a_step_of_its_row(tmp_path: Path) -> None:
    values = table()
    model = lookup(values)
    write_tables(model)
    found = answers(model, tmp_path)["y"]
    step = np.abs(values[IDS]).max(-1, keepdims=True) / 127
    assert np.all(np.abs(found - values[IDS]) <= 0.5001 * step)
    assert np.abs(found - values[IDS]).max() > 0
    assert (tmp_path / "m.onnx").stat().st_size < values.nbytes / 4 + 4 * ROWS + 1500
    assert model.graph.node[0].name == "lookup"


def test_a_table_that_two_read_is_written_once(tmp_path: Path) -> None:
    model = lookup(table(), helper.make_node("Gather", ["t", "ids"], ["z"], name="again"))
    write_tables(model)
    found = answers(model, tmp_path)
    np.testing.assert_array_equal(found["y"], found["z"])
    assert sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in model.graph.initializer) == 1


def product() -> onnx.NodeProto:
    """Reads the table as a weight too, as a language model's tied head does."""
    return helper.make_node("Gemm", ["t", "t"], ["z"], name="head", transB=1)


@pytest.mark.parametrize(
    ("model", "keep_float"),
    [
        (lookup(table(), axis=1), ()),
        (lookup(table(), product()), ()),
        (lookup(table(20)), ()),
        (lookup(table()[:, 0].repeat(16)), ()),
        (lookup(table()), ("lookup",)),
        (lookup(table(), helper.make_node("Gather", ["t", "ids"], ["z"], name="again")), ("again",)),
    ],
    ids=["columns", "a weight too", "small", "one axis", "kept in float", "one of two kept in float"],
)
def test_what_is_left_as_it_is(model: onnx.ModelProto, keep_float: tuple[str, ...]) -> None:
    before = model.SerializeToString()
    write_tables(model, keep_float)
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("target", "in_int8"), [("onnxruntime-cpu", True), ("onnxruntime-arm", True), ("tensorrt", False)]
)
def test_where_tables_are_written(target: str, in_int8: bool, tmp_path: Path) -> None:
    """Beside a product in INT8; with TensorRT a table stays in float: its Gather takes no INT8."""
    weight = np.random.default_rng(1).standard_normal((COLUMNS, 8)).astype(np.float32)
    model = lookup(table(), helper.make_node("MatMul", ["y", "w"], ["z"], name="product"), w=weight)
    params = weight_params(model, place(model))
    params["y"] = activation_params(-50.0, 50.0, "here")
    entry = TARGETS[target]
    entry.write(model, params, entry.dialects()[0], tmp_path / "m.onnx")
    gathers = [node for node in onnx.load(tmp_path / "m.onnx").graph.node if node.op_type == "Gather"]
    assert len(gathers) == (2 if in_int8 else 1)
