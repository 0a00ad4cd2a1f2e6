"""A recipe, its task and the place to run it in, checked together before any work."""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..benches.audits.audit import SEVERITIES
from ..benches.audits.corruptions import CORRUPTIONS
from ..benches.metrics.accuracy import labels_of
from ..benches.metrics.groups import class_masks
from ..core.errors import ArtifactError, RecipeError, TaskError, UsageError
from ..core.tables import unknown
from ..core.task import Task
from ..exporters import from_torch
from ..exporters.engines import engine_profile
from ..exporters.engines.engine_options import tool_problem
from ..exporters.sessions.ort_session import provider
from ..exporters.sessions.torch_session import TorchSession
from . import recipe as recipes, task_file
from .auditing import check_texts, no_corruptions
from .candidate import Candidate, state_of
from .data import any_inputs
from .evaluation import task_metrics
from .learning.losses import named_loss
from .lock import LOCK, read_lock
from .model_checks import check_built
from .model_graph import PICKLES, opened
from .plan import estimates
from .predictions import slice_masks
from .progress import Progress
from .recipe import Recipe, check_chain
from .stage import Context, Graph, Machine, Stage

_CORRUPTED_PASSES = len(SEVERITIES) * len(CORRUPTIONS)
_FORMS_SECONDS, _ENGINE_SECONDS = 10.0, 10.0  # for a small network, which most of them are


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a run needs; made by `prepare` only, which has checked it."""

    task: Task
    recipe: Recipe
    machine: Machine
    out: Path
    identity: str  # digest of the task's data and source
    rehearsed: Mapping[str, Candidate | Graph]  # "original" and what the torch stages give, untrained
    like: Path | None = None  # an earlier run, whose choices by measurement are taken over


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """One line of a plan."""

    id: str
    name: str
    seconds: float  # estimated


def prepare(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    task: Task | None = None,
    *,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    machine: Machine | None = None,
    like: Path | None = None,
) -> Job:
    """Load and check; nothing is written.

    Raises:
        UsageError: anything in recipe, task or data that cannot work, see `core.errors`.
    """
    machine = machine or Machine()
    if like is not None:
        read_lock(like / LOCK)  # an unusable one is refused before any work
    if machine.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("--device cuda: no CUDA device here; use --device cpu")
    if isinstance(recipe, (str, Path)):
        stem, recipe = Path(recipe).stem, recipes.load(Path(recipe), overrides)
    else:
        stem = "recipe"
        if not isinstance(recipe, Recipe):
            recipe = recipes.from_mapping(recipe, folder=Path.cwd(), overrides=overrides)
    task = task_file.load_task(recipe.task, recipe.folder) if task is None else task
    task = _with_files(task, recipe)
    _check_device(recipe, task, machine)
    _check(recipe, task)
    rehearsed = _rehearse(recipe, task, machine)
    folder = task.name if stem == "recipe" else f"{task.name}-{stem}"
    return Job(
        task=task,
        recipe=recipe,
        machine=machine,
        out=out or Path("runs") / folder,
        identity=task_file.identity(task),
        rehearsed=rehearsed,
        like=like,
    )


def plan(job: Job) -> list[Planned]:
    """The stages with estimated seconds, from a few timed passes of the model.

    Raises:
        ExportError: the original cannot be exported, which a run begins with: control flow, most of all.
    """
    original = job.rehearsed.get("original")
    if isinstance(original, Candidate):
        with tempfile.TemporaryDirectory(prefix="edgesmith-plan-") as folder:
            inputs, specs = any_inputs(job.task, 2), job.task.input_specs()
            from_torch.write(original.module(), inputs, specs, job.task.outputs, Path(folder) / "model.onnx")
    probe, seconds = estimates(job.recipe, job.task, job.machine, job.rehearsed)
    evaluations = len(job.task.test) * 2 * probe.forward
    corrupted = _CORRUPTED_PASSES * evaluations if job.recipe.limits.corruption_drop is not None else 0.0
    each = 5.0 + probe.export  # a ledger line: export, validation, a second of latency in five processes
    timing = job.recipe.measure.restarts * job.recipe.measure.seconds * len(job.recipe.measure.batch_sizes)
    stages = [
        Planned(id=stage.id, name=stage.name, seconds=estimated + each)
        for stage, estimated in zip(job.recipe.stages, seconds, strict=True)
    ]
    quantizes = any(stage.quantizes for stage in job.recipe.stages)
    files = len(job.recipe.targets) * (_FORMS_SECONDS if quantizes else probe.export)
    engine = [] if job.recipe.build is None else [Planned(id="build", name="TensorRT engine", seconds=_ENGINE_SECONDS)]
    return [
        *stages,
        Planned(id="files", name="every target's file, in the form that is fastest", seconds=files),
        *engine,
        Planned(id="measure", name="original against final", seconds=2 * timing + evaluations + corrupted + 10.0),
    ]


def _with_files(task: Task, recipe: Recipe) -> Task:
    """With the ONNX files that stages name by a path, from the task's folder, among the models of that name."""
    folder = (recipe.folder / recipe.task.partition(":")[0]).parent if recipe.task else recipe.folder
    needed = {name for stage in recipe.stages for name in stage.needs()}
    named = sorted(name for name in needed if Path(name).suffix in (".onnx", *PICKLES) and name not in task.models)
    files: dict[str, Any] = {name: folder / name for name in named}
    return dataclasses.replace(task, models={**task.models, **files}) if files else task


