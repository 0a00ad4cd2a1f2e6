"""Several ONNX graphs as one: side by side with the same inputs, and nodes that make one output of theirs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import compose, helper, numpy_helper

from ...core.errors import ArtifactError
from ...core.values import TensorSpec
from . import onnx_file
from .opset import at_opset

OPSET = 18  # of what stands behind the members
_STANDARD = ("", "ai.onnx")
_IR_VERSION = 8  # the first that knows that opset


class Nodes:
    """Nodes of opset `OPSET` and constants under names of their own, to be put behind the members."""

    def __init__(self, prefix: str = "fuse") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._prefix = prefix

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output, whose name comes back."""
        name = f"{self._prefix}/{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """A constant, whose name comes back."""
        name = f"{self._prefix}/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name


def joined(
    members: Mapping[str, onnx.ModelProto],
    inputs: Sequence[TensorSpec],
    nodes: Nodes,
    outputs: Mapping[str, TensorSpec],
) -> onnx.ModelProto:
    """One graph with the members side by side.

    Args:
        members: by name, which becomes the prefix `name/` of everything in it, its inputs and outputs included.
        inputs: of the whole; each member reads those that it has an input of that name for.
        nodes: what stands behind the members; reads `name/output`.
        outputs: of the whole: tensor -> how it is seen from outside.

    Raises:
        ArtifactError: a member whose inputs are others; names member and input.
    """
    for name, model in members.items():
        check_inputs(name, model, inputs)
    models = _of_one_opset(members, OPSET if nodes.nodes else 1)
    graph = onnx.GraphProto(name="joined")
    graph.input.extend(_info(spec) for spec in inputs)
    whole = helper.make_model(graph, opset_imports=[])
    versions: dict[str, int] = {}
    for name, model in models.items():
        part = compose.add_prefix(model, f"{name}/")
        constants = {tensor.name for tensor in part.graph.initializer}
        for value in part.graph.input:
            if value.name not in constants:
                source = value.name.removeprefix(f"{name}/")
                graph.node.append(helper.make_node("Identity", [source], [value.name], name=f"{value.name}/shared"))
        graph.node.extend(part.graph.node)
        graph.initializer.extend(part.graph.initializer)
        graph.sparse_initializer.extend(part.graph.sparse_initializer)
        whole.functions.extend(part.functions)
        for entry in part.opset_import:
            versions[entry.domain] = max(entry.version, versions.get(entry.domain, 0))
    graph.node.extend(nodes.nodes)
    graph.initializer.extend(nodes.constants)
    for tensor, spec in outputs.items():
        graph.node.append(helper.make_node("Identity", [tensor], [spec.name], name=f"joined:{spec.name}"))
        graph.output.append(_info(spec))
    whole.graph.CopyFrom(graph)
    whole.ir_version = max(_IR_VERSION, *(model.ir_version for model in models.values()))
    whole.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())
    return whole


def check_inputs(name: str, model: onnx.ModelProto, inputs: Sequence[TensorSpec]) -> None:
    """Compare what a member takes with what it will be fed.

    Raises:
        ArtifactError: another name, type or shape; names the member and both.
    """
    wanted = {spec.name: spec for spec in inputs}
    for spec in onnx_file.specs(model)[0]:
        other = wanted.get(spec.name)
        fits = other is not None and other.dtype == spec.dtype and len(other.shape) == len(spec.shape)
        if other is None or not fits or any(
            a != b for a, b in zip(spec.shape, other.shape, strict=True) if isinstance(a, int)
        ):  # fmt: skip
            has = ", ".join(f"{s.name} {s.dtype} {_shown(s.shape)}" for s in inputs)
            raise ArtifactError(
                f"member '{name}' takes {spec.name} {spec.dtype} {_shown(spec.shape)}, but the task feeds {has}; all "
                "members of one graph read the same inputs, with an open batch axis"
            )


def _info(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), spec.shape)


def _shown(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))})"


def _of_one_opset(members: Mapping[str, onnx.ModelProto], least: int) -> dict[str, onnx.ModelProto]:
    """All at the newest version of ONNX's own operators that one of them has, or at `least`."""
    versions = {name: _version(model) for name, model in members.items()}
    newest = max(least, *versions.values())
    found = {}
    for name, model in members.items():
        try:
            found[name] = model if versions[name] == newest else at_opset(model, newest)
        except Exception as error:  # the converter raises RuntimeError and others from C++
            who = "what joins them needs" if newest > max(versions.values()) else "others have"
            raise ArtifactError(
                f"member '{name}' has opset {versions[name]} and cannot be converted to {newest}, which {who}: "
                f"{str(error).splitlines()[0]}; export it again"
            ) from error
    return found


def _version(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in _STANDARD), 1)
