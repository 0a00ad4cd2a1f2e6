"""edgesmith: a trained model in, the smallest and fastest artefact that still does the job out, with proof.

Names are loaded when they are first used, so that `import edgesmith` and the command line's help stay fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .benches.metrics.entity_metrics import entity_f1 as entity_f1
    from .compressor.candidate import load_model as load_model
    from .compressor.pipeline import compress as compress
    from .compressor.text import TextEncoder as TextEncoder
    from .core.errors import EdgesmithError as EdgesmithError, ExitCode as ExitCode, TaskError as TaskError
    from .core.limits import Limits as Limits
    from .core.task import ArraySplit as ArraySplit, Metric as Metric, Task as Task

_PUBLIC = {
    "ArraySplit": "core.task",
    "EdgesmithError": "core.errors",
    "ExitCode": "core.errors",
    "Limits": "core.limits",
    "Metric": "core.task",
    "Task": "core.task",
    "TaskError": "core.errors",
    "TextEncoder": "compressor.text",
    "compress": "compressor.pipeline",
    "entity_f1": "benches.metrics.entity_metrics",
    "load_model": "compressor.candidate",
}
__all__ = [
    "ArraySplit",
    "EdgesmithError",
    "ExitCode",
    "Limits",
    "Metric",
    "Task",
    "TaskError",
    "TextEncoder",
    "compress",
    "entity_f1",
    "load_model",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgesmith' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
