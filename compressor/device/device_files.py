"""What of edgesmith itself goes to a device: the very files that measure here, as one small package.

They need numpy and the runtime only, and Python 3.8; pyproject.toml lists them for the linter too.
"""

from pathlib import Path

PACKAGE = "edgesmith_device"
CORE = ("digest", "errors", "feeds", "files", "tables", "task", "values")
EXPORTERS = (
    "engines/cuda_driver",
    "engines/engine_build_child",
    "engines/engine_file",
    "engines/engine_open",
    "engines/engine_session",
    "sessions/cpu",
    "sessions/openvino_session",
    "sessions/openvino_settings",
    "sessions/ort_session",
)
BENCHES = (
    "device/device_engine",
    "device/device_input",
    "device/device_predict",
    "device/on_device",
    "metrics/accuracy",
    "metrics/box_metrics",
    "metrics/class_metrics",
    "metrics/embedding_metrics",
    "metrics/label_metrics",
    "metrics/metrics",
    "metrics/number_metrics",
    "timing/child",
    "timing/contender",
    "timing/environment",
    "timing/intervals",
    "timing/latency",
    "timing/nvml",
    "timing/timing_loop",
)
_HOME = Path(__file__).parents[2]


def device_files() -> dict[str, Path]:
    """Name in the bundle -> the file that is copied there."""
    found = {
        "run.py": _HOME / "benches" / "device" / "device_launcher.py",
        f"lib/{PACKAGE}/__init__.py": _HOME / "benches" / "device" / "device_init.py",
    }
    for folder, modules in (("core", CORE), ("exporters", EXPORTERS), ("benches", BENCHES)):
        for module in modules:
            file = Path(folder, f"{module}.py")
            for each in (file, *(place / "__init__.py" for place in file.parents[:-1])):
                found[f"lib/{PACKAGE}/{each.as_posix()}"] = _HOME / each
    return found
