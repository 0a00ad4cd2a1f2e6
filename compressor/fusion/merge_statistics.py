"""What data tells about the weights of one model: Fisher information, and the Gram matrices of layers' inputs."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ...core.errors import TaskError
from ...core.task import NO_LABEL, Task
from ...exporters.sessions.torch_session import Tensors, forward
from ..learning.losses import Draw, named_loss
from ..learning.padding import standing

Batch = tuple[Tensors, torch.Tensor | None]


def fisher(
    module: nn.Module, samples: Iterable[Batch], task: Task, output: str, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Diagonal of the Fisher information, by parameter: the mean over samples of the squared gradient of the loss.

    Labels are drawn from the model's own answer, as the definition has it: a class from its softmax, each of several
    labels by its own probability, a number from a normal distribution around it. Of a loss function of the user's own
    no distribution is known; it gets real labels. Of padding no class is drawn.

    Args:
        module: in eval mode afterwards; its gradients are left alone.
        samples: batches of one sample.
        output: the name of the output that the labels belong to.
    """
    parameters = {name: p for name, p in module.eval().named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    loss, count = named_loss(task), 0
    for inputs, labels in samples:
        answer = forward(module, inputs, task.outputs)[output].float()
        drawn, real = _drawn(answer.detach(), labels, task, loss.drawn, generator), standing(inputs, answer.shape[2:])
        if loss.classes and real is not None:
            drawn = drawn.masked_fill(~real, NO_LABEL)
        value = loss.hard(answer, drawn)
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                total[name] += gradient.square()
        count += 1
    return {name: value / max(count, 1) for name, value in total.items()}


def _drawn(
    answer: torch.Tensor, labels: torch.Tensor | None, task: Task, draw: Draw | None, generator: torch.Generator
) -> torch.Tensor:
    if draw is not None:
        return draw(answer, generator)
    if labels is None:
        raise TaskError(f"task '{task.name}': the Fisher information of a loss function of your own needs labels")
    return labels


def grams(module: nn.Module, samples: Iterable[Batch]) -> dict[str, torch.Tensor]:
    """Layer -> mean over samples of `x x^T`, `(groups, D, D)`, of linear layers and convolutions in one or two axes.

    D counts what one output is the weighted sum of: inputs of its group times positions of the filter, and, where there
    is a bias, a last input that is always 1. Sums over all positions a layer is applied at.
    """
    total: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
            rows = _rows(layer, arguments[0].detach().float())
            if getattr(layer, "bias", None) is not None:
                rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], 2)
            gram = (rows.transpose(1, 2) @ rows).cpu().double()
            total[name] = total[name] + gram if name in total else gram

        return hook

    layers = {name: layer for name, layer in module.named_modules() if _is_product(layer)}
    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    count = 0
    try:
        module.eval()
        with torch.no_grad():
            for inputs, _ in samples:
                module(*inputs.values())
                count += len(next(iter(inputs.values())))
    finally:
        for handle in handles:
            handle.remove()
    return {name: gram / count for name, gram in total.items()}


def _is_product(layer: nn.Module) -> bool:
    plain = type(layer) in (nn.Linear, nn.Conv1d, nn.Conv2d)
    return plain and not nn.utils.parametrize.is_parametrized(layer)


def _rows(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the layer's outputs are weighted sums of: `(groups, positions, D)`."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    flat = isinstance(layer, nn.Conv1d)  # one row of an image
    one = (1,) if flat else ()
    columns = functional.unfold(
        x.unsqueeze(2) if flat else x,
        one + layer.kernel_size,
        dilation=one + layer.dilation,
        stride=one + layer.stride,
    )  # (N, C * filter, positions)
    grouped = columns.reshape(len(x), layer.groups, -1, columns.shape[-1])
    return grouped.permute(1, 0, 3, 2).flatten(1, 2)
