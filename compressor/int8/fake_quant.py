"""A traced module whose activations and weights go through INT8 and back, and can be trained like that.

Weights have one symmetric scale per output channel, always that of their largest value now; activations one symmetric
scale, from moving averages of what was seen (Jacob et al., 2018, section 3.1). Scale and rounding are torchao's
`FakeQuantize`. A batch norm stays a batch norm: one scale per output channel goes through it, scaled like the weight
itself, so that nothing needs folding before the end. (torchao's own preparation folds it, and puts epsilon 1e-5,
momentum 0.1 and dropout 0.5 in the place of the model's.)
"""

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn

from ...exporters.from_torch import quiet
from . import fake_placement, traced

AVERAGING = 0.01  # weight of a new batch in the moving averages


class FakeQuantized(nn.Module):
    """`graph_module`, from `traced.trace`, with fake quantization put in; takes and returns what it does.

    In training mode ranges follow the data; in eval mode they stand still, and it computes what the INT8 file computes.

    Args:
        still: names of batch norms whose statistics stay as they are, in training mode too.
    """

    def __init__(self, graph_module: fx.GraphModule, still: Collection[str] = ()) -> None:
        super().__init__()
        self.graph_module, self._still = graph_module, tuple(still)
        self.standing = False  # ranges and batch-norm statistics stay as they are, in training mode too
        self._activations: list[Any] = []
        self._weights: list[Any] = []
        placed = fake_placement.place(graph_module.graph)
        for node in placed.tensors:
            self._activations.append(self._insert(node, None, frozenset(node.users)))
        for node, axis in placed.weights.items():
            self._weights.append(self._insert(node, axis, placed.readers))
        graph_module.recompile()

    def _insert(self, node: fx.Node, axis: int | None, readers: frozenset[fx.Node]) -> Any:
        """Let `readers` read `node` through a FakeQuantize."""
        made = _fake_quantize(axis)
        name = f"fake_{len(self._activations) + len(self._weights)}"
        self.graph_module.add_submodule(name, made)
        with self.graph_module.graph.inserting_after(node):
            behind = self.graph_module.graph.call_module(name, (node,))
        node.replace_all_uses_with(behind, delete_user_cb=lambda user: user in readers and user is not behind)
        return made

    def forward(self, *tensors: torch.Tensor) -> Any:
        """See `traced.trace`."""
        return self.graph_module(*tensors)

    def train(self, mode: bool = True) -> "FakeQuantized":
        """Modes of an exported graph are arguments of its operators."""
        self.training = mode
        moving = mode and not self.standing
        for fake in self._activations:
            fake.enable_observer(moving)
        for fake in self._weights:
            fake.enable_observer(not self.standing)  # a weight's range is that of the weight as it is
        traced.set_mode(self.graph_module, norms=moving, dropouts=mode, still=self._still)
        return self

    def calibrate(self, batches: Iterable[Mapping[str, torch.Tensor]]) -> None:
        """Find the first ranges: the mean of the batches' smallest and largest values, of the network in float."""
        self.eval()
        for fake in (*self._activations, *self._weights):
            fake.disable_fake_quant()
            fake.enable_observer()
        with torch.no_grad():
            for number, inputs in enumerate(batches, 1):
                for fake in self._activations:
                    fake.activation_post_process.averaging_constant = 1 / number
                self(*inputs.values())
        for fake in (*self._activations, *self._weights):
            fake.enable_fake_quant()
        for fake in self._activations:
            fake.activation_post_process.averaging_constant = AVERAGING
        self.eval()

    def lowered(self) -> fx.GraphModule:
        """A copy on the CPU with a quantize and a dequantize operator in the place of every FakeQuantize, to export."""
        with quiet():  # torch warns of how torch copies its own graphs
            lowered = copy.deepcopy(self.graph_module).cpu()
        traced.set_mode(lowered, norms=False, dropouts=False)
        traced.set_device(lowered, "cpu")
        for node in list(lowered.graph.nodes):
            if node.op == "call_module" and node.target.startswith("fake_"):
                _lower(lowered, node)
        lowered.delete_all_unused_submodules()
        lowered.recompile()
        return lowered


def _fake_quantize(axis: int | None) -> Any:
    """Torchao's module for an activation (`axis` None), or for a weight with its output channels along `axis`."""
    with quiet("torch", "torchao"):  # it tells of kernels for other machines
        from torchao.quantization.pt2e import fake_quantize, observer
    if axis is None:
        return fake_quantize.FakeQuantize(
            observer=observer.MovingAverageMinMaxObserver,
            averaging_constant=AVERAGING,
            dtype=torch.int8,
            qscheme=torch.per_tensor_symmetric,
            quant_min=-127,
            quant_max=127,
        )
    # Not the fused module: it trains with a scale that is 1/255 off.
    return fake_quantize.FakeQuantize(
        observer=observer.MovingAveragePerChannelMinMaxObserver,
        averaging_constant=1.0,  # nothing of earlier steps
        dtype=torch.int8,
        qscheme=torch.per_channel_symmetric,
        ch_axis=axis,
        quant_min=-127,
        quant_max=127,
    )


def _lower(graph_module: fx.GraphModule, node: fx.Node) -> None:
    fake: Any = graph_module.get_submodule(str(node.target))
    bounds = (fake.quant_min, fake.quant_max, torch.int8)
    operators = torch.ops.quantized_decomposed
    with graph_module.graph.inserting_before(node):
        if fake.is_per_channel:
            for name in ("scale", "zero_point"):
                graph_module.register_buffer(f"{node.target}_{name}", getattr(fake, name).detach().clone())
            parameters = [graph_module.graph.get_attr(f"{node.target}_{name}") for name in ("scale", "zero_point")]
            common = (*parameters, fake.ch_axis, *bounds)
            kinds = (operators.quantize_per_channel.default, operators.dequantize_per_channel.default)
        else:
            common = (float(fake.scale), int(fake.zero_point), *bounds)
            kinds = (operators.quantize_per_tensor.default, operators.dequantize_per_tensor.default)
        integers = graph_module.graph.call_function(kinds[0], (node.args[0], *common))
        floats = graph_module.graph.call_function(kinds[1], (integers, *common))
    node.replace_all_uses_with(floats)
    graph_module.graph.erase_node(node)
