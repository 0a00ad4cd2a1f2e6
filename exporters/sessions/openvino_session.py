"""An ONNX file in OpenVINO, on the CPU. Needs numpy and openvino only: the device runs this very file."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import ArtifactError, MeasurementError
from ...core.feeds import check_feed
from ...core.values import Arrays, TensorSpec
from . import openvino_settings

_NAMES = {
    "f32": "float32",
    "f64": "float64",
    "f16": "float16",
    "boolean": "bool",
    **{f"{short}{bits}": f"{long}{bits}" for short, long in (("i", "int"), ("u", "uint")) for bits in (8, 16, 32, 64)},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """One node of the graph that OpenVINO runs."""

    name: str  # OpenVINO's own
    operator: str  # "Convolution", "FullyConnected", "MatMul"
    precision: str  # "u8" and "i8": computes on integers
    nodes: tuple[str, ...]  # OpenVINO's names of what was fused: those of the file, often with "/" and a word behind
    readers: tuple[str, ...]  # kernels that read its result


class OpenVinoSession:
    """One loaded file, set as `openvino_settings` says.

    Args:
        path: ONNX file.
        threads: of an inference.
        profiling: count the time of each kernel, see `profile`; it costs some itself.

    Raises:
        ArtifactError: OpenVINO cannot load it.
    """

    def __init__(self, path: Path | str, threads: int = 1, profiling: bool = False) -> None:
        openvino = load_openvino()
        self._path, self._openvino, self._profiling = path, openvino, profiling
        try:
            settings = {**openvino_settings.for_latency(threads), "PERF_COUNT": "YES" if profiling else "NO"}
            self._compiled: Any = openvino.Core().compile_model(str(path), "CPU", settings)
        except Exception as error:  # its exceptions share no base class
            raise ArtifactError(f"{path}: OpenVINO cannot load it: {_last_line(error)}") from error
        self._inputs = tuple(_spec(port) for port in self._compiled.inputs)
        self._outputs = tuple(_spec(port) for port in self._compiled.outputs)
        self._request: Any = self._compiled.create_infer_request()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What goes in. OpenVINO forgets what a dynamic axis is called; it is "?"."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, feed: Arrays) -> dict[str, np.ndarray]:
        """See `core.values.Session`.

        Raises:
            DataError: an input is missing, or has another type or shape than the file says.
            MeasurementError: OpenVINO fails on it.
        """
        self._set(self._request, feed)
        self._infer(self._request)
        return {spec.name: self._request.get_tensor(spec.name).data.copy() for spec in self._outputs}

    def bind(self, feed: Arrays) -> Callable[[], None]:
        """A function that runs this feed with its inputs set once: what a timing loop calls.

        Raises:
            DataError, MeasurementError: as `run`, which the feed has been through once.
        """
        request = self._opened().create_infer_request()
        self._set(request, feed)
        self._infer(request)

        def run() -> None:
            request.infer(share_outputs=True)

        return run

    def kernels(self) -> Iterator[Kernel]:
        """The nodes of the graph that OpenVINO really runs."""
        for node in self._opened().get_runtime_model().get_ops():
            said = {key: value.get() for key, value in node.get_rt_info().items() if hasattr(value, "get")}
            inputs = [each for output in node.outputs() for each in output.get_target_inputs()]
            # The precision is that of what it reads; one for floats alone, as AVX2's transposed convolution, says so.
            in_float = said.get("primitiveType", "").endswith("_f32")
            yield Kernel(
                name=node.get_friendly_name(),
                operator=said.get("layerType", ""),
                precision="f32" if in_float else said.get("runtimePrecision", ""),
                nodes=tuple(filter(None, said.get("originalLayersNames", "").split(","))),
                readers=tuple(each.get_node().get_friendly_name() for each in inputs),
            )

    def profile(self) -> dict[str, float]:
        """Milliseconds of each kernel in the last `run`, by its name; those that did nothing are left out.

        Raises:
            MeasurementError: the session does not count.
        """
        self._opened()
        if not self._profiling:
            raise MeasurementError(f"{self._path}: the session was not opened to count times")
        found = self._request.profiling_info
        return {each.node_name: each.real_time.total_seconds() * 1e3 for each in found if each.real_time}

    def close(self) -> None:
        self._compiled = self._request = None

    def _opened(self) -> Any:
        if self._compiled is None:
            raise ArtifactError(f"{self._path}: the session is closed")
        return self._compiled

    def _set(self, request: Any, feed: Arrays) -> None:
        self._opened()
        check_feed(self._path, self._inputs, feed)
        for spec in self._inputs:
            request.set_tensor(
                spec.name, self._openvino.Tensor(np.ascontiguousarray(feed[spec.name]), shared_memory=True)
            )

    def _infer(self, request: Any) -> None:
        try:
            request.start_async()  # `infer` is faster by a change of threads, and with one thread loses errors
            request.wait()
        except Exception as error:  # its exceptions share no base class
            raise MeasurementError(f"{self._path}: OpenVINO cannot run it: {_last_line(error)}") from error


def _spec(port: Any) -> TensorSpec:
    kind = port.element_type.get_type_name()
    shape = tuple(size.get_length() if size.is_static else "?" for size in port.partial_shape)
    return TensorSpec(name=port.get_any_name(), dtype=_NAMES.get(kind, kind), shape=shape)


def load_openvino() -> Any:
    """The package, without the usage statistics that importing it keeps in the home folder and sends.

    What measures a release does neither unasked; without `openvino_telemetry` the package takes a stub of its own.
    """
    modules: dict[str, Any] = sys.modules  # in which None stands for a module that is not to be had
    first = "openvino" not in modules and "openvino_telemetry" not in modules
    if first:
        modules["openvino_telemetry"] = None
    try:
        import openvino
    finally:
        if first:
            del modules["openvino_telemetry"]
    return openvino


def _last_line(error: Exception) -> str:
    """What is wrong; the lines before say where in OpenVINO's own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
