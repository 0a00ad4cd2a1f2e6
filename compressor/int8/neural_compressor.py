"""Intel Neural Compressor as the quantizer: its static quantization, and its accuracy-driven autotune.

It works on the torch module. What it finds is read back from explicit Q/DQ, so that placement, dialects, lints and
judgement are those of every other way to INT8.
"""

import importlib
import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from ...core import digest
from ...core.errors import EdgesmithError, ExportError, QuantizationError, RecipeError
from ...core.task import Metric, Task
from ...exporters import from_torch
from ...exporters.from_torch import quiet
from ...exporters.graph import onnx_file
from ...exporters.int8.qdq_read import read_qdq
from ...exporters.sessions.torch_session import TorchSession
from ...exporters.targets.targets import TARGETS
from ..candidate import Candidate
from ..data import any_inputs, batches, calibration_split
from ..evaluation import evaluate, task_metrics
from ..stage import Context, Graph
from ..task_file import calibration_identity
from . import traced
from .read_params import all_params

_ALGORITHMS = {"min-max": "minmax", "entropy": "kl"}  # our calibrator -> its name for it


def check(calibrator: str, tolerable_loss: float | None, where: str) -> None:
    """Refuse what it cannot do.

    Raises:
        RecipeError: it is not installed; a calibrator it does not have.
    """
    if importlib.util.find_spec("neural_compressor") is None or importlib.util.find_spec("torchao") is None:
        raise RecipeError(
            f'{where}.backend: neural-compressor is not installed; pip install "edgesmith[neural-compressor]"'
        )
    if tolerable_loss is None and calibrator not in _ALGORITHMS:
        raise RecipeError(
            f"{where}.calibrator: neural-compressor has {' and '.join(_ALGORITHMS)}, not '{calibrator}'; "
            "or set tolerable_loss, and it tries both"
        )


def trace(value: Candidate, context: Context) -> fx.GraphModule:
    """The graph it works on.

    Raises:
        ExportError: torch.export refuses the model.
    """
    task = context.task
    return traced.trace(value.module(), any_inputs(task), task.input_specs(), task.outputs)


def quantize(
    value: Candidate, calibrator: str, tolerable_loss: float | None, samples: int, batch_size: int, context: Context
) -> Graph:
    """Let it quantize, and hand over what it has found.

    Args:
        calibrator: "min-max" or "entropy"; of no account where `tolerable_loss` is set.
        tolerable_loss: its autotune tries its configurations on validation data until one loses no more than this share
            of the main metric; None: one static quantization.
        samples: of the calibration split.

    Raises:
        QuantizationError: it fails; says how.
        ExportError: the model or its result cannot be exported, or is no longer the model.
    """
    device = context.machine.device
    model = trace(value, context)
    traced.set_device(model, device)
    model.to(device)
    split = calibration_split(context.task)

    def calibrate(prepared: Any) -> None:
        with torch.no_grad():
            for inputs, _ in batches(context, split, samples, batch_size):
                prepared(*inputs.values())

    try:
        quantized = _quantized(model, calibrate, calibrator, tolerable_loss, context)
    except EdgesmithError:
        raise
    except Exception as error:  # of the vendor's: any kind
        line = next(iter(str(error).splitlines()), "")
        raise QuantizationError(
            f"{context.where}: neural-compressor failed: {type(error).__name__}: {line}; use backend = 'edgesmith'"
        ) from error
    used = min(samples, len(context.task.split(split, context.where)))
    context.notes.append(f"neural-compressor, {used} samples of the '{split}' split")
    return _handed_over(quantized, value, samples, context)


def _quantized(
    model: Any, calibrate: Callable[[Any], None], calibrator: str, tolerable_loss: float | None, context: Context
) -> Any:
    vendor, settings = load(), importlib.import_module("torch._inductor.config")
    model._exported, model.dynamic_shapes = True, None  # what its own `export` leaves on a traced model
    # It leaves a pass of its own there, for whatever this process compiles later.
    with settings.patch(pre_grad_custom_pass=settings.pre_grad_custom_pass):
        if tolerable_loss is not None:
            return _tuned(vendor, model, calibrate, tolerable_loss, context)
        with quiet("torch", "torchao"):
            config = vendor.StaticQuantConfig(act_algo=_ALGORITHMS[calibrator])
            return vendor.quantize(model, config, run_fn=calibrate)


