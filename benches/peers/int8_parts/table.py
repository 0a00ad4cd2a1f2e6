"""The table: Markdown from the cells that are there."""

import math
from collections.abc import Sequence
from pathlib import Path

from .cells import Cell
from .models import Model
from .peers import Peer
from .results import Results, read

_MB = 1e6
_NOT = "-"


def write(root: Path, models: Sequence[Model], peers: Sequence[Peer]) -> str:
    """All models, then the geometric means, then where edgesmith is not the best."""
    results = [found for model in models if (found := read(root, model, peers)) is not None]
    parts = ["\n".join(f"- **{peer.name}**: {peer.says}" for peer in peers)]
    parts += [_of_model(found, peers) for found in results]
    parts.append(_means(results, peers))
    parts.append(_kernels(results))
    parts += [_behind(results, peer, peers) for peer in peers if peer.tool == "edgesmith"]
    return "\n\n".join(parts) + "\n"


def _of_model(found: Results, peers: Sequence[Peer]) -> str:
    head = [f"batch {batch}, {threads} thr." for batch, threads in found.times]
    quality = "accuracy, lost points (95 %)" if found.model.labelled else "signal to noise, equal answers"
    lines = [f"### {found.model.says}", "", _float_line(found), ""]
    lines.append(_row(["", quality, *head, "MB", "quantized in", "peak memory"]))
    lines.append(_row(["---"] * (5 + len(head))))
    shown = [peer.name for peer in peers if found.quantized.get(peer.name, {"status": "n/a"})["status"] != "n/a"]
    lines += [_row([name, *_cells_of(found, name)]) for name in shown]
    return "\n".join(lines)


def _float_line(found: Results) -> str:
    said = [f"{found.float_bytes / _MB:.2f} MB"]
    for (batch, threads), cell in found.times.items():
        said.append(
            f"batch {batch}, {threads} thr. {cell['float_ms']:.2f} ms (A/A {100 * cell['noise_floor']:.1f} %, "
            f"{cell['restarts']} restarts, load {cell['load'][0]:.1f} to {cell['load'][1]:.1f})"
        )
    return "FP32 in ONNX Runtime: " + "; ".join(said)


def _cells_of(found: Results, peer: str) -> list[str]:
    quantized = found.quantized[peer]
    memory = quantized.get("peak_bytes")
    cost = [f"{quantized['seconds']:.0f} s", _NOT if memory is None else f"{memory / _MB:.0f} MB"]
    if quantized["status"] != "written":
        return [f"{quantized['status']}: {quantized['reason']}", *[_NOT] * len(found.times), _NOT, *cost]
    speeds = [_speed(found.speedup(peer, pair)) for pair in found.times]
    return [_quality(found.quality.get(peer, {})), *speeds, f"{quantized['bytes'] / _MB:.2f}", *cost]


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


def _row(columns: Sequence[str]) -> str:
    return f"| {' | '.join(columns)} |".replace("\n", " ")


def _means(results: Sequence[Results], peers: Sequence[Peer]) -> str:
    lines = [
        "### Geometric means over the models, one thread",
        "",
        "A file that is not there, does not run, loses more than 1 point or is under 20 dB counts 1.00x: the original "
        "stays. What is not timed is left out.",
        "",
        _row(["", "batch 1", "models", "largest batch", "models", "files that are good enough"]),
        _row(["---"] * 6),
    ]
    for peer in (peer for peer in peers if peer.threads in (None, 1)):
        first = [found.worth(peer.name, (1, 1)) for found in results]
        several = [found for found in results if len(found.model.batches) > 1]
        last = [found.worth(peer.name, (found.model.batches[-1], 1)) for found in several]
        usable = sum(found.kept(peer.name) for found in results)
        lines.append(_row([peer.name, *_mean(first), *_mean(last), str(usable)]))
    return "\n".join(lines)


def _mean(values: Sequence[float | None]) -> tuple[str, str]:
    """The geometric mean, and of how many."""
    known = [math.log(value) for value in values if value is not None]
    return f"{math.exp(sum(known) / len(known)):.2f}x" if known else _NOT, str(len(known))


def _kernels(results: Sequence[Results]) -> str:
    """What more could be gained around the layers."""
    lines = [
        "### Were all but the layers free",
        "",
        "ONNX Runtime's profile of edgesmith's file, one thread: kernels in float and in INT8, of these convolutions "
        "and products; and how many times faster than float the file would be if nothing else took time.",
        "",
        _row(["", "batch", "float, ms", "INT8, ms", "layers, ms", "float / INT8", "float / layers"]),
        _row(["---"] * 7),
    ]
    for found in results:
        for batch, cell in found.profiles.items():
            times = [cell[name] for name in ("float_ms", "int8_ms", "layers_ms")]
            gains = [times[0] / each for each in times[1:]]
            lines.append(
                _row([found.model.name, str(batch), *(f"{ms:.3g}" for ms in times), *(f"{x:.2f}x" for x in gains)])
            )
    return "\n".join(lines)


def _behind(results: Sequence[Results], ours: Peer, peers: Sequence[Peer]) -> str:
    """Where another tool's file is better in the same runtime: which runtime to deploy is another choice."""
    rivals = [peer.name for peer in peers if peer.session == ours.session and peer.tool != ours.tool]
    lines = [f"### Where another is better than {ours.name} in the same runtime, beyond the intervals", ""]
    for found in results:
        for pair in (pair for pair in found.times if ours.threads in (None, pair[1])):
            faster = found.faster(ours.name, pair, rivals)
            if faster:
                said = ", ".join(f"{name} {value:.2f}x" for name, value in faster.items())
                own = found.worth(ours.name, pair)
                lines.append(f"- {found.model.name}, batch {pair[0]}, {pair[1]} thr.: {own or 1.0:.2f}x; {said}")
        closer = found.closer(ours.name, rivals)
        if closer:
            said = ", ".join(f"{name} {value}" for name, value in closer.items())
            lines.append(f"- {found.model.name}, closer to the original: {said}")
    return "\n".join(lines if len(lines) > 2 else [*lines, "Nowhere."])
