"""Plain data (TOML, JSON) to frozen dataclasses, with errors that name file, key and remedy."""

import dataclasses
import functools
import json
from collections.abc import Hashable, Mapping
from typing import Any, TypeVar, cast

import pydantic

from ..core.errors import RecipeError
from ..core.tables import did_you_mean

T = TypeVar("T")


@functools.cache
def _adapter(cls: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(cls)


def parse(cls: type[T], data: Any, where: str) -> T:
    """Build the dataclass `cls` from a table of plain values; keys of `cls` are the keys of the table.

    Args:
        cls: a dataclass; ranges stand on its fields as `Annotated[float, pydantic.Field(gt=0)]`.
        data: what was read; must be a table.
        where: place the table came from, in front of every error.

    Raises:
        RecipeError: not a table, an unknown key, a missing key, a wrong type or a value out of range.
    """
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where}: expected a table, got {_show(data)}")
    known = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]  # T is a dataclass
    for key in data:
        if key not in known:
            hint = did_you_mean(key, known)
            raise RecipeError(f"{where}: unknown key '{key}'{hint}{' ' if hint else '; '}known: {', '.join(known)}")
    try:
        text = json.dumps(dict(data), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"{where}: only numbers, texts, booleans, lists and tables can stand here: {error}"
        ) from error
    adapter = _adapter(cast(Hashable, cls))
    try:
        # JSON mode: strict about types, and a list is what becomes a tuple.
        parsed: T = adapter.validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        raise RecipeError("\n".join(_explain(problem, where) for problem in error.errors())) from error
    return parsed


def plain(value: Any) -> Any:
    """A dataclass as plain JSON-able data; keys whose value is None are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {name: item for name, item in pairs.items() if item is not None}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


def _explain(problem: Any, where: str) -> str:
    place = where
    for part in problem["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
    if problem["type"] == "missing":
        return f"{place}: missing; it has no default"
    message = problem["msg"]
    return f"{place}: {message[0].lower()}{message[1:]}, got {_show(problem['input'])}"


def _show(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
