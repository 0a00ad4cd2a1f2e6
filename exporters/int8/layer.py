"""What a layer is to a rule that changes it just before it is quantized."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A weighted node whose inputs are as the INT8 file computes them, all layers before it having been changed."""

    node: onnx.NodeProto
    weight: np.ndarray  # float, as in the graph
    axis: int  # of its output channels
    bias: np.ndarray | None  # (channels,), of an Add behind a MatMul; None: nowhere one could be put
    scale: np.ndarray  # of the weight, shaped to be multiplied with it
    limit: int  # the largest integer
    low: float  # what the activation fused to it keeps its output above
    high: float  # and below
    tied: bool  # other nodes read the same weight
    inputs: Sequence[np.ndarray]  # one per batch: with the error of everything before
    wanted: Sequence[np.ndarray]  # one per batch: what the float graph has here, before the activation
    run: Callable[[np.ndarray, np.ndarray | None], Iterator[np.ndarray]]  # (weight, bias) -> as `wanted`

    @property
    def integers(self) -> np.ndarray:
        """The weight on its grid, as the writer will round it; float64 of whole numbers."""
        steps: np.ndarray = np.rint(self.weight.astype(np.float64) / self.scale).clip(-self.limit, self.limit)
        return steps

    @property
    def quantized(self) -> np.ndarray:
        """The weight as the file stands for it, float32."""
        return np.asarray(self.integers * self.scale, np.float32)

    @property
    def channel_axis(self) -> int:
        """Axis of the output channels in `wanted`."""
        return 1 if self.node.op_type == "Conv" else -1


Visit = Callable[[Layer], Layer]
