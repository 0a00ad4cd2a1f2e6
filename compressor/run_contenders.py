"""`edgesmith bench RUN_DIR`: a finished run as contenders: its original in torch, compiled and as ONNX; its files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..benches.timing import latency
from ..benches.timing.contender import Contender
from ..benches.timing.timing_loop import SESSIONS
from ..core.errors import RunDirectoryError
from ..core.values import Arrays
from ..exporters.targets.targets import TARGETS
from . import recipe as recipes, torch_run
from .opened_run import task_of

_ORIGINAL_FILE = Path("measurements/00-original/model.onnx")


def contenders(run: Path, batch_sizes: Sequence[int] | None = None) -> tuple[list[Contender], dict[int, list[Arrays]]]:
    """What `benches.timing.side_by_side.measure` compares, and real test samples to feed it.

    Args:
        run: directory of a finished run.
        batch_sizes: None: those of the run's recipe.

    Returns:
        "torch eager" and "torch.compile" (where the original is a torch model), "ONNX Runtime FP32", and the file of
        every target, that of the judged one as "final"; the first is the baseline.

    Raises:
        RunDirectoryError: not a finished run, or one of another task than the code now gives.
        TaskError: the task cannot be loaded from where the run found it.
    """
    report = _report(run)
    recipe = recipes.load(run / "recipe.toml")
    task = task_of(run, recipe, int(report["environment"]["seed"]))
    found = _of_torch(run) if callable(task.model) else []
    original = run / _ORIGINAL_FILE
    found.append(Contender(label="ONNX Runtime FP32", session="onnxruntime-cpu", path=original, file=original))
    found += [
        _of_artifact(run, artifact, judged=artifact["target"] == report["target"]) for artifact in report["artifacts"]
    ]
    return found, latency.rotating_feeds(task.test, batch_sizes or recipe.measure.batch_sizes)


def _report(run: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads((run / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirectoryError(
            f"{run}: not a finished run (no readable report.json); give the directory that `edgesmith compress` "
            "wrote, or two or more ONNX files"
        ) from error
    return report


def _of_torch(run: Path) -> list[Contender]:
    weights = run / torch_run.ORIGINAL
    return [
        Contender(label="torch eager", session=torch_run.EAGER, path=run, file=weights),
        Contender(
            label="torch.compile",
            session=torch_run.COMPILED,
            path=run,
            file=weights,
            reason=torch_run.cannot_compile(),
            optional=True,
        ),
    ]


def _of_artifact(run: Path, artifact: dict[str, Any], judged: bool) -> Contender:
    target, path = artifact["target"], run / artifact["path"]
    reason = TARGETS[target].unmeasurable() or ""
    if not reason and target not in SESSIONS:
        reason = f"target '{target}' cannot be timed here"
    return Contender(
        label=f"{'final' if judged else target}, {artifact['dialect']}",
        session=target,
        path=path,
        file=path,
        reason=reason,
    )
