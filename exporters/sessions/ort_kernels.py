"""What ONNX Runtime makes of a file: its kernels after optimisation, what each is for, and how long it takes."""

import collections
import dataclasses
import json
import re
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from ...core.errors import ArtifactError
from ...core.values import Arrays
from .layer_kernel import LayerKernel, repeat

_OPTIMISED = "optimised.onnx"
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_ADDED = re.compile(r"(_nchwc|_token_\d+)+$")  # what ONNX Runtime adds to the name of a node or its result
# What the names of operators that compute on integers begin with.
INT8 = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize", "QAttention", "QOrdered")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel(LayerKernel):
    """One kernel of the optimised graph."""

    name: str
    operator: str

    @property
    def int8(self) -> bool:
        """Whether it computes on integers."""
        return self.operator.startswith(INT8)


def kernels(path: Path, model: onnx.ModelProto, feeds: Sequence[Arrays], threads: int, seconds: float) -> list[Kernel]:
    """Run a file under ONNX Runtime's profiler.

    Args:
        path: the file: `model` itself, or `model` with Q/DQ pairs as `qdq` writes them.
        model: the canonical float graph that the kernels are explained by.
        feeds: inputs that take turns.
        threads: of each operator.
        seconds: how long it runs, about; at least a few times.

    Raises:
        ArtifactError: ONNX Runtime cannot load the file.
    """
    with tempfile.TemporaryDirectory(prefix="edgesmith-kernels-") as name:
        session = _session(path, Path(name), threads, profiling=True)
        repeat(lambda feed: session.run(None, dict(feed)), feeds, seconds)
        times = _medians(json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")))
        return _explained(path, model, Path(name), times)


def planned(path: Path) -> list[Kernel]:
    """The kernels of a file's optimised graph, explained by the file's own nodes; nothing is run, so no times.

    Raises:
        ArtifactError: ONNX Runtime cannot load the file.
    """
    with tempfile.TemporaryDirectory(prefix="edgesmith-kernels-") as name:
        _session(path, Path(name), threads=1, profiling=False)
        return _explained(path, onnx.load_model(str(path), load_external_data=False), Path(name), {})


def optimised(path: Path) -> onnx.ModelProto:
    """The graph that ONNX Runtime's CPU provider makes of a file on this machine.

    Raises:
        ArtifactError: ONNX Runtime cannot load the file.
    """
    with tempfile.TemporaryDirectory(prefix="edgesmith-kernels-") as name:
        _session(path, Path(name), threads=1, profiling=False)
        return onnx.load_model(str(Path(name) / _OPTIMISED))


def _session(path: Path, folder: Path, threads: int, profiling: bool) -> Any:
    """A session that leaves its optimised graph in `folder`."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / _OPTIMISED)
    options.enable_profiling = profiling
    options.profile_file_prefix = str(folder / "profile")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        raise ArtifactError(f"{path}: ONNX Runtime cannot load it: {str(error).strip()}") from error


def _explained(path: Path, model: onnx.ModelProto, folder: Path, times: Mapping[str, float]) -> list[Kernel]:
    explained = _Explained(model, onnx.load_model(str(path), load_external_data=False))
    optimised = onnx.load_model(str(folder / _OPTIMISED))
    return [explained.kernel(node, times.get(node.name, 0.0)) for node in optimised.graph.node]


def _medians(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    times: dict[str, list[float]] = collections.defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["name"].removesuffix("_kernel_time")].append(event["dur"] / 1000)
    return {name: statistics.median(durations) for name, durations in times.items()}


def origins(written: onnx.ModelProto) -> dict[str, str]:
    """Every tensor behind or before a Q/DQ pair -> the one that stands for it in the float graph."""
    found: dict[str, str] = {}
    for node in written.graph.node:
        if node.op_type in QUANTIZERS:
            found[node.output[0]] = found.get(node.input[0], node.input[0])
    # A pair that ends the graph writes the output's own name, and what is before it has another.
    outputs = {value.name for value in written.graph.output}
    ends = {found[name]: name for name in outputs if name in found}
    return {name: ends.get(origin, origin) for name, origin in found.items()} | ends


def _weights(written: onnx.ModelProto) -> dict[str, str]:
    """A weight turned back into floats -> the node that reads it: a kernel left for that is the layer's own loss."""
    constants = {tensor.name for tensor in written.graph.initializer}
    made = {node.output[0] for node in written.graph.node if node.op_type in QUANTIZERS and node.input[0] in constants}
    return {name: node.name for node in written.graph.node for name in node.input if name in made}


class _Explained:
    """Matches kernels with the float graph: by name, which survives fusion and a change of layout, else by result."""

    def __init__(self, model: onnx.ModelProto, written: onnx.ModelProto) -> None:
        self._names = {node.name for node in model.graph.node}
        self._producers = {name: node.name for node in model.graph.node for name in node.output}
        self._origins = origins(written)
        self._weights = _weights(written)

    def kernel(self, node: onnx.NodeProto, milliseconds: float) -> Kernel:
        result = self._origins.get(node.output[0], node.output[0])
        reader = self._weights.get(node.output[0], "") if node.op_type in QUANTIZERS else ""
        tensor = result if node.op_type in QUANTIZERS and not reader else ""
        return Kernel(
            name=node.name,
            operator=node.op_type,
            node="" if tensor else self._node(reader or node.name, result),
            tensor=tensor,
            milliseconds=milliseconds,
        )

    def _node(self, name: str, result: str) -> str:
        stem = _ADDED.sub("", name)
        if stem in self._names:
            return stem
        found: str = self._producers.get(stem, self._producers.get(result, ""))
        return found
