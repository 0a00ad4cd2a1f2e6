"""The machine and the versions behind a measurement; nothing heavy is imported to say so."""

import os
import platform
from importlib import metadata
from pathlib import Path

_PACKAGES = ("edgesmith", "numpy", "onnx", "onnxruntime", "onnxscript", "torch", "torch-pruning", "accelerate")
# What decides how fast, and on x86 how exactly, INT8 runs.
_FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")

Description = dict[str, str | int | list[str]]


def describe(threads: int, seed: int) -> Description:
    """Machine, runtime versions and the two options that decide a measurement.

    Returns:
        JSON-able: python, os, machine, cpu, cpu_features, cores, threads, seed, and one key for every package that is
        installed (`torch-pruning` as `torch_pruning`).
    """
    found: Description = {
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": _cpu_field("model name") or platform.processor() or "unknown",
        "cpu_features": _features(),
        "cores": _cores(),
        "threads": threads,
        "seed": seed,
    }
    for package in _PACKAGES:
        try:
            found[package.replace("-", "_")] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cores() -> int:
    """Cores this process may use, fewer than the machine has where a container or taskset says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _features() -> list[str]:
    flags = set((_cpu_field("flags") or _cpu_field("Features") or "").split())
    return [feature for feature in _FEATURES if feature in flags]


def _cpu_field(name: str) -> str | None:
    """The first `name : value` of /proc/cpuinfo (Linux), else None."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return None
    for line in path.read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None
