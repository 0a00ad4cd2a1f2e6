"""Torch-Pruning's dependency graph, with what is wrong or slow in it put right."""

from collections.abc import Sequence
from typing import Any

import torch_pruning
from torch import nn
from torch_pruning import _helpers
from torch_pruning.dependency import index_mapping
from torch_pruning.dependency.dependency import Dependency
from torch_pruning.dependency.group import Group
from torch_pruning.pruner import function


class Dependencies(torch_pruning.DependencyGraph):  # type: ignore[misc]  # the library has no types
    """Follows each index once, and takes no other axis of a concatenation for that of the channels.

    The library follows lists of indices, which come back in another order wherever paths meet. Every mapping takes
    indices one by one, so the union is the same.
    """

    def __init__(self) -> None:
        super().__init__()
        pruner = _Grouped()
        self.REGISTERED_PRUNERS[torch_pruning.ops.OPTYPE.CONV] = pruner
        self._out_channel_pruning_fn.add(pruner.prune_out_channels)
        self._in_channel_pruning_fn.add(pruner.prune_in_channels)

    def build_dependency(self, *args: Any, **keys: Any) -> "Dependencies":
        """See `DependencyGraph.build_dependency`."""
        super().build_dependency(*args, **keys)
        for node in self.module2node.values():
            if node.type == torch_pruning.ops.OPTYPE.CONCAT and not _joins_channels(node):
                self._as_elementwise(node)
        return self

    def _as_elementwise(self, node: Any) -> None:
        """A rotary embedding joins halves of each head: offsets of whole layers would lead out of every layer."""
        node.enable_index_mapping = False
        joined = [(source, node) for source in node.inputs] + [(node, source) for source in node.inputs]
        for source, target in joined:
            for dependency in source.dependencies:
                second = dependency.index_mapping[1]
                if dependency.target is target and isinstance(second, index_mapping._ConcatIndexMapping):
                    dependency.index_mapping[1] = None

    def get_pruning_group(self, module: nn.Module, pruning_fn: Any, idxs: Sequence[int]) -> Any:
        """See `DependencyGraph.get_pruning_group`."""
        if isinstance(module, torch_pruning.ops.TORCH_CONV) and module.groups == module.out_channels > 1:
            pruning_fn = function.prune_depthwise_conv_out_channels
        index_mapping.update_index_mapping(self)
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
                seen = reached.setdefault((dependency.target, dependency.handler), (dependency, {}))[1]
                if new := [index for index in dict.fromkeys(found) if index not in seen]:
                    seen.update(dict.fromkeys(new))
                    stack.append((dependency, new))
        return self._group(reached.values())

    def _group(self, reached: Any) -> Any:
        group = Group()
        group._DG = self
        for dependency, indices in reached:
            roots: dict[int, int | None] = {}
            for index in indices:
                roots.setdefault(index.idx, index.root_idx)
            if roots:
                item = _helpers.GroupItem(dependency, list(roots))
                item.root_idxs = list(roots.values())
                group._group.append(item)
        return group


def _joins_channels(node: Any) -> bool:
    """Whether the axis along which tensors are joined is as long as the channels of all layers before it."""
    sizes, shape = node.module.concat_sizes, node.grad_fn._input_metadata[0].shape
    dim = getattr(node.grad_fn, "_saved_dim", 1)
    dim = dim - 2**64 if dim >= 2**63 else dim  # a negative one, as autograd keeps it
    return not sizes or None in sizes or int(shape[dim]) == sum(sizes)


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
