"""What a fused graph costs beside the sum of its members: ``python benches/results/fusion_cost.py [rule ...]``.

The trained members of examples/fashion_mnist, fused by every rule that learns nothing, in ONNX Runtime on one thread.
Fused graph and members are timed in one process in turns: the ratio of the fused time to the sum of theirs is paired.
ONNX Runtime's own profile says which share of a run the nodes behind the members take.
"""

import importlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from edgesmith.benches.timing import latency
from edgesmith.compressor.fusion.fusing import FUSIONS
from edgesmith.compressor.fusion.member_outputs import write_stack
from edgesmith.core.values import Artifact, TensorSpec
from edgesmith.exporters import from_torch
from edgesmith.exporters.graph import compose, onnx_file
from edgesmith.exporters.graph.canonical import canonicalise
from edgesmith.exporters.targets.onnxruntime_cpu import OnnxRuntimeCpu

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion_mnist"
INPUT = TensorSpec(name="image", dtype="float32", shape=("batch", 1, 28, 28))
BATCHES, CLASSES, SECONDS = (1, 32), 10, 15.0


def main() -> None:
    sys.path.insert(0, str(EXAMPLE))
    names, rules = [f"seed{index}" for index in range(5)], sys.argv[1:] or ["mean", "log-mean", "voting", "adaptive"]
    rng = np.random.default_rng(0)
    feeds = {batch: [{"image": rng.random((batch, 1, 28, 28), np.float32)} for _ in range(4)] for batch in BATCHES}
    print("| rule | batch | fused, ms | sum of members, ms | over the sum, % (from restart to restart) |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="edgesmith-fusion-cost-") as name:
        folder = Path(name)
        graphs = {member: exported(member, folder) for member in names}
        alone = [written(graph, folder / f"{member}-file.onnx") for member, graph in graphs.items()]
        for rule in rules:
            fused = written(joined(graphs, rule), folder / f"{rule}.onnx")
            shares = ", ".join(f"{100 * behind(fused.path, feeds[batch]):.2f} % at batch {batch}" for batch in BATCHES)
            print(f"<!-- {rule}: nodes behind the members {shares} -->")
            for found in latency.compare([fused, *alone], feeds, seconds=SECONDS):
                print(f"| {rule} | {found.batch} | {row(found)} |", flush=True)


def exported(member: str, folder: Path) -> onnx.ModelProto:
    """One member as a graph."""
    path = folder / f"{member}.onnx"
    samples = {"image": np.random.default_rng(1).random((8, 1, 28, 28), np.float32)}
    from_torch.export(importlib.import_module("members").trained(member), samples, (INPUT,), ("logits",), path)
    return onnx_file.load(path)


def joined(graphs: dict[str, onnx.ModelProto], rule: str) -> onnx.ModelProto:
    """All of them, fused as the stage does it."""
    nodes, make = compose.Nodes(), FUSIONS[rule].make
    assert make is not None
    stack = write_stack(nodes, {f"{member}/logits": "logits" for member in graphs}, CLASSES)
    made = make(np.full(len(graphs), 1 / len(graphs))).write(nodes, stack)
    output = TensorSpec(name="probabilities", dtype="float32", shape=("batch", CLASSES))
    return compose.joined(graphs, (INPUT,), nodes, {made: output})


def written(model: onnx.ModelProto, path: Path) -> Artifact:
    """The file that the target gets."""
    return OnnxRuntimeCpu().write(canonicalise(model), None, None, path)


def behind(path: Path, feeds: list[dict[str, np.ndarray]], runs: int = 60) -> float:
    """The share of the kernels' time that goes to the nodes behind the members, from ONNX Runtime's profile."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = 1, True
    options.profile_file_prefix = str(path.with_suffix(""))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for index in range(runs):
        session.run(None, feeds[index % len(feeds)])
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event for event in events if event["cat"] == "Node" and event["name"].endswith("_kernel_time")]
    own = sum(event["dur"] for event in kernels if event["name"].startswith("fuse/"))
    return float(own / sum(event["dur"] for event in kernels))


def row(found: latency.PairedLatency) -> str:
    """The ratio, from every member's paired ratio to the fused graph; the bounds add the members' bounds up."""
    shares = [(1 / each.value, 1 / each.high, 1 / each.low) for each in found.speedup]
    total, low, high = (sum(column) for column in zip(*shares, strict=True))
    fused = found.latency[0].p50
    over, least, most = (100 * (1 / each - 1) for each in (total, high, low))
    return f"{fused:.4f} | {fused * total:.4f} | {over:.1f} ({least:.1f} to {most:.1f})"


if __name__ == "__main__":
    main()
