"""The table: what each run lost, how much faster its files are, and who is faster at the same accuracy."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from edgesmith.benches.gates import finished
from edgesmith.benches.metrics import accuracy, metrics
from edgesmith.benches.peers.int8_parts import cells
from edgesmith.benches.report.report import Report
from edgesmith.benches.timing import environment, intervals, latency
from edgesmith.core import digest
from edgesmith.core.values import Interval
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession

from . import runs
from .ways import WAYS, Net

BATCHES = (1, 32)
MARGIN = 0.005  # of accuracy that counts as the same
_SECONDS = 40.0  # for all files of a network at a batch size
_CONFIDENCE = 0.95
_WHOLE = "not pruned 1"  # the row of the network in INT8 as it is
_INT8 = {way.name: way.int8 for way in WAYS}
_ETAS = "eta float / INT8 / INT8 over INT8"
_METRIC = metrics.resolve_metric("accuracy", "benches")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One trained run."""

    way: str
    level: float
    seed: int
    run: Path

    @property
    def name(self) -> str:
        return f"{self.way} {self.level:g}"


def timed(root: Path, net: Net, rows: Sequence[Row], batch: int) -> cells.Cell:
    """Speed-ups over the original in float: "int8" and "float" of each run's directory name, and an empty call's ms.

    Seeds differ in weights alone, so that the first seed's files are timed for all.
    """
    original = rows[0].run / "measurements" / "00-original" / "model.onnx"
    files = {f"{kind} {row.name}": file(row.run) for row in rows for kind, file in _FILES.items()}
    key = {
        "files": {name: digest.of_file(path) for name, path in {"original": original, **files}.items()},
        "machine": environment.cpu_name(),
        "seconds": _SECONDS,
    }

    def time() -> cells.Cell:
        empty = _empty(original, root / "empty.onnx")
        feeds = latency.rotating_feeds(runs.task(net, root).test, [batch])
        (found,) = latency.compare([original, empty, *files.values()], feeds, seconds=_SECONDS, timeout=1800.0)
        speedup = {name: dataclasses.asdict(one) for name, one in zip(["empty", *files], found.speedup, strict=True)}
        return {"ms": found.latency[0].p50, "floor": found.noise_floor, "speedup": speedup}

    return cells.once(root / "cells" / net.name / f"time-{batch}.json", key, time)


_FILES = {"int8": runs.judged_file, "float": runs.float_file}


def _empty(like: Path, path: Path) -> Path:
    """A graph with the same input that hands it on: what a call costs without a network."""
    value = onnx.load(like).graph.input[0]
    result = onnx.ValueInfoProto()
    result.CopyFrom(value)
    result.name = "handed_on"
    graph = helper.make_graph([helper.make_node("Identity", [value.name], ["handed_on"])], "empty", [value], [result])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def write(root: Path, net: Net, epochs: int, rows: Sequence[Row], times: Mapping[int, cells.Cell]) -> str:
    """Markdown of one network; all its rows were trained for `epochs`."""
    reports = {row.run: finished.of_run(row.run) for row in rows}
    firsts = {row.name: row for row in rows if row.seed == net.seeds[0]}
    lines = [
        f"## {net.name}",
        "",
        f"{epochs} epochs each; "
        + "; ".join(f"batch {b}: float {cell['ms']:.4g} ms, an empty call {_empty_ms(cell):.3g} ms, "
                    f"noise floor {cell['floor']:.1%}" for b, cell in times.items()),
        "",
        "| way | left | MACs | lost, points | "
        + " | ".join(f"{what}, batch {b}" for b in times for what in ("float", "INT8", "INT8 net", _ETAS))
        + " | file |",
        "|---" * (5 + 4 * len(times)) + "|",
    ]  # fmt: skip
    for name, first in firsts.items():
        mine = [reports[row.run].report for row in rows if row.name == name]
        macs = (mine[0].final.macs or 0) / (mine[0].original.macs or 1)
        cols = [first.way, f"{first.level:g}", f"{macs:.2f}", _lost(mine)]
        for cell in times.values():
            cols += _speeds(cell, name, macs, _INT8[first.way])
        cols.append(f"1/{mine[0].original.file_bytes / mine[0].final.file_bytes:.1f}")
        lines.append(f"| {' | '.join(cols)} |")
    lines += ["", "Net: less the time of an empty call.", ""]
    return "\n".join([*lines, *equal_accuracy(root, net, rows, times), ""])


def _lost(seeds: Sequence[Report]) -> str:
    """Of one seed with its interval, of several the mean and the range."""
    points = [100 * each.drop.value for each in seeds]
    if len(seeds) == 1:
        return f"{points[0]:.2f} ({100 * seeds[0].drop.low:.2f} to {100 * seeds[0].drop.high:.2f})"
    return f"{np.mean(points):.2f} ({min(points):.2f} to {max(points):.2f}, {len(seeds)} seeds)"


