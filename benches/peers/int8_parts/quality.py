"""One cell: a file's answers on the test samples, beside those of the float model."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from edgesmith.benches.metrics import accuracy, closeness
from edgesmith.benches.metrics.metrics import METRICS, scores_of
from edgesmith.benches.timing import timing_loop
from edgesmith.core import digest
from edgesmith.core.errors import EdgesmithError
from edgesmith.core.files import atomic_path
from edgesmith.core.task import ArraySplit
from edgesmith.core.values import Arrays

from . import cells
from .cells import Cell
from .models import Model, arrays
from .peers import Peer
from .quantizing import path_of

KEPT_POINTS, KEPT_DB = 0.01, 20.0  # a file that loses more is of no use
_BATCH = 100
_CONFIDENCE = 0.95


def cell_path(root: Path, model: Model, peer: Peer) -> Path:
    """Where the cell stands."""
    return root / "cells" / model.name / f"{peer.name}.quality.json"


def judged(root: Path, model: Model, peer: Peer, quantized: Cell) -> Cell:
    """The cell of a file that was written.

    Returns:
        `file` (digest), `status` ("ran", or "failed" with a `reason`) and `kept` (good enough to be used); with labels
        `original`, `value` and `drop` (paired, in shares: value, low, high), without them `snr_db` and `agreement` of
        the worst output.
    """
    folder = model.folder(root)
    key = {"file": quantized["digest"], "test": digest.of_file(folder / "test.npz"), "session": peer.session}
    path = cell_path(root, model, peer)
    file = path_of(root, model, peer)
    return cells.once(path, key, lambda: {"file": key["file"], **_judge(root, model, file, peer.session)})


def _judge(root: Path, model: Model, file: Path, session: str) -> Cell:
    folder = model.folder(root)
    try:
        found = _labelled(folder, file, session) if model.labelled else _close(folder, file, session)
    except (EdgesmithError, RuntimeError, ValueError) as error:  # OpenVINO raises RuntimeError
        line = next(iter(str(error).strip().splitlines()), "")
        found = {"status": "failed", "kept": False, "reason": line.replace(str(file), file.name)[:300]}
    said = {name: value for name, value in found.items() if name not in ("status", "drop")}
    print(f"{model.name}: {file.name}: {said}", flush=True)
    return found


def _labelled(folder: Path, file: Path, session: str) -> Cell:
    stored = arrays(folder / "test.npz")
    labels = stored.pop("labels")
    split = ArraySplit(stored)
    before, after = _float_scores(folder, split, labels), _scores(file, session, split, labels)
    drop = accuracy.paired_drop(METRICS["accuracy"], before, after, _CONFIDENCE)
    return {
        "status": "ran",
        "original": float(before.mean()),
        "value": float(after.mean()),
        "drop": dataclasses.asdict(drop),
        "kept": drop.value <= KEPT_POINTS,
    }


def _float_scores(folder: Path, split: ArraySplit, labels: np.ndarray) -> np.ndarray:
    """Of the float model in ONNX Runtime; kept beside it."""
    path = folder / "float-scores.npy"
    if not path.exists():
        found = _scores(folder / "model.onnx", "onnxruntime-cpu", split, labels)
        with atomic_path(path) as partial, partial.open("wb") as stream:
            np.save(stream, found)
    scores: np.ndarray = np.load(path, allow_pickle=False)
    return scores


def _scores(file: Path, session: str, split: ArraySplit, labels: np.ndarray) -> np.ndarray:
    opened = timing_loop.opener(session)(str(file), 1)
    try:
        outputs = accuracy.predict(opened, split, _BATCH)
    finally:
        opened.close()
    return scores_of(METRICS["accuracy"], outputs, labels)


def _close(folder: Path, file: Path, session: str) -> Cell:
    stored = arrays(folder / "test.npz")
    rows = [{name: array[i : i + 1] for name, array in stored.items()} for i in range(len(next(iter(stored.values()))))]
    original = _outputs(folder / "model.onnx", "onnxruntime-cpu", rows)
    changed = [  # another runtime may name the outputs anew, but keeps their order
        dict(zip(expected, found.values(), strict=True))
        for expected, found in zip(original, _outputs(file, session, rows), strict=True)
    ]
    found = closeness.compare(original, changed)
    snr = closeness.worst_snr(found)
    return {"status": "ran", "snr_db": snr, "agreement": closeness.worst_agreement(found), "kept": snr >= KEPT_DB}


def _outputs(file: Path, session: str, rows: list[dict[str, np.ndarray]]) -> list[Arrays]:
    opened: Any = timing_loop.opener(session)(str(file), 1)
    try:
        return [opened.run(row) for row in rows]
    finally:
        opened.close()
