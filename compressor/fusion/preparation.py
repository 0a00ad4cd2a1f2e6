"""How members want their input: each may have been trained on numbers of another mean and spread."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...core.errors import RecipeError
from ...core.tables import unknown
from ...core.values import TensorSpec
from ...exporters.graph import onnx_file

Prepare = Mapping[str, "Preparation"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """What a member reads in place of the task's input: `(input - mean) / std`, one of each or one for each channel."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


def check_prepare(prepare: Prepare, members: Sequence[str], inputs: Sequence[TensorSpec], where: str) -> None:
    """Refuse what cannot be put before a member.

    Raises:
        RecipeError: no such member, an input that is not one of numbers, a number too many or too few, a std of 0.
    """
    if not prepare:
        return
    if len(inputs) != 1 or inputs[0].dtype != "float32" or len(inputs[0].shape) < 2:
        got = ", ".join(f"{spec.name} {spec.dtype} {spec.shape}" for spec in inputs)
        raise RecipeError(
            f"{where}.prepare: the task has {got}; what can be prepared is one float32 input (batch, channels, ...)"
        )
    channels = inputs[0].shape[1]
    for name, wanted in prepare.items():
        if name not in members:
            raise unknown(name, members, f"{where}.prepare")
        for key, values in (("mean", wanted.mean), ("std", wanted.std)):
            if len(values) not in (1, channels):
                raise RecipeError(
                    f"{where}.prepare.{name}.{key}: {len(values)} numbers for {channels} channels; give one, or one "
                    "for each"
                )
        if not all(value > 0 for value in wanted.std):
            raise RecipeError(f"{where}.prepare.{name}.std: {list(wanted.std)}; each has to be above 0")


def prepared(model: onnx.ModelProto, wanted: Preparation, spec: TensorSpec) -> onnx.ModelProto:
    """The graph with its one input prepared.

    Args:
        model: changed in place.
        spec: of the input.
    """
    graph, inside = model.graph, f"{spec.name}/prepared"
    _rename(graph, spec.name, inside)
    shape = (1, -1, *(1 for _ in spec.shape[2:]))
    constants = {"mean": wanted.mean, "std": wanted.std}
    for key, values in constants.items():
        array = np.asarray(values, np.float32).reshape(shape)
        graph.initializer.append(numpy_helper.from_array(array, f"{inside}/{key}"))
    centred = helper.make_node("Sub", [spec.name, f"{inside}/mean"], [f"{inside}/centred"], name=f"{inside}/Sub")
    scaled = helper.make_node("Div", [f"{inside}/centred", f"{inside}/std"], [inside], name=f"{inside}/Div")
    nodes = [centred, scaled, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _rename(graph: onnx.GraphProto, before: str, after: str) -> None:
    """What nodes read, those of branches and loops included."""
    for node in graph.node:
        node.input[:] = [after if name == before else name for name in node.input]
        for inner in onnx_file.subgraphs(node):
            _rename(inner, before, after)
