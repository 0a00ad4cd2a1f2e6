"""One cell: all files of a model against its float file, in the same processes, at one batch size and thread count."""

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgesmith.benches.timing import environment, latency, timing_loop
from edgesmith.benches.timing.contender import Contender
from edgesmith.core import digest
from edgesmith.core.task import ArraySplit
from edgesmith.core.values import Arrays

from . import cells
from .cells import Cell
from .models import Model, arrays
from .peers import ONNXRUNTIME, Peer
from .quantizing import path_of

THREADS = (1, 2)
_SECONDS = 20.0  # of a cell, over all restarts; a round of all files at least is taken in each
_SLOW_MS = 40.0  # a float run that takes longer than this: fewer files and fewer restarts
_ROUGH_RUNS = 5


def timed(root: Path, model: Model, peers: Mapping[Peer, Cell], batch: int, threads: int) -> Cell:
    """Time what can be used.

    All files are timed at batch 1 and one thread, but for those made for more. Where a float run is slow, and with more
    threads, only the fastest file of each tool is, as batch 1 and one thread show it, and those made for so many.

    Args:
        root: working folder.
        model: the model.
        peers: that gave a file which runs, with their cells of quantizing.
        batch: rows.
        threads: of every session.

    Returns:
        `float_ms` (p50), `noise_floor`, `restarts`, `load` (before and after), `took` (seconds), `files` (digests) and
        `speedup`: peer -> value, low, high.
    """
    folder = model.folder(root)
    rough = cells.once(
        root / "cells" / model.name / f"rough-{batch}.json",
        {"model": digest.of_file(folder / "model.onnx")},
        lambda: {"ms": _rough_ms(folder, batch)},
    )
    slow = rough["ms"] > _SLOW_MS
    made_for = {peer: cell for peer, cell in peers.items() if peer.threads in (None, threads)}
    everything = threads == 1 and not (slow and batch > 1)
    chosen = list(made_for) if everything else _fastest(root, model, made_for)
    key: Cell = {
        "model": digest.of_file(folder / "model.onnx"),
        "files": {peer.name: peers[peer]["digest"] for peer in chosen},
        "seconds": _SECONDS,
        "slow": slow,
        "machine": environment.cpu_name(),
    }
    path = cell_path(root, model, batch, threads)
    return cells.once(path, key, lambda: _time(root, model, chosen, key, batch, threads))


def cell_path(root: Path, model: Model, batch: int, threads: int) -> Path:
    """Where the cell stands."""
    return root / "cells" / model.name / f"time-{batch}-{threads}.json"


def _fastest(root: Path, model: Model, peers: Mapping[Peer, Cell]) -> list[Peer]:
    """The fastest file of each tool and session at batch 1 with one thread, which is timed before."""
    found = cells.stored(cell_path(root, model, 1, 1)) or {"speedup": {}}
    best: dict[tuple[str, str], Peer] = {}
    for peer in peers:
        speed = found["speedup"].get(peer.name)
        group = (peer.family, peer.session) if not peer.settings.get("float") else ("float", peer.session)
        if speed is not None and (group not in best or found["speedup"][best[group].name]["value"] < speed["value"]):
            best[group] = peer
    return [*best.values(), *(peer for peer in peers if peer.threads is not None)]


def _time(root: Path, model: Model, chosen: Sequence[Peer], key: Cell, batch: int, threads: int) -> Cell:
    folder = model.folder(root)
    original = Contender(label="float", session=ONNXRUNTIME, path=folder / "model.onnx", file=folder / "model.onnx")
    others = [_contender(root, model, peer) for peer in chosen]
    load, started = os.getloadavg()[0], time.monotonic()
    (found,) = latency.compare(
        [original, *others],
        feeds(folder, batch),
        threads,
        seconds=_SECONDS,
        timeout=1800.0,
        **(latency.GUIDE if key["slow"] else {}),
    )
    speedup = {peer.name: dataclasses.asdict(one) for peer, one in zip(chosen, found.speedup, strict=True)}
    cell: Cell = {
        "float_ms": found.latency[0].p50,
        "noise_floor": found.noise_floor,
        "restarts": found.restarts,
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
        "took": round(time.monotonic() - started, 1),
        "files": key["files"],
        "speedup": speedup,
    }
    best = max(speedup, key=lambda name: speedup[name]["value"])
    print(
        f"{model.name}: batch {batch}, {threads} threads: float {cell['float_ms']:.2f} ms, fastest {best} "
        f"{cell['speedup'][best]['value']:.2f}x, took {cell['took']:.0f} s, load {cell['load']}",
        flush=True,
    )
    return cell


def _contender(root: Path, model: Model, peer: Peer) -> Contender:
    path = path_of(root, model, peer)
    return Contender(label=peer.name, session=peer.session, path=path, file=path)


def feeds(folder: Path, batch: int) -> dict[int, list[Arrays]]:
    """Test samples that take turns, by batch size."""
    stored = arrays(folder / "test.npz")
    stored.pop("labels", None)
    return latency.rotating_feeds(ArraySplit(stored), [batch])


def _rough_ms(folder: Path, batch: int) -> float:
    """Of a float run with one thread; enough to tell slow from fast."""
    session = timing_loop.opener(ONNXRUNTIME)(str(folder / "model.onnx"), 1)
    run = session.bind(feeds(folder, batch)[batch][0])
    run()
    started = time.perf_counter()
    for _ in range(_ROUGH_RUNS):
        run()
    session.close()
    return 1e3 * (time.perf_counter() - started) / _ROUGH_RUNS
