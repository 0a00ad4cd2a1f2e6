"""exporters/graph/added_zeros.py: what a block that was taken out leaves behind goes, and no sum that counts."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgesmith.compressor import replay
from edgesmith.compressor.pruning import blocks
from edgesmith.core.values import TensorSpec
from edgesmith.exporters import from_torch
from edgesmith.exporters.graph.added_zeros import drop_added_zeros
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession

Shape = tuple[int | str, ...]


class Branch(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = torch.nn.GroupNorm(1, 4), torch.nn.Conv2d(4, 8, 1), torch.nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(torch.relu(self.up(self.norm(x))))
        return result


class Branches(torch.nn.Module):
    """Adds outside of its blocks; what comes out of the first is scaled, and what goes into the second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scale = torch.nn.Conv2d(1, 4, 3), torch.nn.Parameter(torch.full((4, 1, 1), 0.5))
        self.branches = torch.nn.ModuleList([Branch(), Branch()])
        self.gain = torch.nn.Parameter(torch.full((4, 1, 1), 0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.gain * self.branches[0](x)
        return (x + self.branches[1](self.scale * x)).mean((2, 3))


@pytest.mark.parametrize("gone", [["branches.0"], ["branches.1"], ["branches.0", "branches.1"]])
def test_no_node_is_left_of_a_branch_that_was_taken_out(gone: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Branches().eval(), torch.randn(8, 1, 6, 6)
    known = blocks.edits(module, {"x": x})
    assert all(known[name].zero for name in gone)
    replay.apply(module, {"x": x}, [known[name] for name in gone])
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 1, 6, 6))
    from_torch.export(module, {"x": x.numpy()}, (spec,), ("y",), tmp_path / "m.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert kinds.count("Conv") == 1 + 2 * (2 - len(gone))
    assert "Expand" not in kinds and kinds.count("Relu") == 2 - len(gone)
    assert ("Shape" in kinds) == (len(gone) < 2)  # of the other branch's norm
    (found,) = OnnxRuntimeSession(tmp_path / "m.onnx").run({"x": x.numpy()}).values()
    np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def added(value: float, x: Shape, of: Shape, result: str = "y") -> onnx.ModelProto:
    """`y = relu(x + value expanded to the shape of z)`; its sum is "sum"."""
    nodes = [
        helper.make_node("Shape", ["z"], ["shape"], name="shape"),
        helper.make_node("Expand", ["value", "shape"], ["expanded"], name="expand"),
        helper.make_node("Add", ["expanded", "x"], ["sum"], name="add"),
        helper.make_node("Relu", ["sum"], ["y"], name="relu"),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", x), ("z", of))]
    outputs = [helper.make_tensor_value_info(result, TensorProto.FLOAT, x)]
    constants = [numpy_helper.from_array(np.float32(value), "value")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(
    ("model", "goes"),
    [
        (added(0.0, ("n", 3), ("n", 3)), True),
        (added(0.0, (2, 3), (2, 3)), True),
        (added(1.0, ("n", 3), ("n", 3)), False),
        (added(0.0, ("n", 3), ("m", 3)), False),  # may be more rows than x has
        (added(0.0, (1, 3), (4, 3)), False),
        (added(0.0, ("n", 3), ("n", 3), result="sum"), False),
    ],
)  # fmt: skip
def test_a_sum_goes_only_where_it_is_its_other_summand(model: onnx.ModelProto, goes: bool) -> None:
    before = model.SerializeToString()
    drop_added_zeros(model)
    assert ("Add" not in [node.op_type for node in model.graph.node]) == goes
    if not goes and model.graph.output[0].name == "y":
        assert model.SerializeToString() == before
    onnx.checker.check_model(model)
