"""The table: Markdown from the cells that are there."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import cells, timing
from .cells import Cell
from .models import Model
from .peers import Peer
from .quantizing import cell_path

_MB = 1e6
_NOT = "-"


def write(root: Path, models: Sequence[Model], peers: Sequence[Peer]) -> str:
    """All models, then the geometric means, then where edgesmith is not the best."""
    ours = next((peer.name for peer in peers if peer.tool == "edgesmith"), None)
    parts = [_legend(peers)]
    parts += [_of_model(root, model, peers) for model in models if (root / "models" / model.name).exists()]
    parts.append(_means(root, models, peers))
    if ours is not None:
        parts.append(_behind(root, models, ours))
    return "\n\n".join(parts) + "\n"


def _legend(peers: Sequence[Peer]) -> str:
    return "\n".join(f"- **{peer.name}**: {peer.says}" for peer in peers)


def _of_model(root: Path, model: Model, peers: Sequence[Peer]) -> str:
    times = _times(root, model)
    head = [f"batch {batch}, {threads} thr." for batch, threads in times]
    lines = [f"### {model.says}", "", _float_line(root, model, times), ""]
    quality = "accuracy, lost points (95 %)" if model.labelled else "signal to noise, equal answers"
    lines += _row(["", quality, *head, "MB", "quantized in", "peak memory"])
    lines += _row(["---"] * (5 + len(head)))
    for peer in peers:
        quantized = cells.stored(cell_path(root, model, peer))
        if quantized is not None and quantized["status"] != "n/a":
            lines += _row([peer.name, *_cells_of(root, model, peer, quantized, times)])
    return "\n".join(lines)


def _times(root: Path, model: Model) -> dict[tuple[int, int], Cell]:
    """(batch, threads) -> the cell."""
    wanted = [(batch, threads) for threads in timing.THREADS for batch in model.batches]
    found = {pair: cells.stored(timing.cell_path(root, model, *pair)) for pair in wanted}
    return {pair: cell for pair, cell in found.items() if cell is not None}


def _float_line(root: Path, model: Model, times: Mapping[tuple[int, int], Cell]) -> str:
    size = (root / "models" / model.name / "model.onnx").stat().st_size / _MB
    said = [f"{size:.2f} MB"]
    for (batch, threads), cell in times.items():
        said.append(
            f"batch {batch}, {threads} thr. {cell['float_ms']:.2f} ms (A/A {100 * cell['noise_floor']:.1f} %, "
            f"{cell['restarts']} restarts, load {cell['load'][0]:.1f} to {cell['load'][1]:.1f})"
        )
    return "FP32 in ONNX Runtime: " + "; ".join(said)


def _cells_of(
    root: Path, model: Model, peer: Peer, quantized: Cell, times: Mapping[tuple[int, int], Cell]
) -> list[str]:
    cost = [f"{quantized['seconds']:.0f} s", f"{quantized.get('peak_bytes', 0) / _MB:.0f} MB"]
    if quantized["status"] != "written":
        return [f"{quantized['status']}: {quantized['reason']}", *[_NOT] * len(times), _NOT, *cost]
    quality = cells.stored(root / "cells" / model.name / f"{peer.name}.quality.json") or {}
    speeds = [_speed(cell["speedup"].get(peer.name)) for cell in times.values()]
    return [_quality(quality), *speeds, f"{quantized['bytes'] / _MB:.2f}", *cost]


def _quality(cell: Cell) -> str:
    if cell.get("status") != "ran":
        return f"**does not run**: {cell.get('reason', 'not judged yet')}"
    if "drop" in cell:
        drop = cell["drop"]
        bounds = f"{100 * drop['low']:.2f} to {100 * drop['high']:.2f}"
        said = f"{100 * cell['value']:.2f} %, {100 * drop['value']:.2f} ({bounds})"
    else:
        said = f"{cell['snr_db']:.1f} dB, {100 * cell['agreement']:.1f} %"
    return said if cell["kept"] else f"**{said}**"


def _speed(speedup: Cell | None) -> str:
    if speedup is None:
        return _NOT
    return f"{speedup['value']:.2f}x ({speedup['low']:.2f} to {speedup['high']:.2f})"


def _row(cells_: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(cells_).replace("\n", " ") + " |"]


def worth(root: Path, model: Model, peer: str, batch: int, threads: int) -> float | None:
    """What a user gains: the speed-up, 1.0 where there is no file that is good enough; None: not timed."""
    cell = cells.stored(timing.cell_path(root, model, batch, threads))
    quality = cells.stored(root / "cells" / model.name / f"{peer}.quality.json")
    if cell is None:
        return None
    if quality is None or not quality["kept"]:
        return 1.0
    speed = cell["speedup"].get(peer)
    return None if speed is None else float(speed["value"])


def _means(root: Path, models: Sequence[Model], peers: Sequence[Peer]) -> str:
    """Geometric means over the models, batch 1 and the largest batch, with one thread."""
    lines = [
        "### Geometric means over the models, one thread",
        "",
        "A file that is not there, does not run, loses more than 1 point or is under 20 dB counts 1.00x: the original "
        "stays.",
        "",
        *_row(["", "batch 1", "of models, usable", "largest batch", "of models"]),
        *_row(["---"] * 5),
    ]
    for peer in peers:
        if peer.only:
            continue
        first = {model.name: worth(root, model, peer.name, 1, 1) for model in models}
        last = {
            model.name: worth(root, model, peer.name, model.batches[-1], 1)
            for model in models
            if len(model.batches) > 1
        }
        usable = sum(_kept(root, model, peer.name) for model in models)
        lines += _row([peer.name, _mean(first), f"{_count(first)}, {usable}", _mean(last), str(_count(last))])
    return "\n".join(lines)


def _kept(root: Path, model: Model, peer: str) -> bool:
    quality = cells.stored(root / "cells" / model.name / f"{peer}.quality.json")
    return quality is not None and bool(quality["kept"])


def _count(values: Mapping[str, float | None]) -> int:
    return sum(value is not None for value in values.values())


def _mean(values: Mapping[str, float | None]) -> str:
    known = [math.log(value) for value in values.values() if value is not None]
    return f"{math.exp(sum(known) / len(known)):.2f}x" if known else _NOT


def _behind(root: Path, models: Sequence[Model], ours: str) -> str:
    """Every cell where another file that is good enough is faster, beyond both intervals."""
    lines = ["### Where another is faster than edgesmith, beyond the intervals", ""]
    for model in models:
        for (batch, threads), cell in _times(root, model).items():
            own = cell["speedup"].get(ours, {"value": 1.0, "high": 1.0})
            faster = {
                name: one["value"]
                for name, one in cell["speedup"].items()
                if name != ours and _kept(root, model, name) and one["low"] > own["high"]
            }
            if faster:
                said = ", ".join(f"{name} {value:.2f}x" for name, value in sorted(faster.items(), key=lambda x: -x[1]))
                lines.append(f"- {model.name}, batch {batch}, {threads} thr.: {own['value']:.2f}x; {said}")
    return "\n".join(lines if len(lines) > 2 else [*lines, "Nowhere."])
