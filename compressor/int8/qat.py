"""Quantization-aware training: INT8 is part of the network while it learns, and a teacher says what it should answer.

Terminal on the torch side: float weights and quantization parameters go on as a `Graph`, and the same placement,
writers and lints follow as after a calibration.
"""

import dataclasses
import importlib.util
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import fx, nn

from ...core import digest
from ...core.errors import RecipeError
from ...core.task import Task
from ...exporters import from_torch
from ...exporters.graph import onnx_file
from ...exporters.graph.canonical import strip_notes
from ...exporters.int8.qdq_read import read_qdq
from ...exporters.targets.targets import TARGETS
from ..candidate import Candidate
from ..data import any_inputs, batches, calibration_split, check_calibration
from ..learning.frozen import still_norms
from ..learning.teaching import Taught, check_answers, lesson_of
from ..learning.trainable import check_labels, check_learns, in_range
from ..learning.training import Regime, Training, train
from ..learning.training_data import TrainingData
from ..stage import Context, Graph, Probe, Stage
from ..task_file import calibration_identity
from . import traced
from .fake_quant import FakeQuantized
from .read_params import all_params

_COST = 2.5  # of a step with fake quantization and a teacher, in passes of the plain network


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizationAwareTraining(Taught, Training, Stage):
    """Train with weights and activations rounded to INT8 in the forward pass (Jacob et al., 2018), taught as `distill`.

    Batch norms and dropout train as they do elsewhere; whatever else a module does otherwise in training, it does not.
    """

    name: ClassVar[str] = "qat"
    accepts: ClassVar[Literal["candidate", "graph"]] = "candidate"
    returns: ClassVar[Literal["candidate", "graph"]] = "graph"
    quantizes: ClassVar[bool] = True

    learning_rate: Annotated[float, Field(gt=0)] = 5e-4  # a trained network is nudged, not trained anew
    mixed_precision: Literal["no"] = "no"  # rounding to INT8 needs float32 around it
    freeze_after: Annotated[float, Field(ge=0, le=1)] = 0.5  # share of epochs; then ranges and norms' statistics stand
    samples: Annotated[int, Field(ge=1)] = 512  # the first ranges are found on, and those training leaves open

    def check(self, task: Task, where: str) -> None:
        """See `Stage.check`."""
        if importlib.util.find_spec("torchao") is None:
            raise RecipeError(f'{where}: needs torchao, which is not installed; pip install "edgesmith[qat]"')
        self.check_training(task, where)
        self.check_teaching(task, where)
        self.check_batches(self.samples_taught(task), where)
        check_calibration(task, self.samples, where)

    def needs(self) -> tuple[str, ...]:
        """See `Stage.needs`."""
        return self.teacher_names()

    def rehearse(self, value: Candidate, context: Context) -> Candidate:
        """See `Stage.rehearse`: what torch.export refuses and who cannot teach is said before any training."""
        _traced(value.module(), context)
        check_learns(value, context.where)
        check_labels(value, context)
        check_answers(self.teacher_names(), value, context)
        return value

    def estimate(self, task: Task, probe: Probe) -> float:
        """See `Stage.estimate`."""
        return self.training_seconds(task, self.samples_taught(task), probe) * _COST + 2 * probe.export

    def run(self, value: Candidate, context: Context) -> Graph:
        """See `Stage.run`."""
        original, device = value.module(), context.machine.device
        module = FakeQuantized(_traced(original, context), still_norms(original))
        traced.set_device(module.graph_module, device)
        first = batches(context, calibration_split(context.task), self.samples, self.batch_size)
        module.to(device).calibrate(inputs for inputs, _ in first)

        lesson = lesson_of(self, context)
        labelled = in_range(context.task.train, original, context)
        data = TrainingData(labelled, context.task.unlabelled)
        result = train(module, data, lesson.objective, self, context, _Standing(module, self.freeze_after))
        context.notes.append(f"{lesson.note()}, {result.note()}")
        return self._handed_over(module, value, context)

    def _handed_over(self, module: FakeQuantized, value: Candidate, context: Context) -> Graph:
        """Float graph and parameters, once it is known that the graph is the trained network's."""
        task, samples = context.task, any_inputs(context.task)
        quantized, path = context.work / "trained.onnx", context.work / "model.onnx"
        from_torch.write(module.lowered(), samples, task.input_specs(), task.outputs, quantized)
        model = onnx_file.load(quantized)
        strip_notes(model)  # paths of this machine; what is left is the same in every run
        onnx_file.save(model, quantized)
        read = read_qdq(model, transposed=any(TARGETS[target].transposed for target in context.targets))
        onnx_file.save(read.model, path)
        trained = value.module()
        trained.load_state_dict(traced.weights_of(module.graph_module, value.weights))
        from_torch.check(trained, samples, task.input_specs(), task.outputs, path)
        params = all_params(read, self.samples, context)
        return Graph(
            path=path,
            digest=digest.of_file(path),
            params=params,
            calibration=calibration_identity(context.task),
            trained=quantized,
        )


class _Standing(Regime):
    """Ranges and batch norms stand still from the share `after` of the training on."""

    def __init__(self, module: FakeQuantized, after: float) -> None:
        self._module, self._after = module, after

    def before_epoch(self, epoch: int, done: float) -> None:
        """See `Regime.before_epoch`."""
        self._module.standing = done >= self._after
        self._module.train()


def _traced(module: nn.Module, context: Context) -> fx.GraphModule:
    task = context.task
    return traced.trace(module, any_inputs(task), task.input_specs(), task.outputs)
