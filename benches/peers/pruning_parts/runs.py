"""The runs of the table: every one a recipe, trained alike and kept in its own directory."""

import functools
from pathlib import Path

import safetensors.torch
from torch import nn

import edgesmith
from edgesmith.benches.peers.int8_parts import cells, fashion
from edgesmith.benches.peers.int8_parts.models import Model
from edgesmith.benches.timing import environment, latency
from edgesmith.compressor.progress import Progress
from edgesmith.compressor.stage import Machine
from edgesmith.core.errors import EdgesmithError

from .ways import Net, Way

TARGET = "onnxruntime-cpu"
BATCH = 32  # that is pruned for, and that a rounding is chosen at
_SECONDS = 6.0


def task(net: Net, root: Path) -> edgesmith.Task:
    """The network as a task; what it is trained from is made where it is not there."""
    folder = Model(name=net.name, says="", prepare=lambda path: fashion.prepare(net.name, path)).folder(root)
    images = fashion.example("images")
    return edgesmith.Task(
        name=net.name,
        model=functools.partial(fashion.network, net.name),
        load_weights=functools.partial(_load, folder / "weights.safetensors"),
        loss="cross-entropy",
        metrics=("accuracy",),
        outputs=("logits",),
        augment=images.augment,
        **images.splits(),
    )


def _load(path: Path, module: nn.Module) -> None:
    module.load_state_dict(safetensors.torch.load_file(path))


def trained(root: Path, net: Net, way: Way, level: float, seed: int, epochs: int) -> Path | None:
    """The directory of a finished run; None where the way cannot do it, which is said."""
    try:
        rounding = _rounding(root, net, way, level)
        return _run(root, net, way, level, rounding, seed, epochs)
    except Exception as error:  # of the tool's: any kind; it is the finding
        print(f"{net.name}, {way.name}, {level:g}: {type(error).__name__}: {error}", flush=True)
        return None


def _run(root: Path, net: Net, way: Way, level: float, rounding: int, seed: int, epochs: int) -> Path:
    name = f"{net.name}-{way.name}-{level:g}-{rounding}-{seed}-{epochs}".replace(" ", "-").replace(",", "")
    out = root / "runs" / name
    recipe = {
        "task": f"{Path(__file__).name}:{net.name}",  # for the reader: the task itself is handed over
        "targets": [TARGET],
        "stages": way.stages(net, level, rounding, epochs),
        "measure": {"batch_sizes": [BATCH, 1], "seconds": 0.5},
        "limits": {"drop": 1.0},
    }
    edgesmith.compress(task(net, root), recipe, out=out, machine=Machine(seed=seed), progress=Progress())
    print(f"{name}: done", flush=True)
    return out


def _rounding(root: Path, net: Net, way: Way, level: float) -> int:
    """The one whose untrained file is fastest: widths alone decide the time."""
    if len(way.roundings) == 1:
        return way.roundings[0]

    def fastest() -> cells.Cell:
        found: dict[int, Path] = {}
        for rounding in way.roundings:
            try:
                found[rounding] = judged_file(_run(root, net, way, level, rounding, 0, 0))
            except EdgesmithError as error:
                print(f"{net.name}, {way.name}, {level:g}, rounded to {rounding}: {error}", flush=True)
        if len(found) < 2:
            return {"rounding": next(iter(found), way.roundings[0])}
        feeds = latency.rotating_feeds(task(net, root).test, [BATCH])
        paths = list(found.values())
        (timed,) = latency.compare(paths, feeds, seconds=_SECONDS, **latency.GUIDE)
        speeds = [1.0, *(speedup.value for speedup in timed.speedup)]
        return {"rounding": list(found)[speeds.index(max(speeds))], "speeds": speeds}

    key = {"machine": environment.cpu_name(), "roundings": way.roundings, "seconds": _SECONDS}
    path = root / "cells" / net.name / f"rounding-{way.name}-{level:g}.json".replace(" ", "-").replace(",", "")
    return int(cells.once(path, key, fastest)["rounding"])


def judged_file(run: Path) -> Path:
    """The file that a run ended with, in INT8 but where the way is one in float."""
    return run / "artifacts" / TARGET / "model.onnx"


def float_file(run: Path) -> Path:
    """The same network before it was quantized."""
    return next((run / "measurements").glob("*-export/model.onnx"), judged_file(run))
