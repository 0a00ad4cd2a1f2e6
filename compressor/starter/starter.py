"""`edgesmith init`: a task and a recipe for the user's own model, written so that they run as they are."""

import contextlib
import dataclasses
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
from torch import nn

from ...core.errors import EdgesmithError, RecipeError, RunDirectoryError
from ...core.files import atomic_path
from ...core.task import Task
from .. import recipe as recipes, task_file
from ..job import prepare
from ..recipe import Recipe
from . import starter_data, starter_prune
from .starter_data import Sizes
from .starter_recipe import Plan, plan_for, recipe_context
from .starter_sources import Source, open_source
from .starter_task import metric_name, one_line, quote, task_context

_MACS_RATIOS = {
    "torch": (0.5, 0.7, 0.85),
    "huggingface": (0.7, 0.85),
}  # tried in this order; what the architecture rules out is left out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Started:
    """What was written, and what was found on the way."""

    task: Path
    recipe: Path
    found: tuple[str, ...]  # lines for the user


def start(
    reference: str,
    *,
    data: Path | None,
    test: Path | None = None,
    weights: Path | None = None,
    out: Path | None = None,
    name: str | None = None,
    force: bool = False,
) -> Started:
    """Write `task.py` and `recipe.toml` for a model, once both have passed every check of a dry run.

    Args:
        reference: `package.module:Class`, `path/file.py:Class`, a Hugging Face folder or an ONNX file.
        data: .npz file with one array per input, and `labels`.
        test: .npz file of the test split; None: `test_...` arrays in `data`, or a part of it.
        weights: of a class; None: the model has them.
        out: folder; None: the task's name.
        name: of the task; None: the folder's, or the model's.
        force: overwrite what is there.

    Raises:
        UsageError: model, weights or data cannot be used, or a file is there already; nothing was written.
    """
    arrays = starter_data.read(data, test, reference)
    source = open_source(reference, arrays, weights)
    name = _slug(name or (out.resolve().name if out else source.name))
    folder = out or Path(name)
    task_path, recipe_path = folder / "task.py", folder / "recipe.toml"
    for path in (task_path, recipe_path):
        if path.exists() and not force:
            raise RunDirectoryError(f"{path}: exists already; choose another folder with --out, or use --force")
    sizes = starter_data.sizes(arrays)
    task_text = _render(
        f"task_{'onnx' if source.kind == 'onnx' else 'torch'}.py.j2", task_context(source, arrays, sizes, folder, name)
    )
    with (
        _folder(folder),
        atomic_path(task_path) as task_partial,
        atomic_path(recipe_path) as recipe_partial,
        _tried_out(task_partial),
    ):
        task_partial.write_text(task_text, encoding="utf-8")
        task = task_file.load_task(task_partial.name, folder)
        module = _trained(task)
        plan = plan_for(source, sizes, task, module)
        plan, text = _accepted(plan, source, task, module, folder, recipe_path)
        recipe_partial.write_text(text, encoding="utf-8")
    return Started(task=task_path, recipe=recipe_path, found=_found(source, sizes, plan, task))


def _trained(task: Task) -> nn.Module | None:
    """The model with its weights, built and loaded as the task does it; None for an ONNX file."""
    if not callable(task.model):
        return None
    module: nn.Module = task.model()
    if task.load_weights is not None:
        load = task.load_weights
        task_file.run_user_code(lambda: load(module), f"task '{task.name}': load_weights")
    return module.eval()


def _accepted(
    plan: Plan, source: Source, task: Task, module: nn.Module | None, folder: Path, recipe_path: Path
) -> tuple[Plan, str]:
    """The most demanding recipe that a dry run accepts and whose pruning works, and its text."""
    reasons: list[str] = []
    for ratio in _MACS_RATIOS.get(source.kind, ()):
        assert module is not None
        try:
            only = starter_prune.feed_forward_layers(task, module) if source.kind == "huggingface" else ()
            if source.kind == "huggingface" and not only:
                raise RecipeError("no feed-forward layer was found that can lose channels on its own")
            pruned = dataclasses.replace(plan, macs_ratio=ratio, only=only)
            text, recipe = _checked(pruned, source, task, folder, recipe_path)
            starter_prune.rehearse(recipe, task, module)
            return pruned, text
        except Exception as error:  # pruning a foreign architecture may raise anything; then it stays whole
            reasons.append(_first_line(error))
    if reasons:
        plan = dataclasses.replace(plan, no_prune=reasons[-1])
    return plan, _checked(plan, source, task, folder, recipe_path)[0]


def _checked(plan: Plan, source: Source, task: Task, folder: Path, recipe_path: Path) -> tuple[str, Recipe]:
    """The recipe's text, and the recipe as a dry run has accepted it."""
    text = _render("recipe.toml.j2", recipe_context(plan, source, recipe_path))
    recipe = recipes.from_mapping(tomllib.loads(text), folder=folder, where=str(recipe_path))
    prepare(recipe, task)
    return text, recipe


def _found(source: Source, sizes: Sizes, plan: Plan, task: Task) -> tuple[str, ...]:
    inputs = ", ".join(f"{spec.name} {spec.dtype} {spec.shape}".replace("'", "") for spec in task.input_specs())
    lines = [
        f"{source.reference}: {inputs} -> {', '.join(source.probed.outputs)}",
        f"{sizes.train:,} samples to {'find ranges with' if source.kind == 'onnx' else 'train'}, "
        f"{sizes.validation:,} to choose on, {sizes.test:,} to judge on",
        f"judged by {metric_name(source)}, limit on its loss {plan.drop:g}"
        + (" (no labels: agreement with the original)" if source.agreement else ""),
    ]
    if sizes.copies:
        lines.append(f"{sizes.copies:,} samples occur again and are left out")
    if plan.no_prune:
        lines.append(f"no prune stage: {plan.no_prune}")
    return tuple(lines)


def _render(template: str, context: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # it writes Python and TOML; user strings go through `quote` or `title`
    )
    environment.filters |= {"quote": quote, "title": one_line}
    text = environment.get_template(template).render(context)
    return re.sub(r"\n{4,}", "\n\n\n", text).rstrip("\n") + "\n"


@contextlib.contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Takes the folder away again if nothing came to stand in it."""
    existed = folder.exists()
    try:
        yield
    except EdgesmithError:
        if not existed and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise


@contextlib.contextmanager
def _tried_out(path: Path) -> Iterator[None]:
    """A task may be imported from `path`, which is about to get another name: no trace of the first one stays."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
        for name, module in list(sys.modules.items()):
            if getattr(module, "__file__", None) == str(path.resolve()):
                del sys.modules[name]


def _slug(name: str) -> str:
    """Names a folder: letters, digits, '-', '_' and '.'."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def _first_line(error: Exception) -> str:
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return one_line(re.sub(r"^stages\[0\] 'prune'[.:]? ?", "", text))[:300]
