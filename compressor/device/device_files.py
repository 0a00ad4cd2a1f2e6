"""What of edgesmith itself goes to a device: the very files that measure here, as one small package.

They need numpy and the runtime only, and Python 3.8; pyproject.toml lists them for the linter too.
"""

from pathlib import Path

PACKAGE = "edgesmith_device"
CORE = ("digest", "errors", "feeds", "files", "tables", "task", "values")
EXPORTERS = (
    "cpu",
    "cuda_driver",
    "engine_build_child",
    "engine_file",
    "engine_open",
    "engine_session",
    "openvino_session",
    "ort_session",
)
BENCHES = (
    "accuracy",
    "box_metrics",
    "child",
    "class_metrics",
    "contender",
    "device_engine",
    "device_predict",
    "embedding_metrics",
    "environment",
    "intervals",
    "label_metrics",
    "latency",
    "metrics",
    "number_metrics",
    "nvml",
    "on_device",
    "timing_loop",
)
_HOME = Path(__file__).parents[2]


def device_files() -> dict[str, Path]:
    """Name in the bundle -> the file that is copied there."""
    found = {
        "run.py": _HOME / "benches" / "device_launcher.py",
        f"lib/{PACKAGE}/__init__.py": _HOME / "benches" / "device_init.py",
    }
    for folder, modules in (("core", CORE), ("exporters", EXPORTERS), ("benches", BENCHES)):
        for module in ("__init__", *modules):
            found[f"lib/{PACKAGE}/{folder}/{module}.py"] = _HOME / folder / f"{module}.py"
    return found
