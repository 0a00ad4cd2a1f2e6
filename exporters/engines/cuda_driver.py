"""The CUDA driver through ctypes: context, memory, stream, events, graphs. Needs the driver only: no toolkit, no torch.

Names and signatures: NVIDIA's "CUDA Driver API" reference. Memory is counted in bytes, time in milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ...core.errors import MeasurementError

_LIBRARY = "libcuda.so.1"
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on with what cannot be recorded
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


def load() -> Any | None:
    """The driver's library, or None where there is no driver or no device."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    count = ctypes.c_int(0)
    if library.cuInit(0) != 0 or library.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return None
    return library if count.value else None


def capability() -> str | None:
    """Compute capability of the first device ("8.6"); None without one."""
    library = load()
    return None if library is None else Device(library).capability


class Device:
    """The first CUDA device, in its primary context: the one that torch and TensorRT's runtime use too.

    Args:
        library: the driver; None: the one that is installed.

    Raises:
        MeasurementError: no CUDA device, or the driver refuses.
    """

    def __init__(self, library: Any | None = None) -> None:
        found = load() if library is None else library
        if found is None:
            raise MeasurementError("no CUDA device: the NVIDIA driver is not installed, or sees no GPU")
        self._library = found
        self._handle, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuInit", ctypes.c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(self._handle), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._handle)
        self._call("cuCtxSetCurrent", context)

    @property
    def capability(self) -> str:
        """Compute capability: "8.6"."""
        parts = []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, self._handle)
            parts.append(str(value.value))
        return ".".join(parts)

    def free_bytes(self) -> int:
        """Memory of the device that no process holds."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def allocate(self, size: int) -> int:
        """The address of `size` bytes on the device; at least one is taken, so that every address is its own."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(1, size)))
        return address.value

    def free(self, address: int) -> None:
        """Give an allocation back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address: int, array: np.ndarray, stream: int) -> None:
        """Copy a contiguous array to the device."""
        source = ctypes.c_void_p(array.ctypes.data)
        self._call(
            "cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, ctypes.c_size_t(array.nbytes), _pointer(stream)
        )

    def download(self, array: np.ndarray, address: int, stream: int) -> None:
        """Copy from the device into a contiguous array; it is there once the stream is synchronized."""
        goal = ctypes.c_void_p(array.ctypes.data)
        self._call(
            "cuMemcpyDtoHAsync_v2", goal, ctypes.c_uint64(address), ctypes.c_size_t(array.nbytes), _pointer(stream)
        )

    def create_stream(self) -> int:
        """A stream of its own: the default one would wait for every other."""
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(1))  # CU_STREAM_NON_BLOCKING
        return stream.value or 0

    def synchronize(self, stream: int) -> None:
        """Wait until everything queued in the stream is done."""
        self._call("cuStreamSynchronize", _pointer(stream))

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back."""
        self._call("cuStreamDestroy_v2", _pointer(stream))

    @contextlib.contextmanager
    def events(self, count: int) -> Iterator[list[int]]:
        """Events to record in a stream."""
        made: list[int] = []
        try:
            for _ in range(count):
                event = ctypes.c_void_p()
                self._call("cuEventCreate", ctypes.byref(event), ctypes.c_uint(0))
                made.append(event.value or 0)
            yield made
        finally:
            for address in made:
                self._call("cuEventDestroy_v2", _pointer(address))

    def record(self, event: int, stream: int) -> None:
        """Let the event happen when the stream gets there."""
        self._call("cuEventRecord", _pointer(event), _pointer(stream))

    def elapsed_ms(self, first: int, second: int) -> float:
        """Milliseconds between two events of one stream; waits for the second."""
        milliseconds = ctypes.c_float()
        self._call("cuEventSynchronize", _pointer(second))
        self._call("cuEventElapsedTime", ctypes.byref(milliseconds), _pointer(first), _pointer(second))
        return milliseconds.value

    @contextlib.contextmanager
    def graph(self, stream: int, enqueue: Callable[[], None]) -> Iterator[Callable[[], None]]:
        """What `enqueue` puts into the stream, recorded once as a CUDA graph; yields what launches it there.

        Raises:
            MeasurementError: something in it cannot be recorded, as where it waits for the device.
        """
        recorded, graph = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", _pointer(stream), ctypes.c_int(_THREAD_LOCAL))
        try:
            try:
                enqueue()
            except Exception:  # the stream must not record for ever; what went wrong first is what is said
                self._library.cuStreamEndCapture(_pointer(stream), ctypes.byref(recorded))
                raise
            self._call("cuStreamEndCapture", _pointer(stream), ctypes.byref(recorded))
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(graph), recorded, ctypes.c_ulonglong(0))
            yield lambda: self._call("cuGraphLaunch", graph, _pointer(stream))
            self.synchronize(stream)
        finally:
            if graph.value:
                self._call("cuGraphExecDestroy", graph)
            if recorded.value:
                self._call("cuGraphDestroy", recorded)

    def close(self) -> None:
        """Give the context back."""
        self._call("cuDevicePrimaryCtxRelease_v2", self._handle)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise MeasurementError(f"CUDA driver: {name}: {self._text(code)} (error {code})")

    def _text(self, code: int) -> str:
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(code, ctypes.byref(text))
        return text.value.decode() if text.value else "unknown error"


def _pointer(address: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(address)
