"""A TensorRT engine on a CUDA device. Needs numpy, NVIDIA's driver and its runtime only, as on the device itself."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import ArtifactError, DataError, MeasurementError
from ...core.values import Arrays, TensorSpec
from . import engine_file
from .cuda_driver import Device

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


class EngineSession:
    """One engine, deserialized, with memory on the device for one batch at a time.

    Args:
        path: the engine; its JSON file stands beside it.
        device: the GPU; None: the first.
        vendor: NVIDIA's module; None: the one that built the engine.

    Raises:
        ArtifactError: damaged, or of another TensorRT version or GPU; says which.
        MeasurementError: no CUDA device, or NVIDIA's module is not installed.
    """

    def __init__(self, path: Path, device: Device | None = None, vendor: Any | None = None) -> None:
        self._path, self._info = path, engine_file.read(path)
        trt = _vendor(path, self._info.tool) if vendor is None else vendor
        self._device = device or Device()
        reason = engine_file.refusal(self._info, self._info.tool, trt.__version__, self._device.capability)
        if reason is not None:
            raise ArtifactError(f"{path}: {reason}; build it again on this machine")
        before = self._device.free_bytes()
        self._logger = _logger(trt)
        if hasattr(trt, "init_libnvinfer_plugins"):
            trt.init_libnvinfer_plugins(self._logger, "")  # an engine may hold operators that are plugins
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise ArtifactError(
                f"{path}: {self._info.tool} {trt.__version__} cannot load it: {self._logger.last}; build it again"
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise MeasurementError(f"{path}: no room for the engine on the device: {self._logger.last}")
        self._stream, self._buffers = self._device.create_stream(), _Buffers(self._device)
        self._bound: list[_Buffers] = []
        self._loaded_bytes = max(0, before - self._device.free_bytes())
        self._dtypes = {
            spec.name: np.dtype(trt.nptype(self._engine.get_tensor_dtype(spec.name)))
            for spec in (*self._info.inputs, *self._info.outputs)
        }

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._info.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._info.outputs

    @property
    def device_bytes(self) -> int:
        """Memory on the device: what loading took, inputs and outputs of the largest batch so far, and bound ones."""
        return self._loaded_bytes + sum(buffers.total for buffers in (self._buffers, *self._bound))

    def run(self, feed: Arrays) -> dict[str, np.ndarray]:
        """See `core.values.Session`. A batch larger than the profile's largest is run in pieces.

        Raises:
            DataError: an input is missing, of another type, or of a shape the profile does not hold.
            MeasurementError: the device fails.
        """
        self._check(feed)
        largest = self._largest_batch()
        size = len(next(iter(feed.values()))) if feed else 0
        if largest is None or size <= largest:
            return self._run_once(feed)
        parts = [
            self._run_once({name: array[start : start + largest] for name, array in feed.items()})
            for start in range(0, size, largest)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def bind(self, feed: Arrays) -> Callable[[], None]:
        """A function that runs this feed, on the device since now, and waits for it: what a timing loop calls.

        Copies between host and device are not part of it, as they are not where ONNX Runtime's inputs are bound.
        """
        self._check(feed)
        buffers = _Buffers(self._device)
        self._bound.append(buffers)
        shapes = self._upload(feed, buffers)

        def run() -> None:
            self._enqueue(shapes, buffers)
            self._device.synchronize(self._stream)

        run()
        return run

    def device_ms(self, feed: Arrays, runs: int = 10) -> list[float]:
        """Milliseconds that single runs take on the device itself, by CUDA events; the first run is not counted."""
        enqueue = self._enqueuer(feed)
        enqueue()
        return self._event_times(enqueue, runs)

    def graph_ms(self, feed: Arrays, runs: int = 10) -> list[float]:
        """The same of runs that are launched as one CUDA graph, which leaves no gaps where the host is too slow.

        Raises:
            MeasurementError: the engine has a layer that no graph can hold, as loops and conditions are.
        """
        enqueue = self._enqueuer(feed)
        for _ in range(
            runs
        ):  # TensorRT has work of its own to do after a shape has changed, which is not to be recorded
            enqueue()
        self._device.synchronize(self._stream)
        with self._device.graph(self._stream, self._execute) as launch:
            launch()
            return self._event_times(launch, runs)

    def close(self) -> None:
        """Give the device's memory back."""
        if self._engine is None:
            return
        for buffers in (self._buffers, *self._bound):
            buffers.release()
        self._context = self._engine = self._runtime = None  # in this order: each holds on to the next
        self._device.destroy_stream(self._stream)
        self._device.close()

    def _enqueuer(self, feed: Arrays) -> Callable[[], None]:
        self._check(feed)
        shapes = self._upload(feed, self._buffers)
        return lambda: self._enqueue(shapes, self._buffers)

    def _event_times(self, run: Callable[[], None], runs: int) -> list[float]:
        times = []
        with self._device.events(2) as (first, second):
            for _ in range(runs):
                self._device.record(first, self._stream)
                run()
                self._device.record(second, self._stream)
                times.append(self._device.elapsed_ms(first, second))
        return times

    def _run_once(self, feed: Arrays) -> dict[str, np.ndarray]:
        shapes = self._upload(feed, self._buffers)
        self._enqueue(shapes, self._buffers)
        results = {}
        for spec in self._info.outputs:
            results[spec.name] = np.empty(shapes[spec.name], self._dtypes[spec.name])
            self._device.download(results[spec.name], self._buffers.address(spec.name), self._stream)
        self._device.synchronize(self._stream)
        return results

    def _upload(self, feed: Arrays, buffers: _Buffers) -> dict[str, tuple[int, ...]]:
        """Inputs to the device, room for the outputs; returns every tensor's shape."""
        shapes: dict[str, tuple[int, ...]] = {}
        for spec in self._info.inputs:
            array = np.ascontiguousarray(feed[spec.name])
            shapes[spec.name] = array.shape
            if not self._context.set_input_shape(spec.name, array.shape):
                raise DataError(f"{self._path}: input '{spec.name}': {array.shape} is refused: {self._logger.last}")
            self._device.upload(buffers.reserve(spec.name, array.nbytes), array, self._stream)
            self._device.synchronize(self._stream)  # the copy may read the array until then, and it may be ours alone
        for spec in self._info.outputs:
            shape = tuple(int(size) for size in self._context.get_tensor_shape(spec.name))
            if any(size < 0 for size in shape):
                raise MeasurementError(f"{self._path}: output '{spec.name}': its shape depends on the data: {shape}")
            shapes[spec.name] = shape
            buffers.reserve(spec.name, int(np.prod(shape)) * self._dtypes[spec.name].itemsize)
        return shapes

    def _enqueue(self, shapes: dict[str, tuple[int, ...]], buffers: _Buffers) -> None:
        for spec in self._info.inputs:
            self._context.set_input_shape(spec.name, shapes[spec.name])
        for name in shapes:
            self._context.set_tensor_address(name, buffers.address(name))
        self._execute()

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise MeasurementError(f"{self._path}: TensorRT cannot run it: {self._logger.last}")

    def _largest_batch(self) -> int | None:
        """The batch that every profile still holds; None: no input's first axis is dynamic."""
        sizes = [
            self._info.profiles[spec.name]["max"][0]
            for spec in self._info.inputs
            if spec.name in self._info.profiles and isinstance(spec.shape[0], str)
        ]
        return min(sizes) if len(sizes) == len(self._info.inputs) and sizes else None

    def _check(self, feed: Arrays) -> None:
        if self._engine is None:
            raise ArtifactError(f"{self._path}: the session is closed")
        for spec in self._info.inputs:
            if spec.name not in feed:
                raise DataError(f"{self._path}: input '{spec.name}' is missing; given: {', '.join(feed) or 'nothing'}")
            array = feed[spec.name]
            if str(array.dtype) != spec.dtype or array.ndim != len(spec.shape) or not self._holds(spec, array.shape):
                raise DataError(
                    f"{self._path}: input '{spec.name}' must be {spec.dtype} {self._range(spec)}, "
                    f"got {array.dtype} {array.shape}"
                )

    def _holds(self, spec: TensorSpec, shape: tuple[int, ...]) -> bool:
        low, high = self._bounds(spec)
        batch = int(isinstance(spec.shape[0], str) and self._largest_batch() is not None)  # larger ones are cut up
        fits = [a <= size <= b for a, size, b in zip(low, shape, high)]
        return all(fits[batch:]) and (not batch or shape[0] >= low[0])

    def _bounds(self, spec: TensorSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if spec.name in self._info.profiles:
            profile = self._info.profiles[spec.name]
            return profile["min"], profile["max"]
        fixed = tuple(int(size) for size in spec.shape)
        return fixed, fixed

    def _range(self, spec: TensorSpec) -> str:
        low, high = self._bounds(spec)
        return f"{low}" if low == high else f"from {low} to {high}"


class _Buffers:
    """One allocation per tensor, which grows and never shrinks."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._held: dict[str, tuple[int, int]] = {}  # name -> address, bytes

    @property
    def total(self) -> int:
        """Bytes held."""
        return sum(size for _, size in self._held.values())

    def reserve(self, name: str, size: int) -> int:
        """The address of at least `size` bytes for this tensor."""
        if name in self._held and self._held[name][1] >= size:
            return self._held[name][0]
        if name in self._held:
            self._device.free(self._held.pop(name)[0])
        self._held[name] = (self._device.allocate(size), size)
        return self._held[name][0]

    def address(self, name: str) -> int:
        """Where a tensor is."""
        return self._held[name][0]

    def release(self) -> None:
        """Give everything back."""
        while self._held:
            self._device.free(self._held.popitem()[1][0])


def _vendor(path: Path, tool: str) -> Any:
    try:
        return importlib.import_module(_MODULES[tool])
    except (ImportError, OSError) as error:  # OSError: its bindings without its libraries
        raise MeasurementError(
            f"{path}: not measured: it needs {_MODULES[tool]}, which cannot be imported ({error}): "
            f'pip install "edgesmith[{tool}]"'
        ) from error


def _logger(trt: Any) -> Any:
    class Last(trt.ILogger):  # type: ignore[misc]  # its base is only known here
        """Keeps the last error: the reason of a refusal stands nowhere else."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = "it gave no reason"

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last = message

    return Last()
