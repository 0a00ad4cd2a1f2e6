"""How long OpenVINO takes for each layer of a file, told by the nodes of the float graph it was made from."""

import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx

from ...core.values import Arrays
from .openvino_session import Kernel, OpenVinoSession
from .ort_kernels import QUANTIZERS, origins

_FEWEST_RUNS, _MOST_RUNS = 5, 200
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_MULTIPLYING = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_MOVES = "Reorder"  # to the layout or precision that the next kernel wants


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimedKernel:
    """One node of the graph that OpenVINO runs; see `ort_kernels.Kernel`."""

    node: str
    tensor: str
    milliseconds: float


def kernels(
    path: Path, model: onnx.ModelProto, feeds: Sequence[Arrays], threads: int, seconds: float
) -> list[TimedKernel]:
    """Run a file with OpenVINO's counters on; arguments as those of `ort_kernels.kernels`.

    Raises:
        ArtifactError: OpenVINO cannot load the file.
    """
    session = OpenVinoSession(path, threads, profiling=True)
    try:
        deadline, runs, times = time.monotonic() + seconds, 0, list[Mapping[str, float]]()
        while runs < _FEWEST_RUNS or (time.monotonic() < deadline and runs < _MOST_RUNS):
            session.run(feeds[runs % len(feeds)])
            times.append(session.profile())
            runs += 1
        running = {kernel.name: kernel for kernel in session.kernels()}
        explained = _Explained(model, onnx.load_model(str(path), load_external_data=False), running)
    finally:
        session.close()
    names = dict.fromkeys(name for each in times for name in each)
    return [explained.kernel(name, statistics.median(each.get(name, 0.0) for each in times)) for name in names]


def multiplying(session: OpenVinoSession, model: onnx.ModelProto) -> dict[str, Kernel]:
    """Nodes of the file `model` with weights -> the kernel that multiplies for them."""
    found = list(session.kernels())
    explained = _Explained(model, model, {kernel.name: kernel for kernel in found})
    fused = {
        node.name: maker.name
        for node in model.graph.node
        if node.op_type in ("Relu", "Clip")
        for maker in model.graph.node
        if node.input[0] in maker.output
    }
    nodes = ((explained.kernel(kernel.name, 0.0).node, kernel) for kernel in found if kernel.operator in _MULTIPLYING)
    return {fused.get(node, node): kernel for node, kernel in nodes}


class _Explained:
    """Matches what runs with the float graph: by the names that it was fused from, else by what reads its result."""

    def __init__(self, model: onnx.ModelProto, written: onnx.ModelProto, running: Mapping[str, Kernel]) -> None:
        self._running = running
        self._weighted = {node.name for node in model.graph.node if node.op_type in _WEIGHTED}
        self._makers = {name: node.name for node in model.graph.node for name in node.output}
        self._nodes = {node.name: node.name for node in model.graph.node} | self._makers
        came_from = origins(written)
        self._tensors = {
            name: came_from[node.output[0]]
            for node in written.graph.node
            if node.op_type in QUANTIZERS and node.output[0] in came_from
            for name in (node.name, *node.output)
        }

    def kernel(self, name: str, milliseconds: float) -> TimedKernel:
        node, tensor = self._named(name)
        if not (node or tensor):
            node = next(self._behind(name), "")
        return TimedKernel(node=node, tensor=tensor, milliseconds=milliseconds)

    def _named(self, name: str) -> tuple[str, str]:
        """Node and tensor, of which one at least is empty."""
        stems = [each.split("/")[0] for each in self._running[name].nodes] if name in self._running else []
        nodes = [self._nodes[stem] for stem in stems if stem in self._nodes]
        if nodes:
            return next((node for node in nodes if node in self._weighted), nodes[0]), ""
        return "", next((self._tensors[stem] for stem in stems if stem in self._tensors), "")

    def _behind(self, name: str, seen: frozenset[str] = frozenset()) -> Iterator[str]:
        """What a kernel without a name of the file's works for.

        A transposed convolution loses its name to its bias, which the quantizing behind it takes over: it makes the
        tensor that is quantized. A kernel that only moves values works for its reader.
        """
        running = self._running.get(name)
        for reader in () if running is None or name in seen else running.readers:
            node, tensor = self._named(reader)
            if tensor and running is not None and running.operator != _MOVES:
                node = self._makers.get(tensor, "")
            yield from [node] if node else self._behind(reader, seen | {name})
