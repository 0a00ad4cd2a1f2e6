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
    """Files in the same folder and in packages there that a Python file names in an import, wherever that stands in it.

    A call that imports what only a run can tell may mean any file of the folder.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # it cannot be run either, and whoever runs it says so
        return
    yield from _existing(path.with_name("__init__.py"))
    for node in ast.walk(tree):
        for folder, name in _names(node, path.parent):
            if name is None:
                yield from sorted(folder.glob("*.py"))
                continue
            parts = name.split(".")
            for end in range(len(parts)):  # a package's own name may stand in front of its files'
                yield from _existing(folder / f"{parts[end]}.py")
                yield from _existing(folder.joinpath(*parts[:end], f"{parts[end]}.py"))
                yield from _existing(folder.joinpath(*parts[: end + 1], "__init__.py"))


def _names(node: ast.AST, folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Where a statement or a call looks for what it imports, and the dotted name; None: only a run can tell."""
    match node:
        case ast.Import():
            yield from ((folder, alias.name) for alias in node.names)
        case ast.ImportFrom():
            for _ in range(node.level - 1):
                folder = folder.parent
            front = f"{node.module}." if node.module else ""
            yield from ((folder, front + alias.name) for alias in node.names)
        case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__")):
            name = node.args[0] if node.args else None
            known = isinstance(name, ast.Constant) and isinstance(name.value, str)
            text = str(name.value).lstrip(".") if isinstance(name, ast.Constant) else ""
            yield folder, (text if all(part.isidentifier() for part in text.split(".")) else "") if known else None


def _existing(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path


def _texts(config: Any) -> Iterator[str]:
    if isinstance(config, str):
        yield config
    elif isinstance(config, dict):
        for value in config.values():
            yield from _texts(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _texts(value)
