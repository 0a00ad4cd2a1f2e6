"""What stands between products is rewritten for ONNX Runtime, and computes the same."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.int8 import ort_glue

from ..graphs import graph, kinds, node, optimised, random, rewritten, run
from ..transformer import FEED, block


def test_a_transformer_computes_the_same(tmp_path: Path) -> None:
    model = block()
    changed = rewritten(model, ort_glue.rewrite)
    for feed in (FEED, {"x": FEED["x"][:1, :2]}):
        np.testing.assert_allclose(run(changed, feed)["y"], run(model, feed)["y"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(run(changed, FEED, optimise=False)["y"], run(model, FEED, optimise=False)["y"])


def test_norms_are_not_fused_to_the_slow_kernel(tmp_path: Path) -> None:
    model = block()
    for each, expected in ((model, (2, 0)), (rewritten(model, ort_glue.rewrite), (0, 2))):
        onnx_file.save(each, tmp_path / "model.onnx")
        found = optimised(tmp_path / "model.onnx")
        assert (found["SkipLayerNormalization"], found["LayerNormalization"]) == expected


def test_keys_are_turned_by_one_node() -> None:
    gone = kinds(block()) - kinds(rewritten(block(), ort_glue.rewrite))
    assert gone == {"Reshape": 2, "Slice": 3, "Concat": 2, "Shape": 1, "Gather": 1, "Add": 2}
    assert kinds(rewritten(block(), ort_glue.rewrite))["Transpose"] == 5, (
        "and that one becomes one with the Transpose before it at loading"
    )


WRITTEN_OUT = [
    node("Add", "x z", "s"), node("ReduceMean", "s", "mean", axes=[-1]), node("Sub", "s mean", "d"),
    node("Mul", "d d", "dd"), node("ReduceMean", "dd", "v", axes=[-1]), node("Add", "v tiny", "w"), node("Sqrt", "w", "r"),
    node("Div", "d r", "y"),
]  # fmt: skip
ADDS = {
    "a norm that is written out": (WRITTEN_OUT, 1),
    "a bias": ([node("Add", "x gain", "s"), node("LayerNormalization", "s gain", "y")], 0),
    "no norm": ([node("Add", "x z", "s"), node("Relu", "s", "y")], 0),
}


@pytest.mark.parametrize("kind", ADDS)
def test_which_adds_become_sums(kind: str) -> None:
    nodes, sums = ADDS[kind]
    copies = [onnx.NodeProto.FromString(each.SerializeToString()) for each in nodes]
    weights = {"gain": random(8), "tiny": np.asarray(1e-5, np.float32)}
    used = {name for each in nodes for name in each.input}
    inputs = {name: ["n", 8] for name in "xz" if name in used}
    model = graph(copies, {name: value for name, value in weights.items() if name in used}, inputs, {"y": None})
    assert kinds(rewritten(model, ort_glue.rewrite))["Sum"] == sums
    feed = {name: random(5, 8, seed=ord(name)) for name in inputs}
    np.testing.assert_allclose(
        run(rewritten(model, ort_glue.rewrite), feed)["y"], run(model, feed)["y"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("change", ["whole", "flat", "perm", "read"])
def test_what_does_more_than_swap_two_axes_stays(change: str) -> None:
    """The same nodes, with the axes in another order: other numbers come out, and nothing may change."""
    model = block()
    nodes = {each.name: each for each in model.graph.node}
    if change == "whole":  # (batch, length, heads, columns) is no swap of the keys' last two axes
        nodes["n_whole"].input[:] = ["outer", "length", "columns"]
    elif change == "flat":
        nodes["n_flat"].input[:] = ["rest", "columns", "length"]
    elif change == "perm":
        nodes["n_k3t"].attribute[0].ints[:] = [0, 1, 2]
    else:
        model.graph.output.append(onnx.helper.make_tensor_value_info("k3t", onnx.TensorProto.FLOAT, [None] * 3))
    assert kinds(rewritten(model, ort_glue.rewrite))["Slice"] == 3


GUARDED = [
    node("MatMul", "x z", "scores"), node("Where", "seen none hidden", "mask"), node("Add", "scores mask", "masked"),
    node("Softmax", "masked", "p", axis=-1), node("IsNaN", "p", "nan"), node("Where", "nan none p", "kept"),
    node("MatMul", "kept x", "y"),
]  # fmt: skip
LOWEST = float(np.finfo(np.float32).min)
GUARDS = {
    "finite": (LOWEST, "", 1),
    "infinite": (-np.inf, "", 2),
    "read": (LOWEST, "p", 2),
    "asked": (LOWEST, "nan", 2),
}


@pytest.mark.parametrize("kind", GUARDS)
def test_a_guard_goes_where_nothing_can_be_nan(kind: str) -> None:
    """A row may be masked as a whole; with an infinite mask it is the guard that makes it zeros."""
    hidden, read, wheres = GUARDS[kind]
    copies = [onnx.NodeProto.FromString(each.SerializeToString()) for each in GUARDED]
    weights = {
        "seen": np.asarray([[True, True, False], [False] * 3, [True] * 3]),
        "none": np.asarray(0, np.float32),
        "hidden": np.asarray(hidden, np.float32),
    }
    model = graph(copies, weights, {"x": [3, 3], "z": [3, 3]}, {"y": [3, 3]})
    if read:
        type_ = onnx.TensorProto.BOOL if read == "nan" else onnx.TensorProto.FLOAT
        model.graph.output.append(onnx.helper.make_tensor_value_info(read, type_, [3, 3]))
    changed = rewritten(model, ort_glue.rewrite)
    assert (kinds(changed)["Where"], kinds(changed)["IsNaN"]) == (wheres, wheres - 1)
    feed = {"x": random(3, 3), "z": random(3, 3, seed=1)}
    for name, value in run(changed, feed).items():
        np.testing.assert_array_equal(value, run(model, feed)[name])
