"""Code of the user's own that a result hangs on, by its source files: what they say, not what they are called."""

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
    """Digest of the Python file a function comes from and of the files beside it that are loaded with it."""
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
    if path.is_relative_to(_PACKAGE):  # what else of this package is loaded hangs on the command
        return digest.of_file(path)
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    loaded = {Path(file) for file in files if file}
    beside = sorted(
        other for other in loaded if other.parent == path.parent and other.suffix == ".py" and other != path
    )
    return digest.of_json([digest.of_file(path), *(digest.of_file(other) for other in beside)])


def _texts(config: Any) -> Iterator[str]:
    if isinstance(config, str):
        yield config
    elif isinstance(config, dict):
        for value in config.values():
            yield from _texts(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _texts(value)
