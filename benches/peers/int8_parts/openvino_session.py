"""OpenVINO's representation as a session that is timed beside ONNX Runtime's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgesmith.core.values import Arrays, TensorSpec


class OpenVinoSession:
    """One .xml (and .bin) on the CPU, tuned for latency: one stream with `threads` threads."""

    def __init__(self, path: Path, threads: int) -> None:
        import openvino

        self._openvino: Any = openvino
        settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(threads)}
        self._compiled: Any = openvino.Core().compile_model(str(path), "CPU", settings)
        self._outputs = [port.get_any_name() for port in self._compiled.outputs]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(_spec(port) for port in self._compiled.inputs)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(_spec(port) for port in self._compiled.outputs)

    @property
    def precision(self) -> str:
        """What it computes floats in: OpenVINO chooses bfloat16 by itself where the CPU has it."""
        return str(self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string())

    def run(self, feed: Arrays) -> dict[str, np.ndarray]:
        request = self._request(feed)
        request.infer()
        return {name: request.get_tensor(name).data.copy() for name in self._outputs}

    def bind(self, feed: Arrays) -> Callable[[], None]:
        run: Callable[[], None] = self._request(feed).infer
        return run

    def close(self) -> None:
        self._compiled = None

    def _request(self, feed: Arrays) -> Any:
        request = self._compiled.create_infer_request()
        for name, array in feed.items():
            tensor = self._openvino.Tensor(np.ascontiguousarray(array), shared_memory=False)
            request.set_tensor(name, tensor)
        return request


def open_ir(path: str, threads: int) -> OpenVinoSession:
    """What `timing_loop` opens it by."""
    return OpenVinoSession(Path(path), threads)


def _spec(port: Any) -> TensorSpec:
    sizes = enumerate(port.partial_shape)
    shape = tuple(f"axis{index}" if size.is_dynamic else size.get_length() for index, size in sizes)
    return TensorSpec(name=port.get_any_name(), dtype=port.element_type.to_dtype().name, shape=shape)
