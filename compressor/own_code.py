"""Code of the user's own that a result hangs on, by its source files: what they say, not what they are called."""

import ast
import contextlib
import functools
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..core import digest

_PACKAGE = Path(__file__).parents[1]


def of_function(function: Callable[..., Any]) -> str:
    """Digest of the Python file a function comes from and of the files beside it that this one imports."""
    if isinstance(function, functools.partial):
        arguments = repr(function.args), repr(sorted(function.keywords.items()))
        return digest.of_json([of_function(function.func), *arguments])
    try:
        source = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:  # an instance of a callable class
        source = inspect.getsourcefile(type(function))
    path = Path(source) if source else Path()
    if not path.is_file():  # typed into an interpreter: the compiled code stands for the source
        code = getattr(function, "__code__", None)
        return hashlib.sha256(repr(function).encode() if code is None else code.co_code).hexdigest()
    return _of_file(path)


def of_stage(use: str, config: Any) -> dict[str, Any]:
    """For a stage's key: the code that its class and its other keys name, where that is the user's own.

    Args:
        use: its class, as the recipe names it.
        config: its keys as plain data.
    """
    found = of_names([use, config])
    return {"code": found} if found else {}


def of_names(config: Any) -> dict[str, str]:
    """Every `package.module:attribute` in a stage's keys -> digest, as in `of_function`, of the module's file.

    Args:
        config: plain data.
    """
    found = {}
    for text in _texts(config):
        module, _, attribute = text.partition(":")
        if attribute and all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
            with contextlib.suppress(Exception):  # no module's name; or whoever needs it says what is wrong
                importlib.import_module(module)
            file = getattr(sys.modules.get(module), "__file__", None)
            if file is not None:
                found[text] = _of_file(Path(file))
    return found


def _of_file(path: Path) -> str:
    """Digest of a file and, where it is not this package's, of those beside it that it comes to import.

    Which those are is read and not run: what else a process has loaded depends on the command.
    """
    if path.is_relative_to(_PACKAGE):
        return digest.of_file(path)
    found, waiting = {path}, [path]
    while waiting:
        new = set(_imported(waiting.pop())) - found
        found |= new
        waiting += new
    return digest.of_json([digest.of_file(path), *(digest.of_file(other) for other in sorted(found - {path}))])


def _imported(path: Path) -> Iterator[Path]:
    """Files in the same folder that a Python file names in an import, wherever that stands in it."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # it cannot be run either, and whoever runs it says so
        return
    for node in ast.walk(tree):
        for part in {part for name in _names(node) for part in name.split(".")}:
            if (beside := path.with_name(f"{part}.py")).is_file():
                yield beside


def _names(node: ast.AST) -> list[str]:
    """Dotted names that a statement or a call imports."""
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom(level=0 | 1):
            return [node.module or "", *(alias.name for alias in node.names)]
        case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__")):
            return [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return []


def _texts(config: Any) -> Iterator[str]:
    if isinstance(config, str):
        yield config
    elif isinstance(config, dict):
        for value in config.values():
            yield from _texts(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _texts(value)
