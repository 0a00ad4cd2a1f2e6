"""What a fused graph costs beside the sum of its members: ``python benches/results/fusion_cost.py [rule ...]``.

The trained members of examples/fashion_mnist, fused by every rule, in ONNX Runtime on one thread; a rule that learns
does so on the validation images. Fused graph, the same members side by side in one graph without anything behind them,
and each member alone are timed in one process in turns. Against the side by side the ratio is one paired ratio; the sum
of the members alone holds a call for each, and the bounds of its ratio add up those of every member. ONNX Runtime's own
profile says how many nodes behind the members a run executes, and which share of it they take. ``--seconds`` is for
each batch size; 0 counts the nodes alone.
"""

import argparse
import functools
import importlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from edgesmith.benches.timing import latency
from edgesmith.compressor.fusion.fusing import FUSIONS, Combination
from edgesmith.compressor.fusion.member_outputs import Logarithms, fusible, write_stack
from edgesmith.core.values import Artifact, TensorSpec
from edgesmith.exporters import from_torch
from edgesmith.exporters.graph import compose, onnx_file
from edgesmith.exporters.graph.canonical import canonicalise
from edgesmith.exporters.targets.onnxruntime_cpu import OnnxRuntimeCpu

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion_mnist"
INPUT = TensorSpec(name="image", dtype="float32", shape=("batch", 1, 28, 28))
BATCHES, CLASSES, SECONDS = (1, 32), 10, 15.0
MEMBERS = [f"seed{index}" for index in range(5)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rules", nargs="*", metavar="rule", default=list(FUSIONS))
    parser.add_argument("--seconds", type=float, default=SECONDS)
    given = parser.parse_args()
    sys.path.insert(0, str(EXAMPLE))
    rng = np.random.default_rng(0)
    feeds = {batch: [{"image": rng.random((batch, 1, 28, 28), np.float32)} for _ in range(4)] for batch in BATCHES}
    print("| rule | batch | fused, ms | over the members side by side, % | sum of members alone, ms | over it, % |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="edgesmith-fusion-cost-") as name:
        folder = Path(name)
        graphs = {member: exported(member, folder) for member in MEMBERS}
        alone = [written(graph, folder / f"{member}-file.onnx") for member, graph in graphs.items()]
        beside = written(side_by_side(graphs), folder / "side-by-side.onnx")
        for rule in given.rules:
            fused = written(joined(graphs, made(rule, folder)), folder / f"{rule}.onnx")
            counted = {batch: behind(fused.path, feeds[batch]) for batch in BATCHES}
            shares = ", ".join(f"{share:.2%} at batch {batch}" for batch, (_, share) in counted.items())
            print(f"<!-- {rule}: {counted[1][0]} nodes behind the members, {shares} -->", flush=True)
            for found in (
                latency.compare([fused, beside, *alone], feeds, seconds=given.seconds) if given.seconds else ()
            ):
                print(f"| {rule} | {found.batch} | {row(found)} |", flush=True)


def exported(member: str, folder: Path) -> onnx.ModelProto:
    """One member as a graph."""
    path = folder / f"{member}.onnx"
    samples = {"image": np.random.default_rng(1).random((8, 1, 28, 28), np.float32)}
    from_torch.export(importlib.import_module("members").trained(member), samples, (INPUT,), ("logits",), path)
    return onnx_file.load(path)


def made(name: str, folder: Path) -> Combination:
    """The rule with equal weights, or with what it learns."""
    rule = FUSIONS[name]
    if rule.make is not None:
        return rule.make(np.full(len(MEMBERS), 1 / len(MEMBERS)))
    assert rule.fit is not None
    return rule.fit(*validation(folder), True)


@functools.cache
def validation(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What the members say of the validation images, `(N, members, C)`, and the labels."""
    split = importlib.import_module("images").splits()["validation"]
    images, labels = split.batch(np.arange(len(split)))
    sessions = [
        onnxruntime.InferenceSession(str(folder / f"{member}-file.onnx"), providers=["CPUExecutionProvider"])
        for member in MEMBERS
    ]
    logits = [np.asarray(session.run(None, images)[0], np.float64) for session in sessions]
    return np.stack([fusible(rows, "logits") for rows in logits], 1), labels


def joined(graphs: dict[str, onnx.ModelProto], combination: Combination) -> onnx.ModelProto:
    """All of them, fused as the stage does it."""
    nodes = compose.Nodes()
    stack = write_stack(nodes, {f"{member}/logits": "logits" for member in graphs}, CLASSES)
    fused = Logarithms().write(nodes, combination.write(nodes, stack, CLASSES))
    output = TensorSpec(name="logits", dtype="float32", shape=("batch", CLASSES))
    return compose.joined(graphs, (INPUT,), nodes, {fused: output})


def side_by_side(graphs: dict[str, onnx.ModelProto]) -> onnx.ModelProto:
    """The members in one graph, each with its own output: what they cost without being fused."""
    outputs = {
        f"{member}/logits": TensorSpec(name=f"logits-{member}", dtype="float32", shape=("batch", CLASSES))
        for member in graphs
    }
    return compose.joined(graphs, (INPUT,), compose.Nodes(), outputs)


def written(model: onnx.ModelProto, path: Path) -> Artifact:
    """The file that the target gets."""
    return OnnxRuntimeCpu().write(canonicalise(model), None, None, path)


def behind(path: Path, feeds: list[dict[str, np.ndarray]], runs: int = 60) -> tuple[int, float]:
    """How many nodes behind the members a run executes, and their share of the kernels' time, from its profile."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = 1, True
    options.profile_file_prefix = str(path.with_suffix(""))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for index in range(runs):
        session.run(None, feeds[index % len(feeds)])
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event for event in events if event["cat"] == "Node" and event["name"].endswith("_kernel_time")]
    own = [event for event in kernels if event["name"].startswith("fuse/")]
    share = sum(event["dur"] for event in own) / sum(event["dur"] for event in kernels)
    return len(own) // runs, float(share)


def row(found: latency.PairedLatency) -> str:
    """Both ratios, with their bounds."""
    beside, *alone = [(1 / each.value, 1 / each.high, 1 / each.low) for each in found.speedup]
    total = tuple(map(sum, zip(*alone, strict=True)))
    fused = found.latency[0].p50
    return f"{fused:.4f} | {_over(beside)} | {fused * total[0]:.4f} | {_over(total)}"


def _over(shares: tuple[float, ...]) -> str:
    """Percent that the fused graph takes more, of a share of its time: value, low, high."""
    over, most, least = (100 * (1 / each - 1) for each in shares)
    return f"{over:.1f} ({least:.1f} to {most:.1f})"


if __name__ == "__main__":
    main()
