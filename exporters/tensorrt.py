"""TensorRT: an ONNX file with explicit Q/DQ, and the engine that is built from it."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from ..core.errors import ArtifactError, BuildError, MeasurementError
from ..core.values import Artifact, QuantParams, Session
from . import cuda_driver, engine_build, onnx_file
from .artifact_file import write_artifact
from .dialect import Dialect
from .engine_file import EngineInfo
from .engine_open import open_beside
from .engine_options import Build, tool_problem

_SYMMETRIC = Dialect(name="s8-symmetric", activations="s8", int32_bias=False, pair_after_last=())


@dataclasses.dataclass(frozen=True)
class TensorRT:
    """See `targets.Target`. Its rules: NVIDIA's TensorRT documentation, "Working with quantized types"."""

    name: str = "tensorrt"
    channel_multiple: int = (
        32  # INT8 tensor cores take 32 channels at a time (TensorRT best practices, tensor core usage)
    )

    def dialects(self) -> tuple[Dialect, ...]:
        """The only INT8 that TensorRT 10 and 11 both take: symmetric S8, zero point 0, float bias."""
        return (_SYMMETRIC,)

    def unmeasurable(self) -> str | None:
        """An engine can be built without a GPU, but neither loaded nor run."""
        return "no CUDA device" if cuda_driver.load() is None else tool_problem("auto")

    def write(
        self,
        model: onnx.ModelProto,
        params: Mapping[str, QuantParams] | None,
        dialect: Dialect | None,
        path: Path,
        keep_float: Collection[str] = (),
    ) -> Artifact:
        """See `targets.Target`."""
        return write_artifact(self.name, self.lint, model, params, dialect, path, keep_float)

    def lint(self, path: Path) -> tuple[str, ...]:
        """Everything TensorRT's parser rejects, and unsigned types, which it takes with a warning and clips at 127."""
        try:
            model = onnx_file.load(path)
        except ArtifactError as error:
            return (str(error),)
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        return tuple(problem for node in model.graph.node for problem in _problems(node, constants))

    def build(self, path: Path, engine: Path, options: Build) -> EngineInfo:
        """Lint the ONNX file at `path` and build `engine` from it.

        Raises:
            BuildError: the lint has found something, or see `engine_build.build`.
        """
        onnx_file.load(path)
        problems = self.lint(path)
        if problems:
            raise BuildError(f"{path}: TensorRT refuses it: {'; '.join(problems)}; write it with target '{self.name}'")
        return engine_build.build(path, engine, options)

    def open(self, artifact: Artifact, threads: int) -> Session:
        """See `targets.Target`. The engine beside the file is reused where it fits, else built with the defaults."""
        reason = self.unmeasurable()
        if reason is not None:
            raise MeasurementError(f"{artifact.path}: not measured: {reason}")
        return open_beside(artifact.path)


def _problems(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> Iterator[str]:
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    where = f"{node.op_type} '{node.name}'"
    if len(node.input) < 3 or not node.input[2]:
        yield f"{where}: no zero point, which means UINT8; write an INT8 zero point of 0"
        return
    zero = constants.get(node.input[2])
    if zero is None:
        yield f"{where}: its zero point is not a constant"
    elif zero.dtype != np.int8:
        kind = "an INT32 bias" if zero.dtype == np.int32 else zero.dtype.name.upper()
        yield f"{where}: works on {kind}; only symmetric INT8 is accepted"
    elif bool(zero.any()):
        yield f"{where}: zero point {int(zero.flatten()[np.flatnonzero(zero)[0]])}; it must be 0"
