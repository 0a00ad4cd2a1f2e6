"""How long OpenVINO takes for each layer of a file, told by the nodes of the float graph it was made from."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from ...core.values import Arrays
from .layer_kernel import LayerKernel, repeat
from .openvino_session import Kernel, OpenVinoSession
from .ort_kernels import QUANTIZERS, origins

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_MULTIPLYING = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_MOVES = "Reorder"  # to the layout or precision that the next kernel wants


def kernels(
    path: Path, model: onnx.ModelProto, feeds: Sequence[Arrays], threads: int, seconds: float
) -> list[LayerKernel]:
    """Run a file with OpenVINO's counters on; arguments as those of `ort_kernels.kernels`.

    Raises:
        ArtifactError: OpenVINO cannot load the file.
    """
    session = OpenVinoSession(path, threads, profiling=True)
    times: list[Mapping[str, float]] = []

    def run(feed: Arrays) -> None:
        session.run(feed)
        times.append(session.profile())

    try:
        repeat(run, feeds, seconds)
        running = {kernel.name: kernel for kernel in session.kernels()}
        explained = _Explained(model, onnx.load_model(str(path), load_external_data=False), running)
    finally:
        session.close()
    names = dict.fromkeys(name for each in times for name in each)
    return [explained.kernel(name, statistics.median(each.get(name, 0.0) for each in times)) for name in names]


def multiplying(session: OpenVinoSession, model: onnx.ModelProto) -> dict[str, Kernel]:
    """First output of each node of the file `model` that has weights -> the kernel that multiplies for it."""
    found = list(session.kernels())
    explained = _Explained(model, model, {kernel.name: kernel for kernel in found})
    makers = {name: node for node in model.graph.node for name in node.output}
    run = {}
    for kernel in found:
        output = explained.output(kernel.name) if kernel.operator in _MULTIPLYING else ""
        node = makers.get(output)
        if node is not None and node.op_type in ("Relu", "Clip"):  # fused to what multiplies
            output = node.input[0]
        run[output] = kernel
    return run


class _Explained:
    """Matches what runs with the float graph: by the names that it was fused from, else by what reads its result.

    A node goes by its first output here, for not every file gives its nodes names.
    """

    def __init__(self, model: onnx.ModelProto, written: onnx.ModelProto, running: Mapping[str, Kernel]) -> None:
        self._running = running
        nodes = [node for node in model.graph.node if node.op_type not in QUANTIZERS]
        self._names = {node.output[0]: node.name for node in nodes}
        self._weighted = {node.output[0] for node in nodes if node.op_type in _WEIGHTED}
        self._makers = {name: node.output[0] for node in nodes for name in node.output}
        self._outputs = {node.name: node.output[0] for node in nodes if node.name} | self._makers
        came_from = origins(written)
        self._tensors = {
            name: came_from[node.output[0]]
            for node in written.graph.node
            if node.op_type in QUANTIZERS and node.output[0] in came_from
            for name in (node.name, *node.output)
        }

    def kernel(self, name: str, milliseconds: float) -> LayerKernel:
        """With the node or the tensor it works for; neither: none was found."""
        output, tensor = self._named(name)
        if not tensor:
            output = output or self._behind(name)
        return LayerKernel(node=self._names.get(output, ""), tensor=tensor, milliseconds=milliseconds)

    def output(self, name: str) -> str:
        """First output of the node that a kernel works for; empty: none."""
        return self._named(name)[0] or self._behind(name)

    def _named(self, name: str) -> tuple[str, str]:
        """Output of a node, and tensor, of which one at least is empty."""
        fused = self._running[name].nodes if name in self._running else ()
        outputs = [self._outputs[stem] for each in fused if (stem := _stem(each, self._outputs))]
        if outputs:
            return next((output for output in outputs if output in self._weighted), outputs[0]), ""
        return "", next((self._tensors[stem] for each in fused if (stem := _stem(each, self._tensors))), "")

    def _behind(self, name: str) -> str:
        """What a kernel without a name of the file's works for: the nearest that reads what it makes.

        A transposed convolution loses its name to its bias, which the quantizing behind it takes over: it makes the
        tensor that is quantized. A kernel that only moves values works for its reader.
        """
        moves = name in self._running and self._running[name].operator == _MOVES
        seen, waiting = {name}, [name]
        while waiting:
            kernel = self._running.get(waiting.pop(0))
            for reader in () if kernel is None else kernel.readers:
                output, tensor = self._named(reader)
                if tensor and not moves:
                    output = self._makers.get(tensor, "")
                if output:
                    return output
                if reader not in seen:
                    seen.add(reader)
                    waiting.append(reader)
        return ""


def _stem(name: str, known: Mapping[str, str]) -> str:
    """The longest start of a name, as far as one of its slashes, that is known; names of files hold slashes too."""
    while name and name not in known:
        name = name.rpartition("/")[0]
    return name
