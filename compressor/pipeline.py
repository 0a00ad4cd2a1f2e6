"""The main job: original -> stages -> artefacts -> measurement -> verdict, resumable at any point."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from ..benches.audits.audit import Audit
from ..benches.report import html_report
from ..benches.report.report import Report, to_json
from ..benches.timing import environment
from ..core import digest
from ..core.errors import ContractError
from ..core.files import as_file_name, storage_errors, write_atomic
from ..core.ledger import Ledger, LedgerEntry
from ..core.task import Task
from ..core.values import Artifact
from ..exporters.graph import onnx_file
from . import artifacts, claims, engines, measuring, own_code, user_cache, values
from .artifacts import Written
from .audit_run import after_run
from .auditing import Pair
from .candidate import Candidate, check_finite
from .data import any_inputs
from .earlier_run import EarlierRun
from .evaluation import old_metric, task_metrics
from .export import to_graph
from .int8.bounds import Bounds
from .int8.quantize import Quantize
from .job import Job, prepare
from .judging import judged
from .lock import LOCK, lock_of, lock_text
from .measuring import Outcome
from .model_checks import loaded
from .model_graph import graph_of
from .progress import Progress
from .recipe import Recipe, use_of
from .run_directory import Done, RunDirectory, model_key
from .run_report import report_of
from .schema import plain
from .stage import Context, Deployment, Graph, Machine, Stage

_FORMAT = 7  # of stage results; a release that makes other results from the same recipe raises it


def compress(
    task: Task | None,
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    machine: Machine | None = None,
    progress: Progress | None = None,
    like: str | Path | None = None,
) -> Report:
    """Run a recipe on a task; the same as `edgesmith compress`.

    Args:
        task: the problem; None: the one the recipe names.
        recipe: a TOML file, its content as plain data, or a Recipe.
        overrides: `stage.key=value`, as with `--set`.
        out: run directory; None: `runs/` and the task's name.
        machine: device, threads and seed.
        like: directory of an earlier run: what it chose by measuring the same work on the same machine is taken over.

    Returns:
        The report that also stands in the run directory as `report.json` and `report.html`.

    Raises:
        EdgesmithError: see `core.errors`; what was finished stays and is not done again.
    """
    out, like = (None if path is None else Path(path) for path in (out, like))
    job = prepare(recipe, task, overrides=overrides, out=out, machine=machine, like=like)
    return run(job, progress or Progress())


def run(job: Job, progress: Progress) -> Report:
    """Run a prepared job in its directory."""
    directory = RunDirectory(job.out)
    with storage_errors(job.out), directory.open():
        write_atomic(job.out / "recipe.toml", job.recipe.seen_from(job.out).to_toml())
        progress = progress.logged(job.out / "log.txt")
        runner = _Run(job, directory, progress)
        report = runner.report()
        audit = runner.audit(report)
        write_atomic(job.out / "report.json", to_json(report))
        html_report.write(job.out, report, audit)
        write_atomic(job.out / LOCK, lock_text(lock_of(report, job.identity, job.out, job.task.files)))
        progress.record(f"verdict: {report.verdict}")
        return report


class _Run:
    """One pass through a recipe. Every step goes through `RunDirectory.once`."""

    def __init__(self, job: Job, directory: RunDirectory, progress: Progress) -> None:
        self._job, self._task, self._recipe = job, job.task, job.recipe
        self._directory, self._progress = directory, progress
        self._target = job.recipe.targets[0]
        self._values: dict[str, Candidate | Graph] = {}  # "original", stage ids, names in the task's models
        self._keys: dict[str, str] = {}  # the same names -> digest of everything the value depends on
        self._files: dict[str, Artifact] = {}  # the same names -> what the judged target runs
        self._for_verdict: dict[str, dict[str, Any]] = {}  # stage id -> what it left for `after_verdict`
        self._used: set[str] = set()  # results this recipe has use for
        self._found: Outcome | None = None  # of the measurement that the verdict rests on
        # Before any stage has loaded more of the user's code, so that a run that goes on finds the same.
        self._code = {stage.id: own_code.of_stage(use_of(stage), plain(stage)) for stage in job.recipe.stages}
        self._machine_key = environment.describe(job.machine.threads, job.machine.seed)
        self._latencies = user_cache.latencies(progress.say)
        self._earlier = None if job.like is None else EarlierRun(job.like, self._machine_key)

    def report(self) -> Report:
        done = self._load_original()
        original = self._write("measurements/00-original", "original", self._target).artifact
        ledger = Ledger((self._entry("original", "original", done, original, original),))
        last = "original"
        self._files[last] = original
        for number, stage in enumerate(self._recipe.stages, 1):
            done = self._run_stage(number, stage, last)
            last = stage.id
            final = number == len(self._recipe.stages)
            place = f"artifacts/{self._target}" if final else f"measurements/{number:02d}-{stage.id}"
            artifact = self._files[last] = self._write(place, last, self._target).artifact
            ledger = ledger.with_entry(self._entry(stage.id, stage.name, done, artifact, original))
        report = self._judged(self._files[self._recipe.against], last, ledger)
        if self._earlier is not None:
            self._progress.say(self._earlier.said())
        self._directory.tidy(self._used)
        return report

    def audit(self, report: Report) -> Audit | None:
        """What the limits ask for of an audit, and what `edgesmith audit` has found of the same files before."""
        assert self._found is not None  # there is a report
        limits, main = self._recipe.limits, task_metrics(self._task)[0]
        original = self._files[self._recipe.against]
        return after_run(self._job.out, report, self._found.evidence, original.digest, limits, main.higher_is_better)

    def _load_original(self) -> Done:
        """The trained original, made by the task once and kept."""
        return self._model("original", "stages/00-original", self._task.model, self._task.load_weights)

    def _named(self, name: str) -> Candidate | Graph:
        """What `Context.named` gives a stage."""
        if name not in self._values:
            self._model(name, f"stages/model-{as_file_name(name)}", self._task.models[name], None)
        return self._values[name]

    def _model(self, name: str, place: str, model: Any, load_weights: Any) -> Done:
        """A model of the task's: built and loaded by the user's code, or an ONNX file."""
        key = model_key(name, self._job.identity, self._job.machine.seed)
        example = {n: torch.tensor(array) for n, array in any_inputs(self._task, 2).items()}
        where = f"task '{self._task.name}': {name} model"

        self._progress.say(f"{name}: built and loaded with the task's own code")

        def make(folder: Path, work: Path) -> dict[str, Any]:
            set_seed(self._job.machine.seed)
            if not callable(model):
                onnx_file.save(graph_of(model, self._task, name), work / "model.onnx")  # one file, its weights inside
                values.save(Graph(path=work / "model.onnx", digest=""), folder)
                return {}
            values.save(loaded(model, load_weights, example, where), folder)
            return {}

        done = self._once(place, key, make)
        like = Candidate(factory=model, example=example, edits=(), weights={}) if callable(model) else None
        self._values[name] = values.load(done.path, like)
        self._keys[name] = digest.of_json(key)
        return done

    def _run_stage(self, number: int, stage: Stage, previous: str) -> Done:
        where = f"stages[{number - 1}] '{stage.id}'"
        for name in stage.needs():
            self._named(name)
        key = {
            "stage": use_of(stage),
            "config": plain(stage),
            "input": None if stage.takes() == "nothing" else self._keys[previous],
            "needs": [self._keys[name] for name in stage.needs()],
            "task": self._job.identity,
            "target": self._target,
            "seed": self._job.machine.seed,
            "format": _FORMAT,
        }
        key |= self._code[stage.id]
        if stage.quantizes:
            key["targets"] = list(self._recipe.targets)  # what has to be known of which layers
        deployment = self._deployment(number, stage)
        if stage.measures():
            key["deployment"] = {
                "int8": deployment.int8,
                "measure": plain(deployment.measure),
                "bounds": deployment.bounds.key() if deployment.int8 else None,
                "machine": self._machine_key,
                "original": None if deployment.bounds.original is None else deployment.bounds.original.digest,
            }
        value = self._values[previous]
        self._progress.say(f"{stage.id}: {stage.name}" if stage.id != stage.name else stage.id)
        place = f"stages/{number:02d}-{stage.id}"
        # What a measuring stage comes to hangs on more than its key: on the very weights, and on the clock.
        chosen_from = {"weights": values.digest_of(value), "machine": self._machine_key} if stage.measures() else None

        def make(folder: Path, work: Path) -> dict[str, Any]:
            earlier = self._chosen_before(place, key, chosen_from)
            if earlier is not None:
                shutil.copytree(earlier.path, folder, dirs_exist_ok=True)
                return earlier.facts
            context = dataclasses.replace(
                self._context(where, work), deployment=deployment, exported=lambda: self._graph(previous)
            )
            set_seed(self._job.machine.seed)
            before = values.digest_of(value)
            result = stage.run(value, context)
            if values.digest_of(value) != before:
                raise ContractError(f"{where}: {stage.name} changed its input; a stage must return a new value")
            if isinstance(result, Candidate):
                check_finite(result.weights, f"{where}: result")
            values.save(result, folder)
            facts = {"notes": context.notes, "for_verdict": context.for_verdict, "chosen_from": chosen_from}
            return {**facts, "model": self._origin(result)}

        done = self._once(place, key, make)
        like = None if done.facts["model"] is None else self._named(done.facts["model"])
        self._values[stage.id] = values.load(done.path, like if isinstance(like, Candidate) else None)
        self._keys[stage.id], self._for_verdict[stage.id] = digest.of_json(key), done.facts["for_verdict"]
        return done

    def _context(self, where: str, work: Path) -> Context:
        return Context(
            task=self._task,
            machine=self._job.machine,
            targets=self._recipe.targets,
            work=work,
            progress=self._progress,
            named=self._named,
            where=where,
        )

    def _chosen_before(self, place: str, key: Any, chosen_from: dict[str, Any] | None) -> Done | None:
        """What the run whose choices are taken over chose of the same, where it measured."""
        if self._earlier is None or chosen_from is None:
            return None
        found = self._earlier.found(place, key)
        if found is None or found.facts.get("chosen_from") != chosen_from:
            return None
        self._earlier.took(place)
        return found

    def _deployment(self, number: int, stage: Stage) -> Deployment:
        """How the result will run; what a stage measures of that is kept, here and for other runs on the machine."""
        place, measure, target = f"measurements/deployed-{stage.id}", self._recipe.measure, self._target
        int8, bounds = any(each.quantizes for each in self._recipe.stages[number:]), self._bounds(target)
        if stage.measures():
            self._used.add(place)

        def once(key: Any, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
            machine = {name: value for name, value in self._machine_key.items() if name != "seed"}
            where = {"machine": machine, "target": target, "measure": plain(measure), "int8": int8, "what": key}
            whole = where | {"task": self._job.identity, "format": _FORMAT}

            def found(folder: Path, work: Path) -> dict[str, Any]:
                return self._latencies.once(whole, lambda: make(work), dict, dict)

            return self._directory.once(place, where, found).facts

        return Deployment(int8=int8, measure=measure, bounds=bounds, once=once)

    def _origin(self, value: Candidate | Graph) -> str | None:
        """The model of the task's whose class a candidate is built from."""
        if isinstance(value, Graph):
            return None
        factories = {"original": self._task.model, **self._task.models}
        return next(name for name, factory in factories.items() if factory is value.factory)

    def _write(self, place: str, name: str, target: str) -> Written:
        """The value called `name` as a file of `target`."""
        measure, threads = self._recipe.measure, self._job.machine.threads
        value = self._values[name]
        ranged = values.has_ranges(value)
        key = {"value": self._keys[name], "target": target, "measure": plain(measure), "machine": self._machine_key}
        recipe, bounds = self._recipe, self._bounds(target) if ranged else Bounds()
        engine = engines.wanted(target, recipe.build, recipe.folder, final=place.startswith("artifacts/"))
        key |= engines.key(engine) | ({"bounds": bounds.key()} if ranged else {})
        max_drop = next((stage.max_drop for stage in recipe.stages if isinstance(stage, Quantize)), None)

        def make(folder: Path, work: Path) -> dict[str, Any]:
            if engine is not None:
                self._progress.say(f"  {target}: writing the file and building the engine")
            graph = self._graph(name)
            earlier = self._earlier.found(place, key) if self._earlier is not None and ranged else None
            like = None if earlier is None else artifacts.described(earlier.facts, earlier.path)
            written = artifacts.write(
                graph, target, self._task, folder, measure, threads, engine, max_drop, bounds, self._progress, like
            )
            if self._earlier is not None and written.taken_over:
                self._earlier.took(place)
            for beside in self._task.files if place.startswith("artifacts/") else ():
                shutil.copyfile(beside, folder / Path(beside).name)
            return artifacts.describe(written)

        done = self._once(place, key, make)
        return artifacts.described(done.facts, done.path)

    def _graph(self, name: str) -> Graph:
        """The value called `name` in ONNX, exported once, for the ledger and for a stage; `tidy` removes it."""
        value = self._values[name]
        if isinstance(value, Graph):
            return value

        def make(folder: Path, work: Path) -> dict[str, Any]:
            values.save(to_graph(value, self._task, work), folder)
            return {}

        done = self._directory.once(f"stages/exported-{as_file_name(name)}", {"value": self._keys[name]}, make)
        graph = values.load(done.path, None)
        assert isinstance(graph, Graph)
        return graph

    def _bounds(self, target: str) -> Bounds:
        """What the limits leave to a quantized graph, which can be written in several forms."""
        return Bounds.of(self._recipe.limits, self._files.get(self._recipe.against), target)

    def _entry(self, id: str, name: str, done: Done, artifact: Artifact, original: Artifact) -> LedgerEntry:
        key = {
            "artifact": artifact.digest,
            "original": original.digest,
            "task": self._job.identity,
            "machine": self._machine_key,
        }
        measure, threads = self._recipe.measure, self._job.machine.threads

        def make(folder: Path, work: Path) -> dict[str, Any]:
            return measuring.stage_facts(artifact, original, self._task, measure, threads)

        place = f"measurements/ledger-{artifact.digest[:16]}"  # a stage whose file is another's is not measured again
        facts = self._once(place, key | {"batch": measure.batch_sizes[0]}, make).facts
        entry = LedgerEntry(
            id=id,
            name=name,
            seconds=done.seconds,
            digest=values.digest_of(self._values[id]),
            notes=tuple(done.facts.get("notes", ())),
            **facts,
        )
        again = " (from an earlier run)" if done.reused else ""
        metric, old = task_metrics(self._task)[0].name, old_metric(self._task)
        scores = f"{metric} {entry.accuracy:.4f}"
        scores += "" if old is None or entry.old is None else f", {old.name} {entry.old:.4f}"
        latency = "latency not measured" if entry.latency_ms is None else f"{entry.latency_ms:.3g} ms"
        self._progress.say(f"  {scores}, {latency}, {entry.file_bytes:,} bytes, {entry.seconds:.1f} s{again}")
        for note in entry.notes:
            self._progress.record(f"  {id}: {note}")
        return entry

    def _judged(self, original: Artifact, last: str, ledger: Ledger) -> Report:
        """Write every target's file, measure the judged one against what the recipe says, and judge."""
        recipe = self._recipe
        written = {target: self._write(f"artifacts/{target}", last, target) for target in recipe.targets}
        final = written[self._target].artifact
        self._progress.say(f"measuring {recipe.against} and final on the test split")
        found, verdict = judged(self._pair(original, final), recipe, self._job.out, self._once, self._progress)
        self._found = found
        verdict, ledger = claims.held(
            recipe.stages, self._for_verdict, found.evidence, verdict, ledger, self._tested, self._progress
        )
        return report_of(self._job, ledger, found, verdict, tuple(written.values()), self._machine_key)

    def _tested(self, number: int, stage: Stage) -> list[str]:
        """What a stage says of its choice on the test data."""
        left = self._for_verdict[stage.id]

        def make(folder: Path, work: Path) -> dict[str, Any]:
            context = self._context(f"stages[{number}] '{stage.id}'", work)
            context = dataclasses.replace(context, for_verdict=left)
            return {"notes": stage.after_verdict(self._values[stage.id], context)}

        done = self._once(f"measurements/after-{stage.id}", {"value": self._keys[stage.id], "left": left}, make)
        return list(done.facts["notes"])

    def _pair(self, original: Artifact, final: Artifact) -> Pair:
        job = self._job
        return Pair(
            original=original,
            final=final,
            task=job.task,
            identity=job.identity,
            threads=job.machine.threads,
            machine=self._machine_key,
        )

    def _once(self, place: str, key: Any, make: Any) -> Done:
        self._used.add(place)
        return self._directory.once(place, key, make)
