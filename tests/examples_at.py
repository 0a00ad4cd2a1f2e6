"""Modules of the examples, which are no package: imported from their files, without running a recipe."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(folder: str, name: str) -> ModuleType:
    """`examples/FOLDER/NAME.py`, under a name that no other example has."""
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", EXAMPLES / folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def digits_example() -> ModuleType:
    """The demo's task."""
    return example("digits", "task")
