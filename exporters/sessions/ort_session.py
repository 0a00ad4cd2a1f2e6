"""An ONNX file in ONNX Runtime. Needs numpy and onnxruntime only: the device runs this very file."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ...core.errors import ArtifactError, MeasurementError, UsageError
from ...core.feeds import check_feed
from ...core.values import Arrays, TensorSpec
from . import openvino_settings
from .cpu import this_cpu

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
# What brings a provider, in place of onnxruntime.
PACKAGES = {"cuda": "onnxruntime-gpu", "tensorrt": "onnxruntime-gpu", "openvino": "onnxruntime-openvino"}
_NOT_STARTED = {
    "cuda": "its CUDA libraries do not fit this machine's: "
    'pip install "onnxruntime-gpu[cuda,cudnn]", or use --device cpu',
    "tensorrt": "it finds no TensorRT libraries of its version: pip install tensorrt",
    "openvino": "it finds no OpenVINO libraries of its version: pip install --force-reinstall onnxruntime-openvino",
}

_DTYPES: Mapping[str, str] = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


class OnnxRuntimeSession:
    """One loaded file, at the highest graph optimization level.

    Args:
        path: ONNX file.
        threads: of each operator; operators run one after the other.
        device: "cpu", "cuda", "tensorrt" or "openvino" (on the CPU). What "tensorrt" has no layer for runs on "cuda",
            what "cuda" has no kernel for on the CPU, as ONNX Runtime places it; a session that as a whole would fall
            back is refused.
        shared_pool: take the worker threads from one pool of the whole process. A pool's threads spin for a while after
            each run; where sessions take turns, those of one would hold the cores that the next one needs.
        exact: without the saturation of this CPU's INT8 kernels, where they have any, in the time of float ones: what
            another device computes of the same Q/DQ pairs.
        profile: what the name of the file begins with into which every kernel is written; empty: none is.
        name: what errors call the file, where it is a copy of the user's; empty: its path.

    Raises:
        ArtifactError: ONNX Runtime cannot load it.
        UsageError: this ONNX Runtime has no provider for the device.
        MeasurementError: it has one that does not start.
    """

    def __init__(
        self,
        path: Path | str,
        threads: int = 1,
        device: str = "cpu",
        *,
        shared_pool: bool = False,
        exact: bool = False,
        profile: str = "",
        name: str = "",
    ) -> None:
        wanted, levels = provider(device), onnxruntime.GraphOptimizationLevel
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = levels.ORT_ENABLE_ALL
        if exact and this_cpu() == "x86":
            options.graph_optimization_level = levels.ORT_ENABLE_BASIC  # no pair becomes part of an INT8 kernel
        if shared_pool and threads > 1:
            _start_pool(threads)
            options.use_per_session_threads = False
        else:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        options.log_severity_level = 3  # its warnings are about its own optimizations
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        self._path = name or path
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=_providers(device, threads))
        except Exception as error:  # its exceptions share no base class
            said = _first_line(error).replace(str(path), str(self._path))
            raise ArtifactError(f"{self._path}: ONNX Runtime cannot load it: {said}") from error
        if wanted not in self._session.get_providers():  # it only warns, and goes on with the CPU
            raise MeasurementError(f"{self._path}: ONNX Runtime could not start {wanted}; {_NOT_STARTED[device]}")
        self._inputs = tuple(_spec(value) for value in self._session.get_inputs())
        self._outputs = tuple(_spec(value) for value in self._session.get_outputs())

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, feed: Arrays) -> dict[str, np.ndarray]:
        """See `core.values.Session`.

        Raises:
            DataError: an input is missing, or has another type or shape than the file says.
            MeasurementError: ONNX Runtime fails on it, as where the graph itself fixes a batch size.
        """
        session = self._opened()
        check_feed(self._path, self._inputs, feed)
        names = [spec.name for spec in self._outputs]
        try:
            values = session.run(names, {spec.name: feed[spec.name] for spec in self._inputs})
        except Exception as error:  # its exceptions share no base class
            raise MeasurementError(f"{self._path}: ONNX Runtime cannot run it: {_first_line(error)}") from error
        return dict(zip(names, values))

    def bind(self, feed: Arrays) -> Callable[[], None]:
        """A function that runs this feed with inputs and outputs bound once: what a timing loop calls."""
        session = self._opened()
        check_feed(self._path, self._inputs, feed)
        binding = session.io_binding()
        for spec in self._inputs:
            binding.bind_cpu_input(spec.name, np.ascontiguousarray(feed[spec.name]))
        for spec in self._outputs:
            binding.bind_output(spec.name)

        def run() -> None:
            try:
                session.run_with_iobinding(binding)
            except Exception as error:  # its exceptions share no base class
                raise MeasurementError(f"{self._path}: ONNX Runtime cannot run it: {_first_line(error)}") from error

        return run

    def profiled(self) -> Path:
        """The file that `profile` asked for, as trace events in JSON; nothing is written to it any more."""
        return Path(self._opened().end_profiling())

    def close(self) -> None:
        self._session = None

    def _opened(self) -> Any:
        if self._session is None:
            raise ArtifactError(f"{self._path}: the session is closed")
        return self._session


def _providers(device: str, threads: int) -> list[Any]:
    """What is asked for, with its settings, in this order."""
    if device == "openvino":
        return [(_PROVIDERS[device], {"load_config": json.dumps({"CPU": openvino_settings.for_latency(threads)})})]
    if device == "tensorrt":
        # Without its INT8 flag TensorRT before 11 refuses a file with Q/DQ pairs (microsoft/onnxruntime#13381).
        return [(_PROVIDERS[device], {"trt_int8_enable": True}), _PROVIDERS["cuda"]]
    return [_PROVIDERS[device]]


def provider(device: str) -> str:
    """The execution provider of a device.

    Raises:
        UsageError: this build of ONNX Runtime has none for it.
    """
    name = _PROVIDERS.get(device)
    if name is None or name not in onnxruntime.get_available_providers():
        known, package = ", ".join(_PROVIDERS), PACKAGES.get(device, "onnxruntime")
        remedy = f"known devices: {known}" if name is None else f"pip install {package}"
        raise UsageError(f"this ONNX Runtime {onnxruntime.__version__} cannot run on '{device}'; {remedy}")
    return name


def missing(device: str) -> str | None:
    """Why there is no provider for a device, or None."""
    try:
        provider(device)
    except UsageError as error:
        return str(error).replace("; pip install", ": pip install")
    return None


@functools.lru_cache(maxsize=None)  # ONNX Runtime makes the pool once and refuses a second call
def _start_pool(threads: int) -> None:
    onnxruntime.set_global_thread_pool_sizes(threads, 1)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _spec(value: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) and size >= 0 else _axis(size) for size in value.shape)
    return TensorSpec(name=value.name, dtype=_DTYPES.get(value.type, value.type), shape=shape)


def _axis(size: Any) -> str:
    """The name of an open axis; some files have -1 there."""
    return size if isinstance(size, str) and size else "?"
