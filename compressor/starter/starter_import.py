"""The user's class for `edgesmith init`: `package.module:Class` or `path/file.py:Class`, and how a task imports it."""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ...core.errors import TaskError
from ..task_file import run_user_code


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Architecture:
    """A function without arguments that builds the module, and the import that leads to it."""

    build: Callable[[], nn.Module]
    module: str  # what stands behind `from`
    attribute: str  # what stands behind `import`
    root: Path | None  # folder that has to be on the path for it; None: it is installed


def find(reference: str) -> Architecture:
    """Import what `reference` names.

    Raises:
        TaskError: no such file, module or attribute; it needs arguments; it builds no torch module.
    """
    source, _, attribute = reference.rpartition(":")
    name, root = _from_file(Path(source), attribute) if source.endswith(".py") else _from_module(source)
    if root is not None and str(root) not in sys.path:
        sys.path.insert(0, str(root))
    module = run_user_code(lambda: importlib.import_module(name), f"{reference}: importing {name}")
    if source.endswith(".py") and Path(getattr(module, "__file__", None) or "").resolve() != Path(source).resolve():
        raise TaskError(f"{source}: another module is called '{name}' ({module.__file__}); rename the file")
    found = getattr(module, attribute, None)
    if not callable(found):
        raise TaskError(f"{reference}: no class or function '{attribute}' in {source}{_instead(module)}")
    _check_arguments(found, reference, attribute)
    return Architecture(build=_checked(found, reference), module=name, attribute=attribute, root=root)


def classes_in(path: Path) -> list[str]:
    """Names of the classes and functions a Python file defines, without running it; empty if it cannot be read."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError):
        return []
    return [node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]


def _from_file(path: Path, attribute: str) -> tuple[str, Path]:
    if not path.is_file():
        raise TaskError(f"{path}:{attribute}: no file {path}")
    if not path.stem.isidentifier():
        raise TaskError(f"{path}: '{path.stem}' is no name that Python can import; rename the file")
    return path.stem, path.resolve().parent


def _from_module(name: str) -> tuple[str, Path | None]:
    """The module's name and the folder it is imported from, None where that is where packages are installed."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does; the console script does not
    top = name.partition(".")[0]
    spec = importlib.util.find_spec(top) if top else None
    if spec is None:
        raise TaskError(f"{name}: no module '{top}' is installed or in this folder; or name a file: path/file.py:Class")
    places = list(spec.submodule_search_locations or ())
    origin = Path(places[0] if places else spec.origin or "").resolve()
    installed = {"site-packages", "dist-packages"} & set(origin.parts)
    return name, None if installed or not origin.exists() else origin.parent


def _check_arguments(found: Callable[..., Any], reference: str, attribute: str) -> None:
    parameters = inspect.signature(found).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed:
        given = ", ".join(f"{name}=..." for name in needed)
        raise TaskError(
            f"{reference}: {attribute}() needs {', '.join(needed)}; write a function without arguments beside it, "
            f"def build(): return {attribute}({given}), and name that: {reference.removesuffix(attribute)}build"
        )


def _checked(found: Callable[[], Any], reference: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        module = run_user_code(found, reference)
        if not isinstance(module, nn.Module):
            raise TaskError(f"{reference}: must build a torch.nn.Module, it returned {type(module).__name__}")
        return module

    return build


def _instead(module: Any) -> str:
    own = [name for name, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)]
    return f"; its modules: {', '.join(own)}" if own else ""