def _check(recipe: Recipe, task: Task) -> None:
    start = "candidate" if callable(task.model) else "graph"
    check_chain(recipe, start)
    task.split("test", "the verdict")
    task.split("validation", "the ledger")
    task_file.check_data(task)
    if isinstance(task.loss, str):
        named_loss(task)
    known = {"original", *task.models}
    for index, stage in enumerate(recipe.stages):
        where = f"stages[{index}] '{stage.id}'"
        stage.check(task, where)
        for name in stage.needs():
            if name not in known:
                raise unknown(name, known, where)
        known.add(stage.id)
    _check_groups(recipe, task)
    _check_build(recipe, task)
    _check_model(task)


def _check_groups(recipe: Recipe, task: Task) -> None:
    """Slices that are what they should be, and answers and groups for the limits that are set on them."""
    slice_masks(task)
    main = task_metrics(task)[0]
    if recipe.limits.negative_flips is not None and main.kind != "proportion":
        raise RecipeError(
            f"limits.negative_flips: by '{main.name}' of task '{task.name}' no sample is right or wrong; give the task "
            "a main metric of the kind 'proportion', such as accuracy, or leave the limit out"
        )
    if recipe.limits.slice_drop is not None and not task.slices:
        raise RecipeError(f"limits.slice_drop: task '{task.name}' has no slices; set slices= in the task")
    check_texts(task)
    if recipe.limits.corruption_drop is not None and (why := no_corruptions(task)):
        raise RecipeError(f"limits.corruption_drop: task '{task.name}': {why}")
    if recipe.limits.disparity is not None and max(len(class_masks(labels_of(task.test))), len(task.slices)) < 2:
        raise RecipeError(
            f"limits.disparity: task '{task.name}' has neither two classes (an integer label per test sample) nor two "
            "slices to compare; set slices= in the task"
        )
    if recipe.limits.class_drop is not None and not class_masks(labels_of(task.test)):
        raise RecipeError(
            f"limits.class_drop: the test labels of task '{task.name}' are not one class (an integer) per sample; name "
            "the groups in the task's slices and set slice_drop"
        )


def _check_device(recipe: Recipe, task: Task, machine: Machine) -> None:
    """Calibration and teachers that are files run in ONNX Runtime, which must be able to use the device too."""
    files = any(not callable(model) for model in task.models.values())
    if machine.device == "cuda" and (files or any(_calibrates_a_file(stage) for stage in recipe.stages)):
        try:
            provider(machine.device)
        except UsageError as error:
            raise RecipeError(f"--device cuda: {error}; or use --device cpu") from error


def _calibrates_a_file(stage: Stage) -> bool:
    return stage.name == "quantize" and stage.takes() == "graph"


def _check_build(recipe: Recipe, task: Task) -> None:
    """An engine that cannot be built for want of the tool is said before any work."""
    if recipe.build is None:
        return
    problem = tool_problem(recipe.build.tool)
    if problem is not None:
        raise RecipeError(f"build.tool '{recipe.build.tool}': {problem}")
    try:
        engine_profile.check(task.input_specs(), recipe.build)
    except UsageError as error:
        raise RecipeError(str(error)) from error


def _rehearse(recipe: Recipe, task: Task, machine: Machine) -> dict[str, Candidate | Graph]:
    """Go through the stages on untrained weights: what the architecture rules out is said before any training.

    Returns:
        "original" and, by stage, what comes out of it; files have no path yet.
    """
    example = {name: torch.tensor(array) for name, array in any_inputs(task, 2).items()}

    after: dict[str, Candidate | Graph] = {}  # stage -> what it gives

    def untrained(name: str) -> Candidate | Graph:
        if name in after:
            return after[name]
        model = task.model if name == "original" else task.models[name]
        if not callable(model):
            return Graph(path=Path(model) if isinstance(model, (str, Path)) else Path(), digest="")
        module = task_file.run_user_code(model, f"task '{task.name}': {name} model")
        return Candidate(factory=model, example=example, edits=(), weights=state_of(module))

    value = after["original"] = untrained("original")
    for index, stage in enumerate(recipe.stages):
        if stage.takes() == "graph":
            value = after[stage.id] = Graph(path=Path(), digest="")
            continue
        context = Context(
            task=task,
            machine=machine,
            targets=recipe.targets,
            work=Path(),
            progress=Progress(),
            named=untrained,
            where=f"stages[{index}] '{stage.id}'",
        )
        value = after[stage.id] = stage.rehearse(value, context)
    return after if callable(task.model) else {name: value for name, value in after.items() if name != "original"}


def _check_model(task: Task) -> None:
    """One small pass of the untrained original: it runs on the data, and its outputs fit the labels."""
    inputs = any_inputs(task, 4)
    for name, model in task.models.items():
        if callable(model):
            where = f"task '{task.name}': models['{name}']"
            check_built(task_file.run_user_code(model, where), where)
    if callable(task.model):
        module = task_file.run_user_code(task.model, f"task '{task.name}': model")
        check_built(module, f"task '{task.name}': model")
        session = TorchSession(module, task.input_specs(), task.outputs)
        outputs = task_file.run_user_code(
            lambda: session.run(inputs), f"task '{task.name}': the model, on its own data,"
        )
    else:
        with opened(task.model, task, "original") as onnx_session:
            names = tuple(spec.name for spec in onnx_session.outputs)
            if set(task.outputs) - set(names):
                what = f"{task.model}: has" if isinstance(task.model, (str, Path)) else "the estimator has"
                raise ArtifactError(f"{what} the outputs {list(names)}, but the task names {list(task.outputs)}")
            outputs = onnx_session.run(inputs)
    for name in task.outputs:
        if outputs[name].shape[:1] != (4,):
            raise TaskError(
                f"task '{task.name}': the model returns {outputs[name].shape} as '{name}' for 4 samples; axis 0 of an "
                "output is the sample: return one row for each, and mask instead of selecting"
            )
    task_file.check_outputs(task, outputs)
