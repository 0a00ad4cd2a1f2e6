"""Graphs put side by side, and nodes behind them: all at one opset, or it is said who cannot come along."""

import pytest
from onnx import ModelProto, TensorProto, helper

from edgesmith.core.errors import ArtifactError
from edgesmith.core.values import TensorSpec
from edgesmith.exporters.graph import compose

X = TensorSpec(name="x", dtype="float32", shape=("batch", 3))


def member(opset: int) -> ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "member", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def joined(opsets: dict[str, int], fused: bool) -> ModelProto:
    nodes = compose.Nodes()
    outputs = {f"{name}/y": TensorSpec(name=name, dtype="float32", shape=("batch", 3)) for name in opsets}
    if fused:
        added = nodes.add("Add", *outputs)
        outputs = {added: TensorSpec(name="sum", dtype="float32", shape=("batch", 3))}
    return compose.joined({name: member(opset) for name, opset in opsets.items()}, (X,), nodes, outputs)


@pytest.mark.parametrize(
    ("opsets", "fused", "found"),
    [({"a": 11, "b": 13}, False, 13), ({"a": 11, "b": 13}, True, compose.OPSET), ({"a": 11, "b": 20}, True, 20)],
)
def test_all_come_to_the_newest_opset_that_is_needed(opsets: dict[str, int], fused: bool, found: int) -> None:
    assert [entry.version for entry in joined(opsets, fused).opset_import if not entry.domain] == [found]


@pytest.mark.parametrize(
    ("opsets", "fused", "why"),
    [
        ({"a": 11, "b": 13}, False, "13, which others have"),
        ({"a": 11, "b": 11}, True, "18, which what joins them needs"),
    ],
)
def test_who_cannot_come_along_is_said(
    opsets: dict[str, int], fused: bool, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_opset(model: ModelProto, version: int) -> ModelProto:
        raise RuntimeError("no adapter for Upsample\nand more")

    monkeypatch.setattr(compose, "at_opset", at_opset)
    with pytest.raises(ArtifactError) as caught:
        joined(opsets, fused)
    assert str(caught.value) == (
        f"member 'a' has opset 11 and cannot be converted to {why}: no adapter for Upsample; export it again"
    )
