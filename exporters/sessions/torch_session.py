"""A torch module as a Session: the original, a teacher or a candidate, run eagerly."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ...core.errors import DataError, TaskError
from ...core.values import Arrays, TensorSpec

Tensors = Mapping[str, torch.Tensor]


def forward(module: nn.Module, inputs: Tensors, outputs: Sequence[str]) -> dict[str, torch.Tensor]:
    """Call a module with its inputs in the task's order, and name what it returns.

    Args:
        inputs: input name -> tensor `(batch, ...)`; passed by position.
        outputs: names for what comes back: a tensor, a tuple of tensors, or a dict that has these keys.

    Raises:
        TaskError: the module returns something else, or another number of tensors.
    """
    result: Any = module(*inputs.values())
    if isinstance(result, Mapping):
        missing = [name for name in outputs if name not in result]
        if missing:
            raise TaskError(f"the model returns {sorted(map(str, result))}, but the task's outputs also name {missing}")
        for name in outputs:
            if not isinstance(result[name], torch.Tensor):
                kind = type(result[name]).__name__
                raise TaskError(f"the model returns a {kind} as its output '{name}'; an output is a tensor")
        return {name: result[name] for name in outputs}
    tensors = list(result) if isinstance(result, (tuple, list)) else [result]
    if len(tensors) != len(outputs) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        kinds = ", ".join(type(tensor).__name__ for tensor in tensors)
        raise TaskError(
            f"the model returns {len(tensors)} value(s) ({kinds}), but the task names the outputs {list(outputs)}"
        )
    return dict(zip(outputs, tensors, strict=True))


def copied(inputs: Tensors) -> dict[str, torch.Tensor]:
    """Inputs for one model alone: some change theirs."""
    return {name: tensor.clone() for name, tensor in inputs.items()}


def to_tensors(arrays: Arrays, device: torch.device | str) -> dict[str, torch.Tensor]:
    """Arrays as tensors on `device`, copied: what a model does to its input never reaches the data."""
    return {name: to_tensor(array, device) for name, array in arrays.items()}


def to_tensor(array: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """A copy on `device` of an array in any layout and byte order."""
    return torch.tensor(np.ascontiguousarray(array, array.dtype.newbyteorder("=")), device=device)


class TorchSession:
    """Runs `module` in eval mode without gradients, on the device its parameters are on."""

    def __init__(self, module: nn.Module, inputs: tuple[TensorSpec, ...], outputs: Sequence[str]) -> None:
        self._module = module.eval()
        self._inputs = inputs
        self._names = tuple(outputs)
        first = next(iter(module.parameters()), None)
        self._device = torch.device("cpu") if first is None else first.device

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Names only: torch does not tell shapes before it runs."""
        return tuple(TensorSpec(name=name, dtype="float32", shape=("batch",)) for name in self._names)

    def run(self, feed: Arrays) -> dict[str, np.ndarray]:
        """See `core.values.Session`.

        Raises:
            DataError: an input is missing.
            TaskError: see `forward`.
        """
        with torch.inference_mode():
            results = forward(self._module, self._tensors(feed), self._names)
        return {
            name: tensor.float().cpu().numpy() if tensor.is_floating_point() else tensor.cpu().numpy()
            for name, tensor in results.items()
        }

    def bind(self, feed: Arrays) -> Callable[[], None]:
        """A function that runs this feed, its tensors made once: what a timing loop calls.

        It runs once already, so that a compiled module compiles for this shape now; on a GPU it waits for the result.
        """
        tensors = tuple(self._tensors(feed).values())
        on_gpu = self._device.type == "cuda"

        def run() -> None:
            with torch.inference_mode():
                self._module(*tensors)
            if on_gpu:
                torch.cuda.synchronize(self._device)

        run()
        return run

    def _tensors(self, feed: Arrays) -> dict[str, torch.Tensor]:
        for spec in self._inputs:
            if spec.name not in feed:
                raise DataError(f"the model's input '{spec.name}' is missing; given: {', '.join(feed) or 'nothing'}")
        return to_tensors({spec.name: feed[spec.name] for spec in self._inputs}, self._device)

    def close(self) -> None:
        """Nothing to give back: the module belongs to the caller."""
