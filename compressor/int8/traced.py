"""A module as the graph of operators that torch.export sees, still trainable: for what changes single operators."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from ...core.errors import ExportError
from ...core.values import Arrays, TensorSpec
from ...exporters.from_torch import Positional, cause_of, quiet
from ...exporters.sessions.torch_session import to_tensors

PREFIX = "module."  # of the traced module's own parameters and buffers
_aten = torch.ops.aten
_NORMS = {_aten.batch_norm.default: 5}  # operator -> place of its `training` argument
_DROPOUTS = {
    _aten.dropout.default: 2,
    _aten.feature_dropout.default: 2,
    _aten.alpha_dropout.default: 2,
    _aten.feature_alpha_dropout.default: 2,
}


def trace(module: nn.Module, samples: Arrays, inputs: tuple[TensorSpec, ...], outputs: Sequence[str]) -> fx.GraphModule:
    """The graph of `module` in eval mode, on the CPU, for any batch size and length; it shares no weight with `module`.

    Takes the inputs by position and returns a tuple in the order of `outputs`. Its parameters and buffers have the
    names of the module's, behind `PREFIX`. Operators that write into their input are replaced by those that do not.

    Raises:
        ExportError: torch.export refuses the module, or the graph computes something else; names the output.
    """
    arguments = tuple(to_tensors({spec.name: samples[spec.name][:2] for spec in inputs}, "cpu").values())
    wrapped = Positional(module.cpu().eval(), [spec.name for spec in inputs], outputs)
    free = torch.export.Dim.DYNAMIC  # up to whatever length the model takes: it has as many positions
    dynamic = tuple({axis: free for axis, size in enumerate(spec.shape) if isinstance(size, str)} for spec in inputs)
    try:
        with quiet():
            program = torch.export.export(wrapped, arguments, dynamic_shapes=(dynamic,), strict=False)
            graph_module = program.module(check_guards=False)
    except Exception as error:  # torch.export raises many kinds, all of which mean the same to the user
        raise ExportError(f"the model cannot be traced: {cause_of(error)}") from error
    _without_writes(graph_module.graph)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    with torch.no_grad():
        pairs = zip(outputs, wrapped(*arguments), graph_module(*arguments), strict=True)
    for name, expected, actual in pairs:
        scale = max(1.0, float(expected.abs().max()))
        if not torch.allclose(actual, expected, rtol=1e-3, atol=1e-4 * scale):
            raise ExportError(
                f"output '{name}': the traced graph differs from the model by up to "
                f"{float((actual - expected).abs().max()):.3g}; write what changes tensors in place with new ones"
            )
    return graph_module


def set_mode(graph_module: fx.GraphModule, norms: bool, dropouts: bool, still: Collection[str] = ()) -> None:
    """Batch norms take the batch's statistics or the stored ones; dropout drops or does not. Nothing else has a mode.

    Only the argument is changed: epsilon, momentum and probability stay the model's own.

    Args:
        still: names, in the traced module, of batch norms that take the stored ones always.
    """
    stored = {f"{PREFIX}{name}.running_mean" for name in still}
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and node.target in _NORMS:
            mean = getattr(node.args[3], "target", None)
            _set_argument(node, _NORMS[node.target], norms and mean not in stored)
        elif node.op == "call_function" and node.target in _DROPOUTS:
            _set_argument(node, _DROPOUTS[node.target], dropouts)
    graph_module.recompile()


def _set_argument(node: fx.Node, place: int, value: bool) -> None:
    node.args = (*node.args[:place], value, *node.args[place + 1 :])


def set_device(graph_module: fx.GraphModule, device: str) -> None:
    """Tensors that the graph makes itself are made on `device`: tracing has written down where they were made."""
    wanted = torch.device(device)

    def moved(value: Any) -> Any:
        return wanted if isinstance(value, torch.device) else value

    held = {name for name, _ in (*graph_module.named_parameters(), *graph_module.named_buffers())}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" and node.target not in held:  # a constant of the code's own; `to` does not know it
            owner, _, name = str(node.target).rpartition(".")
            holder = graph_module.get_submodule(owner)
            setattr(holder, name, getattr(holder, name).to(wanted))
        node.args = tuple(moved(value) for value in node.args)
        node.kwargs = {name: moved(value) for name, value in node.kwargs.items()}
    graph_module.recompile()


def weights_of(graph_module: nn.Module, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of the module that was traced, on the CPU; what the graph does not use is as in `like`."""
    state = graph_module.state_dict()
    return {
        name: state.get(PREFIX + name, tensor).detach().to("cpu", copy=True).contiguous()
        for name, tensor in like.items()
    }


def _without_writes(graph: fx.Graph) -> None:
    """`relu_(x)` -> `relu(x)`, and whoever reads `x` later reads the result, as it would have."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        target = node.target
        if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
            continue
        name = target._schema.name.removeprefix("aten::")
        plain = getattr(_aten, name[:-1], None) if name.endswith("_") else None
        if plain is None or target._overloadname not in plain.overloads():
            continue
        node.target = getattr(plain, target._overloadname)
        written = node.args[0]
        for reader in list(written.users):
            if order[reader] > order[node]:
                reader.replace_input_with(written, node)
