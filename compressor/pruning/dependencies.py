"""Torch-Pruning's dependency graph, with what is wrong or slow in it put right."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch_pruning
from torch import nn
from torch_pruning import _helpers
from torch_pruning.dependency import index_mapping
from torch_pruning.dependency.dependency import Dependency
from torch_pruning.dependency.group import Group
from torch_pruning.pruner import function

from . import joined

_TYPES = torch_pruning.ops.OPTYPE
_GUESSED = {  # what the library guesses well enough
    _TYPES.UNBIND: index_mapping.update_unbind_index_mapping,
    _TYPES.EXPAND: index_mapping.update_expand_index_mapping,
    _TYPES.SLICE: index_mapping.update_slice_index_mapping,
}


class Dependencies(torch_pruning.DependencyGraph):  # type: ignore[misc]  # the library has no types
    """Follows each index once, never beyond the channels that a layer has, and asks autograd what is joined or split.

    The library follows lists of indices, which come back in another order wherever paths meet. Every mapping takes
    indices one by one, so the union is the same. The graph is never pruned with: it is of the network as it was traced.
    """

    def __init__(self) -> None:
        super().__init__()
        pruner = _Grouped()
        self.REGISTERED_PRUNERS[_TYPES.CONV] = pruner
        self.REGISTERED_PRUNERS[_TYPES.IN] = self.REGISTERED_PRUNERS[_TYPES.BN]  # its own leaves the statistics whole
        self._out_channel_pruning_fn.add(pruner.prune_out_channels)
        self._in_channel_pruning_fn.add(pruner.prune_in_channels)

    @classmethod
    def of(cls, module: nn.Module, forward: Callable[[], Any]) -> "Dependencies":
        """Those of a module.

        Args:
            forward: runs it, with gradients, and returns its results.
        """
        graph = cls()
        graph.verbose, graph.model = False, module
        kinds = {type(layer) for layer in module.modules() if is_frozen_norm(layer)}
        for kind in kinds - {type(layer) for layer in module.modules() if not is_frozen_norm(layer)}:
            graph.register_customized_layer(kind, _FrozenNorm())
        graph._module2name = {layer: name for name, layer in module.named_modules()}
        graph._param_to_name, graph.unwrapped_parameters = graph._detect_unwrapped_parameters(None)
        graph.module2node = graph._trace(module, None, lambda *_: forward(), output_transform=None)
        graph._build_dependency(graph.module2node)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Maximum recursive depth")  # then it follows nothing
            for node in graph.module2node.values():
                if node.type in _GUESSED:
                    _GUESSED[node.type](graph, node)
        graph._widest = joined.follow(graph)
        return graph

    def get_pruning_group(self, module: nn.Module, pruning_fn: Any, idxs: Sequence[int]) -> Any:
        """See `DependencyGraph.get_pruning_group`."""
        if isinstance(module, torch_pruning.ops.TORCH_CONV) and module.groups == module.out_channels > 1:
            pruning_fn = function.prune_depthwise_conv_out_channels
        node = self.module2node[module]
        first = Dependency(pruning_fn, pruning_fn, source=node, target=node)
        start = [_helpers._HybridIndex(idx=index, root_idx=index) for index in idxs]
        reached: dict[Any, tuple[Any, dict[Any, None]]] = {(node, pruning_fn): (first, dict.fromkeys(start))}
        stack = [(first, start)]
        while stack:
            last, indices = stack.pop()
            for dependency in last.target.dependencies:
                if not dependency.is_triggered_by(last.handler):
                    continue
                found = indices
                for mapping in dependency.index_mapping:
                    found = found if mapping is None else mapping(found)
                most = self._channels(dependency)
                found = [index for index in found if index.idx < most]
                seen = reached.setdefault((dependency.target, dependency.handler), (dependency, {}))[1]
                if new := [index for index in dict.fromkeys(found) if index not in seen]:
                    seen.update(dict.fromkeys(new))
                    stack.append((dependency, new))
        return self._group(reached.values())

    def _channels(self, dependency: Any) -> int:
        """How many the target has on the side that is pruned; an operation: as many as anything in the network."""
        out = self.is_out_channel_pruning_fn(dependency.handler)
        operation = dependency.target.type == _TYPES.OUTPUT
        count = None if operation else (self.get_out_channels if out else self.get_in_channels)(dependency.target)
        return self._widest if count is None else int(count)

    def _group(self, reached: Any) -> Any:
        group = Group()
        group._DG = self
        for dependency, indices in reached:
            roots: dict[int, int | None] = {}
            for index in indices:
                roots.setdefault(index.idx, index.root_idx)
            layer = dependency.target.module
            if roots and not (isinstance(layer, nn.PReLU) and layer.num_parameters == 1):
                item = _helpers.GroupItem(dependency, list(roots))
                item.root_idxs = list(roots.values())
                group._group.append(item)
        return group


def is_frozen_norm(layer: nn.Module) -> bool:
    """Whether it is a batch norm whose numbers are all buffers, as detectors have for good in their backbones."""
    buffers = dict(layer.named_buffers(recurse=False))
    if not {"running_mean", "running_var"} <= set(buffers) or any(True for _ in layer.parameters()):
        return False
    return not isinstance(layer, nn.modules.batchnorm._NormBase) and buffers["running_mean"].ndim == 1


class _FrozenNorm(function.BasePruningFunc):  # type: ignore[misc]  # see above
    """What the library does not know of: see `is_frozen_norm`."""

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
        channels = self.get_out_channels(layer)
        kept = [row for row in range(channels) if row not in set(idxs)]
        for name, buffer in layer.named_buffers(recurse=False):
            if buffer.shape == (channels,):
                setattr(layer, name, buffer[kept].clone())
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: Any) -> int:
        return len(layer.running_mean)

    get_in_channels = get_out_channels


class _Grouped(function.ConvPruner):  # type: ignore[misc]  # see above
    """Torch-Pruning's, which takes the rows of a grouped transposed convolution from the wrong axis."""

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
        if not layer.transposed or layer.groups == 1:
            return super().prune_out_channels(layer, idxs)
        kept = [row for row in range(layer.out_channels) if row not in set(idxs)]
        layer.out_channels = len(kept)
        layer.weight = self._prune_parameter_and_grad(layer.weight, kept[: len(kept) // layer.groups], 1)
        if layer.bias is not None:
            layer.bias = self._prune_parameter_and_grad(layer.bias, kept, 0)
        return layer

    def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
        if not layer.transposed or layer.groups == 1:
            return super().prune_in_channels(layer, idxs)
        kept = [row for row in range(layer.in_channels) if row not in set(idxs)]
        layer.in_channels = len(kept)
        layer.weight = self._prune_parameter_and_grad(layer.weight, kept, 0)
        return layer
