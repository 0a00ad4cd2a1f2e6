"""Models of any kind as ONNX graphs that can stand side by side in one."""

from collections.abc import Mapping, Sequence

import onnx
import torch
from torch import nn

from ...benches.report.inspection import dialect_of
from ...core.errors import RecipeError, TaskError
from ...core.files import as_file_name
from ...exporters import from_torch
from ...exporters.graph import compose, onnx_file
from ...exporters.sessions.torch_session import forward
from ..candidate import Candidate
from ..data import any_inputs
from ..stage import Context, Graph
from .preparation import Prepare, prepared


def member_graphs(
    members: Sequence[str],
    context: Context,
    outputs: Mapping[str, Sequence[str]] | None = None,
    prepare: Prepare | None = None,
) -> dict[str, onnx.ModelProto]:
    """Members as graphs with the outputs that the task names.

    Args:
        members: names for `Context.named`.
        outputs: by member; None: the task's first for all.
        prepare: what stands before a member's input.

    Raises:
        RecipeError: a member that is quantized, or has no such output.
        ArtifactError, ExportError: a file that cannot be read or takes other inputs, a module that cannot be exported.
    """
    task, found = context.task, {}
    for name in members:
        wanted = tuple(task.outputs[:1] if outputs is None else outputs[name])
        value, path = context.named(name), context.work / f"exported-{as_file_name(name)}.onnx"
        if isinstance(value, Graph):
            if value.params is not None:
                raise RecipeError(f"{context.where}.members: '{name}' is INT8 already; quantize what comes out instead")
            path = value.path
        else:
            module = value.module()
            _check_returns(module, value, name, wanted, context.where)
            from_torch.export(module, any_inputs(task), task.input_specs(), wanted, path)
        loaded = onnx_file.load(path)
        if (written_as := dialect_of(loaded)) != "float":
            raise RecipeError(
                f"{context.where}.members: '{name}' is INT8 already ({written_as}); give the float model it was made "
                "from, and quantize what comes out instead"
            )
        found[name] = _with_outputs(loaded, name, wanted, context.where)
        compose.check_inputs(name, found[name], task.input_specs())
        if prepare and name in prepare:
            prepared(found[name], prepare[name], task.input_specs()[0])
    return found


def _check_returns(module: nn.Module, value: Candidate, name: str, wanted: Sequence[str], where: str) -> None:
    """Of a module every output has a name; the exporter would wrap that error in its own."""
    try:
        with torch.no_grad():
            forward(module.eval(), value.example, wanted)
    except TaskError as error:
        raise RecipeError(f"{where}: member '{name}': {error}; name all that it returns, in order") from error


def _with_outputs(model: onnx.ModelProto, name: str, wanted: Sequence[str], where: str) -> onnx.ModelProto:
    """With these outputs alone; where a file has a single one, its name does not matter."""
    kept = {value.name: value for value in model.graph.output}
    if len(kept) == 1 and len(wanted) == 1 and wanted[0] not in kept:
        (value,) = kept.values()
        renamed = onnx.helper.make_node("Identity", [value.name], [wanted[0]], name=f"renamed/{wanted[0]}")
        model.graph.node.append(renamed)
        value.name = wanted[0]
        kept = {wanted[0]: value}
    missing = [each for each in wanted if each not in kept]
    if missing:
        raise RecipeError(f"{where}.members: '{name}' has no output '{missing[0]}'; it has: {', '.join(kept)}")
    values = [kept[each] for each in wanted]
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in values]
    del model.graph.output[:]
    model.graph.output.extend(copies)
    return model
