"""What is to be done: stages, targets, limits. TOML <-> frozen dataclasses; *where* it runs stands apart."""

import dataclasses
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ..benches.gates.judge import check_limits
from ..benches.timing.intervals import enough_restarts
from ..core.errors import RecipeError
from ..core.limits import Limits
from ..core.tables import resolve, unknown
from ..exporters.engines.engine_options import Build
from ..exporters.targets.targets import TARGETS
from .measure_options import Measure
from .schema import parse, plain
from .stage import Stage
from .stages import STAGES

_SECTIONS = ("measure", "build", "limits")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole recipe. `folder` is where relative paths in it start."""

    task: str  # "task.py" or "task.py:function"
    stages: tuple[Stage, ...]
    limits: Limits
    targets: tuple[str, ...] = ("onnxruntime-cpu",)  # the first is judged
    against: str = "original"  # what the result is judged against; or the id of a stage: what that one gave
    measure: Measure = dataclasses.field(default_factory=Measure)
    build: Build | None = None  # engines of the target "tensorrt"; None: none are built
    folder: Path = Path()

    def seen_from(self, folder: Path) -> "Recipe":
        """The same recipe for a file in `folder`: its relative path leads to the same task."""
        file, colon, function = self.task.partition(":")
        path = Path(os.path.relpath((self.folder / file).resolve(), folder.resolve()))
        return dataclasses.replace(
            self, task=path.as_posix() + colon + function, build=self._build_seen_from(folder), folder=folder
        )

    def _build_seen_from(self, folder: Path) -> Build | None:
        if self.build is None or self.build.timing_cache is None:
            return self.build
        cache = Path(os.path.relpath((self.folder / self.build.timing_cache).resolve(), folder.resolve()))
        return dataclasses.replace(self.build, timing_cache=cache.as_posix())

    def to_toml(self) -> str:
        """The resolved recipe: every key with the value it has, defaults and overrides included."""
        head = {"task": self.task, "targets": list(self.targets), "against": self.against}
        lines = [f"{key} = {_toml(value)}" for key, value in head.items()]
        for stage in self.stages:
            lines += ["", "[[stages]]", *_table({"use": use_of(stage)} | plain(stage))]
        for name, part in (("measure", self.measure), ("build", self.build), ("limits", self.limits)):
            lines += [] if part is None else ["", f"[{name}]", *_table(plain(part))]
        return "\n".join(lines) + "\n"


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file.

    Args:
        path: TOML file.
        overrides: `stage.key=value`, or `limits.`, `measure.` or `build.key=value`; the value is TOML, or a bare word.

    Raises:
        RecipeError: missing file, TOML syntax, or anything `from_mapping` refuses.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a UTF-8 text"
        raise RecipeError(f"{path}: cannot read the recipe: {reason}") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from error
    return from_mapping(data, folder=path.resolve().parent, where=str(path), overrides=overrides)


def from_mapping(
    data: Mapping[str, Any], *, folder: Path, where: str = "recipe", overrides: Sequence[str] = ()
) -> Recipe:
    """Build and check a recipe from plain data.

    Raises:
        RecipeError: unknown or missing keys, wrong types, an unknown stage or target, stages that do not chain.
    """
    data = dict(data)
    known = ("task", "targets", "against", "stages", *_SECTIONS)
    for key in data:
        if key not in known:
            raise unknown(key, known, where)
    for key in ("task", "stages", "limits"):
        if key not in data:
            raise RecipeError(f"{where}: '{key}' is missing")
    if not isinstance(data["stages"], list) or not all(isinstance(stage, Mapping) for stage in data["stages"]):
        raise RecipeError(f"{where}: 'stages' must be a list of tables; write each as [[stages]]")
    tables = [{"id": _default_id(stage.get("use")), **stage} for stage in data["stages"]]
    _override(data, tables, overrides)
    for text in _strings([data, tables]):
        if "\0" in text:
            raise RecipeError(f"{where}: {text!r} holds a NUL character")
    header = parse(_Header, {key: data[key] for key in ("task", "targets", "against") if key in data}, where)
    for index, name in enumerate(header.targets):
        resolve(name, TARGETS, f"{where}: targets[{index}]")
    recipe = Recipe(
        task=header.task,
        targets=header.targets,
        against=header.against,
        stages=tuple(_stage(table, f"{where}: stages[{index}]") for index, table in enumerate(tables)),
        limits=parse(Limits, data["limits"], f"{where}: limits"),
        measure=parse(Measure, data.get("measure", {}), f"{where}: measure"),
        build=parse(Build, data["build"], f"{where}: build") if "build" in data else None,
        folder=folder,
    )
    check_limits(recipe.limits)
    fewest = enough_restarts(recipe.limits.confidence)
    if recipe.measure.restarts < fewest:
        raise RecipeError(
            f"{where}: measure.restarts: {recipe.measure.restarts} cannot give an interval at "
            f"{recipe.limits.confidence:.0%} confidence; use at least {fewest}"
        )
    _check_ids(recipe, where)
    _check_against(recipe, where)
    if recipe.build is not None and "tensorrt" not in recipe.targets:
        raise RecipeError(f"{where}: build: engines are built for the target 'tensorrt'; add it to targets")
    return recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Header:
    task: str
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("onnxruntime-cpu",)
    against: str = "original"


def check_chain(recipe: Recipe, start: str) -> None:
    """Refuse stages of which one does not take what the one before it gives.

    Args:
        start: what the task's original is: "candidate" (torch) or "graph" (an ONNX file).

    Raises:
        RecipeError: names the stage, what it takes and what it would get; or a second one that quantizes.
    """
    value, giver, quantized = start, "the task's model", ""
    for index, stage in enumerate(recipe.stages):
        if stage.takes() not in (value, "nothing"):
            raise RecipeError(
                f"stages[{index}] '{stage.id}': {stage.name} takes a {stage.takes()}, but {giver} gives a {value}"
                + _chain_hint(stage.takes(), giver if value == "graph" else "")
            )
        quantized = "" if stage.takes() == "nothing" else quantized
        if stage.quantizes and quantized:
            raise RecipeError(
                f"stages[{index}] '{stage.id}': the model is INT8 since '{quantized}', and {stage.name} would find its "
                "ranges anew; take one of the two out"
            )
        value, giver, quantized = stage.returns, f"'{stage.id}'", stage.id if stage.quantizes else quantized
    if value != "graph":
        raise RecipeError(f"stages: the last one leaves a {value}, which no target runs; end with an 'export' stage")


def _chain_hint(wanted: str, maker: str) -> str:
    """What to do; `maker` is what gave a graph, or empty."""
    if wanted == "graph":
        return "; put an 'export' stage before it"
    return f"; put it before the {maker} stage" if maker.startswith("'") else ""


def _default_id(use: Any) -> Any:
    """A stage's name, or that of the user's own class; whatever else it is, its own check says so."""
    return use.rpartition(":")[2].rpartition(".")[2] if isinstance(use, str) else use


def use_of(stage: Stage) -> str:
    """What names it in a recipe: a class that is in no table by where it stands."""
    kind = type(stage)
    return stage.name if STAGES.get(stage.name) is kind else f"{kind.__module__}:{kind.__qualname__}"


def _stage(table: Mapping[str, Any], where: str) -> Stage:
    use = table.get("use")
    if not isinstance(use, str):
        raise RecipeError(f"{where}: 'use' is missing; it names what the stage does: {', '.join(sorted(STAGES))}")
    cls = resolve(use, STAGES, f"{where}.use")
    fields = {key: value for key, value in table.items() if key != "use"}
    return parse(cls, fields, where)


def _check_ids(recipe: Recipe, where: str) -> None:
    seen: set[str] = set()
    for index, stage in enumerate(recipe.stages):
        if stage.id in seen or stage.id in ("original", *_SECTIONS):
            raise RecipeError(f"{where}: stages[{index}].id: '{stage.id}' is taken; give each stage an id of its own")
        if not stage.id or not all(char.isalnum() or char in "-_" for char in stage.id):
            raise RecipeError(f"{where}: stages[{index}].id: '{stage.id}' may hold only letters, digits, '-' and '_'")
        seen.add(stage.id)


def _check_against(recipe: Recipe, where: str) -> None:
    """The last stage's result is what is judged: not against itself."""
    known = ("original", *(stage.id for stage in recipe.stages[:-1]))
    if recipe.against not in known:
        raise unknown(recipe.against, known, f"{where}: against")


def _override(data: dict[str, Any], tables: list[dict[str, Any]], overrides: Sequence[str]) -> None:
    """Apply `stage.key=value` options in place."""
    for text in overrides:
        path, equals, value = text.partition("=")
        owner, dot, key = path.strip().partition(".")
        if not (equals and dot and key):
            raise RecipeError(f"--set {text}: write it as stage.key=value, for example prune.macs_ratio=0.5")
        ids = [str(table["id"]) for table in tables]
        if owner in _SECTIONS:
            data[owner] = {**data.get(owner, {}), key: _value(value)}
        elif owner in ids:
            tables[ids.index(owner)][key] = _value(value)
        else:
            raise unknown(owner, [*ids, *_SECTIONS], f"--set {text}")


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()  # a bare word: --set prune.importance=taylor


def _strings(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, Mapping):
        yield from (text for pair in data.items() for each in pair for text in _strings(each))
    elif isinstance(data, Sequence):
        yield from (text for each in data for text in _strings(each))


def _table(values: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in values.items()]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml(str(key))} = {_toml(item)}" for key, item in value.items()) + " }"
    return repr(value)
