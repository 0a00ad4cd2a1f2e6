"""The machine and the versions behind a measurement; nothing heavy is imported to say so."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Dict, List, Union

_PACKAGES = (
    *("edgesmith", "numpy", "onnx", "onnxscript", "torch", "torch-pruning", "accelerate"),
    *("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "openvino", "tensorrt", "tensorrt-rtx"),
)
# What decides how fast, and on x86 how exactly, INT8 runs.
_FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
_CGROUP = Path("/sys/fs/cgroup")
_BOARD = Path("/proc/device-tree/model")
_NVIDIA = Path("/proc/driver/nvidia")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")

Description = Dict[str, Union[str, int, List[str]]]


def describe(threads: int, seed: int) -> Description:
    """Machine, runtime versions and the two options that decide a measurement.

    Returns:
        JSON-able: python, os, machine, cpu, cpu_features, cores, threads, seed, those of `power_modes` and `devices`,
        and one key for every package that is installed (`torch-pruning` as `torch_pruning`).
    """
    found: Description = {
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "cpu_features": features(),
        "cores": cores(),
        "threads": threads,
        "seed": seed,
        **power_modes(),
        **devices(),
    }
    for package in _PACKAGES:
        try:
            found[package.replace("-", "_")] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def power_modes(governor: Path = _GOVERNOR) -> dict[str, str]:
    """What may hold the processors' clocks down for as long as it is set; a machine that has no such thing has no key.

    Returns:
        `cpu_governor` (Linux, of the first core) and `power_mode` (as `nvpmodel -q` of a Jetson says: "MAXN", "15W").
    """
    found = {"cpu_governor": governor.read_text().strip()} if governor.is_file() else {}
    tool = shutil.which("nvpmodel") or shutil.which("nvpmodel", path="/usr/sbin")  # not on every user's path
    if tool is not None:
        asked = subprocess.run(
            [tool, "-q"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30, check=False
        )
        names = [line.split(":", 1)[1].strip() for line in asked.stdout.splitlines() if "Power Mode:" in line]
        found["power_mode"] = names[0] if names else f"not said: {asked.stdout.strip()[:80] or 'no answer'}"
    return found


def devices(board: Path = _BOARD, nvidia: Path = _NVIDIA) -> Description:
    """What measures beside the processor, by the files of the kernel; a machine without has no key.

    Returns:
        `board` (of an Arm board, a Jetson among them), `gpus` (NVIDIA's, one name each) and `nvidia_driver`.
    """
    found: Description = {"board": board.read_text(errors="replace").rstrip("\0\n")} if board.is_file() else {}
    models = [_field(path, "Model") or "unknown" for path in sorted(nvidia.glob("gpus/*/information"))]
    if models:
        found["gpus"] = models
    if (nvidia / "version").is_file():
        version = re.search(r"\b\d+\.[\d.]+\b", (nvidia / "version").read_text(errors="replace"))
        found["nvidia_driver"] = version.group() if version else "not said"
    return found


def cpu_name() -> str:
    """The processor as it calls itself."""
    return _cpu_field("model name") or platform.processor() or "unknown"


def cores() -> int:
    """Cores this process may use, fewer than the machine has where a container or taskset says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def features(wanted: Sequence[str] = _FEATURES) -> list[str]:
    """Which of the instruction sets the CPU has, by the names of /proc/cpuinfo; empty where there is none."""
    flags = set((_cpu_field("flags") or _cpu_field("Features") or "").split())
    return [feature for feature in wanted if feature in flags]


def core_limit(root: Path = _CGROUP) -> float | None:
    """Cores' worth of time that a container is granted (cgroup), or None where nothing limits it."""
    words = _limit(root / "cpu.max").split()  # "150000 100000", or "max 100000"
    if len(words) != 2:  # cgroup version 1
        words = [_limit(root / "cpu" / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    return int(words[0]) / int(words[1]) if all(word.isdigit() for word in words) else None


def memory_bytes(root: Path = _CGROUP) -> int:
    """Memory this process may use in bytes: the machine's, or less where a container is limited."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [_limit(root / name) for name in ("memory.max", "memory/memory.limit_in_bytes")]
    return min([machine, *(int(limit) for limit in limits if limit.isdigit())])


def _limit(path: Path) -> str:
    """What a cgroup file says, an empty string where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _cpu_field(name: str) -> str | None:
    """The first of /proc/cpuinfo (Linux)."""
    return _field(Path("/proc/cpuinfo"), name)


def _field(path: Path, name: str) -> str | None:
    """The first `name : value` of a file; None: no such line, or no file."""
    if not path.exists():
        return None
    for line in path.read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None