def _empty_ms(cell: cells.Cell) -> float:
    return float(cell["ms"] / cell["speedup"]["empty"]["value"])


def _speeds(cell: cells.Cell, name: str, macs: float, int8: bool) -> list[str]:
    """In float and, unless the way is one in float, in INT8."""
    found = {kind: cell["speedup"][f"{kind} {name}"] for kind in _FILES}
    empty = 1 / cell["speedup"]["empty"]["value"]
    net = (1 - empty) / (1 / found["int8"]["value"] - empty)
    texts = [f"{one['value']:.2f}x ({one['low']:.2f} to {one['high']:.2f})" for one in (found["float"], found["int8"])]
    texts = [*texts, f"{net:.2f}x"] if int8 else [texts[0], "-", "-"]
    if macs == 1:
        return [*texts, "-"]
    gains, whole = [found["float"]["value"]], cell["speedup"].get(f"int8 {_WHOLE}")
    gains += [found["int8"]["value"]] if int8 else []
    gains += [] if whole is None or not int8 else [found["int8"]["value"] / whole["value"]]
    return [*texts, " / ".join(f"{math.log(gain) / -math.log(macs):.2f}" for gain in gains)]


def equal_accuracy(root: Path, net: Net, rows: Sequence[Row], times: Mapping[int, cells.Cell]) -> list[str]:
    """For every file of a peer: the fastest of edgesmith's that loses at most `MARGIN` more, and how much faster it is.

    Which lose so little is found on validation data; the points lost more are then those of the test data. Both are
    paired over samples, each sample's score the mean over the seeds.
    """
    names = list(dict.fromkeys(row.name for row in rows))
    ours = list(dict.fromkeys(row.name for row in rows if row.way.startswith("edgesmith") and _INT8[row.way]))
    scores = {part: {name: _mean(root, net, rows, name, part) for name in names} for part in ("validation", "test")}
    lines = [f"At equal accuracy: at most {100 * MARGIN:g} points more lost on validation data "
             f"(paired, the bound at {_CONFIDENCE:.0%}); in brackets the points lost more on test data:",
             "",
             "| peer | " + " | ".join(f"batch {batch}" for batch in times) + " |",
             "|---" * (1 + len(times)) + "|"]  # fmt: skip
    for name in (name for name in names if not name.startswith("edgesmith")):
        lost = {part: {mine: intervals.mean(found[name] - found[mine], _CONFIDENCE) for mine in ours}
                for part, found in scores.items()}  # fmt: skip
        equal = [mine for mine in ours if lost["validation"][mine].high <= MARGIN]
        lines.append(
            f"| {name} | " + " | ".join(_fastest(equal, name, lost["test"], cell) for cell in times.values()) + " |"
        )
    return lines


def _fastest(equal: Sequence[str], peer: str, lost: Mapping[str, Interval], cell: cells.Cell) -> str:
    """`edgesmith 0.4: 1.6x (1.5 to 1.7) [0.12, at most 0.41]`; the ratio's bounds are those of both files at worst."""
    speeds = {name: cell["speedup"][f"int8 {name}"] for name in (*equal, peer)}
    best = max(equal, key=lambda mine: speeds[mine]["value"], default=None)
    if best is None:
        return "none is as accurate"
    mine, theirs, points = speeds[best], speeds[peer], lost[best]
    low, high = mine["low"] / theirs["high"], mine["high"] / theirs["low"]
    ratio = f"{mine['value'] / theirs['value']:.2f}x ({low:.2f} to {high:.2f})"
    return f"{best}: {ratio} [{100 * points.value:.2f}, at most {100 * points.high:.2f}]"


def _mean(root: Path, net: Net, rows: Sequence[Row], name: str, part: str) -> np.ndarray:
    """Of every sample of a split the mean score over the seeds, `(N,)`."""
    found: np.ndarray = np.mean([_correct(root, net, row.run, part) for row in rows if row.name == name], 0)
    return found


def _correct(root: Path, net: Net, run: Path, part: str) -> list[float]:
    """Of every sample of a split, whether the file of a run knows it."""
    file = runs.judged_file(run)

    def judge() -> cells.Cell:
        split = runs.task(net, root).split(part, "benches")
        session = OnnxRuntimeSession(file)
        outputs = accuracy.predict(session, split, 256)
        session.close()
        return {"correct": metrics.scores_of(_METRIC, outputs, accuracy.labels_of(split)).astype(float).tolist()}

    path = root / "cells" / net.name / f"{part}-{run.name}.json"
    found: list[float] = cells.once(path, {"file": digest.of_file(file)}, judge)["correct"]
    return found
