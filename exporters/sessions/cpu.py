"""Which INT8 kernels a CPU has."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Literal

Cpu = Literal["x86-vnni", "x86", "arm", "other"]  # "x86": without VNNI, products are added in 16 bits and saturate

_X86 = ("x86_64", "AMD64")
_ARM = ("aarch64", "arm64", "ARM64")
_CPU_INFO = Path("/proc/cpuinfo")


def this_cpu(machine: str | None = None, cpu_info: Path = _CPU_INFO) -> Cpu:
    """The kind of this machine's CPU; an x86 one that does not say what it has is taken to saturate."""
    machine = machine or platform.machine()
    if machine in _ARM:
        return "arm"
    if machine not in _X86:
        return "other"
    try:
        return "x86-vnni" if "vnni" in cpu_info.read_text() else "x86"
    except OSError:  # not Linux: unknown, so the kind whose files are right on both
        return "x86"