def _tuned(vendor: Any, model: Any, calibrate: Callable[[Any], None], tolerable_loss: float, context: Context) -> Any:
    """Its best trial, and in the notes whether that one is good enough: autotune itself returns it either way."""
    metric = task_metrics(context.task)[0]
    scores: list[float] = []  # of the model in float, then of every trial

    def judge(candidate: Any) -> float:
        scores.append(_score(candidate, metric, context.task, context.where))
        kind = f"trial {len(scores) - 1}" if len(scores) > 1 else "in float"
        context.progress.record(f"{context.where} {kind}: {metric.name} {scores[-1]:.4f} on validation")
        return _to_be_raised(scores[-1], metric)

    config = vendor.TuningConfig(
        config_set=[vendor.StaticQuantConfig.get_config_set_for_tuning()],  # its own set, which it takes in a list only
        tolerable_loss=tolerable_loss,
    )
    with quiet("torch", "torchao"):
        best = vendor.autotune(model, config, eval_fn=judge, run_fn=calibrate)
    if best is None:
        raise QuantizationError(f"{context.where}: neural-compressor's autotune gave no model")
    context.notes.append(_verdict(scores, metric, tolerable_loss))
    return best


def _verdict(scores: list[float], metric: Metric, tolerable_loss: float) -> str:
    in_float, *trials = scores
    best = max(trials, key=lambda score: _to_be_raised(score, metric))
    baseline, reached = _to_be_raised(in_float, metric), _to_be_raised(best, metric)
    loss = (baseline - reached) / abs(baseline) if baseline else 0.0
    said = f"the best of {len(trials)} trials has {metric.name} {best:.4g}, {loss:.2%} off {in_float:.4g} in float"
    if reached >= baseline * (1 - tolerable_loss):
        return f"autotune: {said}; {tolerable_loss:.2%} were tolerable"
    return f"autotune: NO trial stayed within {tolerable_loss:.2%}; {said}, and is taken all the same"


def _to_be_raised(score: float, metric: Metric) -> float:
    """Autotune takes more for better, and measures what is lost as a share."""
    return score if metric.higher_is_better else 1 / max(score, 1e-12)


def _score(candidate: nn.Module, metric: Metric, task: Task, where: str) -> float:
    session = TorchSession(_Still(candidate), task.input_specs(), task.outputs)
    return evaluate(session, task.split("validation", where), (metric,))[metric.name]


class _Still(nn.Module):
    """A traced graph has no modes, and says so with an error."""

    def __init__(self, graph_module: nn.Module) -> None:
        super().__init__()
        self.graph_module = graph_module

    def train(self, mode: bool = True) -> "_Still":
        return self

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.graph_module(*tensors)


def _handed_over(quantized: Any, value: Candidate, samples: int, context: Context) -> Graph:
    task, inputs = context.task, any_inputs(context.task)
    file, path = context.work / "quantized.onnx", context.work / "model.onnx"
    traced.set_device(quantized.cpu(), "cpu")
    from_torch.write(_Still(quantized), inputs, task.input_specs(), task.outputs, file)
    transposed = any(TARGETS[target].transposed for target in context.targets)
    read = read_qdq(onnx_file.load(file), transposed)
    file.unlink()
    onnx_file.save(read.model, path)
    try:
        from_torch.check(value.module(), inputs, task.input_specs(), task.outputs, path)
    except ExportError as error:
        found = str(error).rpartition("; ")[0]  # what was found, without what it means of an exporter
        raise QuantizationError(
            f"{context.where}: neural-compressor made another network of it, rounding apart (it folds batch norms into "
            f"layers that others read too): {found}; use backend = 'edgesmith'"
        ) from error
    params = all_params(read, samples, context)
    return Graph(path=path, digest=digest.of_file(path), params=params, calibration=calibration_identity(task))


def load() -> Any:
    """`neural_compressor.torch.quantization`, without what its import does besides.

    It makes a folder for logs in the user's home, hangs handlers on loggers, and warns of accelerators not found here.
    """
    if "neural_compressor.torch" not in sys.modules:
        with tempfile.TemporaryDirectory(prefix="edgesmith-logs-") as folder:
            _import(Path(folder))
    from neural_compressor.torch import quantization

    return quantization


def _import(logs: Path) -> None:
    wanted = {"LOGLEVEL": "ERROR", "HABANA_LOGS": str(logs)}
    kept = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        with quiet("torch", "torchao"):
            importlib.import_module("neural_compressor.torch.quantization")
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        logger = logging.getLogger("INC")
        for handler in list(logger.handlers):  # it writes into the folder that goes away
            logger.removeHandler(handler)
            handler.close()
        logger.addHandler(logging.NullHandler())
