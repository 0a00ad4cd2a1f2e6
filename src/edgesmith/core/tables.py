"""Names a user may choose stand in literal tables; this resolves a name, or ``package.module:attribute``."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from .errors import RecipeError

T = TypeVar("T")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where one of the known words is close, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def unknown(word: str, known: Iterable[str], where: str) -> RecipeError:
    """The error for a word that is in no table.

    >>> str(unknown("tailor", ["taylor", "random"], "stages[0].importance"))
    "stages[0].importance: unknown 'tailor'; did you mean 'taylor'? known: random, taylor"
    """
    names = sorted(known)
    hint = did_you_mean(word, names)
    separator = " " if hint else "; "
    return RecipeError(f"{where}: unknown '{word}'{hint}{separator}known: {', '.join(names)}")


def resolve(name: str, table: Mapping[str, T], where: str) -> T:
    """The entry of `table` called `name`, or the attribute that ``package.module:attribute`` points at.

    Args:
        name: what the user wrote.
        table: the literal table of the method's kind.
        where: file, key or option the name came from; stands in front of the error.

    Raises:
        RecipeError: the name is in no table, the attribute cannot be imported, or is no class as the table's are.
    """
    if name in table:
        return table[name]
    if ":" not in name:
        raise unknown(name, table, where)
    module_name, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # somebody else's module may raise anything while it is imported
        raise RecipeError(f"{where}: cannot import '{name}': {type(error).__name__}: {error}") from error
    if table and all(isinstance(each, type) for each in table.values()):
        shared = set.intersection(*(set(dir(each)) for each in table.values()))
        lacking = sorted(name for name in shared - set(dir(found)) if not name.startswith("_"))
        a_function_will_do = "__call__" in shared and callable(found)  # where what the class makes is called
        if lacking or not (isinstance(found, type) or a_function_will_do):
            what = f"a class without {', '.join(lacking)}" if isinstance(found, type) else "no class"
            raise RecipeError(f"{where}: '{name}' is {what}; see how {min(table)} is made")
    entry: T = found
    return entry
