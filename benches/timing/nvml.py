"""NVIDIA's management library: what a GPU has consumed, and whether it was slowed down. It has not yet run on a GPU.

Needs nvidia-ml-py, whose module is `pynvml`; a device may do without it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...core.errors import MeasurementError

GPU_SESSIONS = ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt")  # kinds in `timing_loop.SESSIONS`
# Bits of nvmlDeviceGetCurrentClocksEventReasons that void a measurement (nvml.h). The software's power cap is not among
# them: it is how a GPU of a power mode runs, and it lasts.
_SLOWDOWNS = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


class Gpu:
    """The GPU that CUDA takes first.

    Args:
        nvml: stands for the module `pynvml`.
        visible: what CUDA_VISIBLE_DEVICES says; None: ask the environment.

    Raises:
        MeasurementError: the module is missing, or NVML does not start; says why.
    """

    def __init__(self, nvml: Any = None, visible: str | None = None) -> None:
        first = (os.environ.get("CUDA_VISIBLE_DEVICES", "") if visible is None else visible).split(",")[0].strip()
        try:
            self._nvml = importlib.import_module("pynvml") if nvml is None else nvml
        except ImportError as error:
            raise MeasurementError("nvidia-ml-py is not installed: pip install nvidia-ml-py") from error
        try:
            self._nvml.nvmlInit()
            if first.startswith("GPU-"):
                self._handle = self._nvml.nvmlDeviceGetHandleByUUID(first)
            else:
                self._handle = self._nvml.nvmlDeviceGetHandleByIndex(int(first) if first.isdigit() else 0)
        except self._nvml.NVMLError as error:
            raise MeasurementError(f"NVML does not start: {error}") from error

    def joules(self) -> float:
        """Energy since the driver was loaded.

        Raises:
            MeasurementError: the GPU has no such counter (before Volta).
        """
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except self._nvml.NVMLError as error:
            raise MeasurementError(f"the GPU has no energy counter: {error}") from error

    def memory_bytes(self) -> int:
        """Memory of the GPU that is in use, whoever uses it.

        Raises:
            MeasurementError: the GPU does not say.
        """
        try:
            return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)
        except self._nvml.NVMLError as error:
            raise MeasurementError(f"the GPU does not say how much of its memory is in use: {error}") from error

    def slowdowns(self) -> int:
        """Bits that say what slows the GPU down now; 0: nothing that voids a measurement.

        Raises:
            MeasurementError: the GPU does not say.
        """
        newer = getattr(self._nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
        ask = newer or self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons
        try:
            return int(ask(self._handle)) & sum(_SLOWDOWNS)
        except self._nvml.NVMLError as error:
            raise MeasurementError(f"the GPU does not say whether it is slowed down: {error}") from error


class Watch:
    """What slowed the GPU down while sessions of some kinds were measured.

    Args:
        kinds: of sessions; without one on a GPU nothing is watched, and nothing is missing.
        nvml: stands for the module `pynvml`.
    """

    def __init__(self, kinds: Sequence[str], nvml: Any = None) -> None:
        self.seen = 0  # bits of `Gpu.slowdowns`
        self.problem = ""  # why a GPU is not watched
        self._gpu: Gpu | None = None
        if any(kind in GPU_SESSIONS for kind in kinds):
            try:
                self._gpu = Gpu(nvml)
                self._gpu.slowdowns()
            except MeasurementError as error:
                self._gpu, self.problem = None, str(error)

    def look(self) -> None:
        """To be called between blocks: it takes some microseconds.

        Raises:
            MeasurementError: the GPU does not say any more.
        """
        if self._gpu is not None:
            self.seen |= self._gpu.slowdowns()

    def results(self) -> dict[str, Any]:
        """For a program's results: `slowdowns` (bits) and `clocks` ("", "watched", or why not)."""
        watched = "watched" if self._gpu is not None else f"not watched: {self.problem}" if self.problem else ""
        return {"slowdowns": np.array(self.seen), "clocks": np.array(watched)}


def named(slowdowns: int) -> str:
    """What the bits of `Gpu.slowdowns` stand for."""
    return ", ".join(name for bit, name in _SLOWDOWNS.items() if slowdowns & bit)
