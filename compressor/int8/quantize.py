"""INT8 on the ONNX graph: calibration finds the ranges; each target's dialect writes them (see exporters)."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from ...calibration.calibrators import CALIBRATORS
from ...calibration.ranges import warnings
from ...core import digest
from ...core.errors import RecipeError
from ...core.tables import resolve
from ...core.task import Split, Task
from ...exporters.graph import onnx_file
from ...exporters.graph.canonical import canonicalise
from ...exporters.targets.targets import TARGETS
from ..candidate import Candidate
from ..data import calibration_split, check_calibration, feeds, sample_indices
from ..stage import Context, Graph, Probe, Stage
from ..task_file import calibration_identity
from . import neural_compressor, recover
from .calibrate import Rules, calibrate_and_recover


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantize(Stage):
    """Post-training INT8: weights from their largest values, activations by a calibrator over real samples.

    neural-compressor works on the torch side: with it as the backend no `export` stands before.
    """

    name: ClassVar[str] = "quantize"
    accepts: ClassVar[Literal["candidate", "graph"]] = "graph"
    returns: ClassVar[Literal["candidate", "graph"]] = "graph"
    quantizes: ClassVar[bool] = True

    calibrator: str = "mse"
    samples: Annotated[int, Field(ge=1)] = 512
    batch_size: Annotated[int, Field(ge=1)] = 32
    weights: Literal["per-channel", "per-tensor"] = "per-channel"  # one scale per output channel, or one for all
    recover: tuple[str, ...] = ()  # names in recover.RECOVERIES
    # Most that INT8 may lose of the main metric on validation data; layers that cost more stay in float. None: 0.01 of
    # a share such as accuracy, 20 dB of signal to noise in every output for any other metric.
    max_drop: Annotated[float, Field(ge=0)] | None = None
    backend: Literal["edgesmith", "neural-compressor"] = "edgesmith"
    # Share of the main metric that neural-compressor's autotune may lose; None: it quantizes once.
    tolerable_loss: Annotated[float, Field(ge=0, lt=1)] | None = None

    def takes(self) -> Literal["candidate", "graph"]:
        """See `Stage.takes`."""
        return "graph" if self.backend == "edgesmith" else "candidate"

    def check(self, task: Task, where: str) -> None:
        """See `Stage.check`: calibration data is looked at before any work."""
        resolve(self.calibrator, CALIBRATORS, f"{where}.calibrator")
        if self.backend == "neural-compressor":
            neural_compressor.check(self.calibrator, self.tolerable_loss, where)
            if self.recover or self.weights != "per-channel":
                raise RecipeError(f"{where}: weights and recover are for backend = 'edgesmith' only")
        elif self.tolerable_loss is not None:
            raise RecipeError(f"{where}.tolerable_loss: only backend = 'neural-compressor' tunes")
        recover.chosen(self.recover, f"{where}.recover")
        check_calibration(task, self.samples, where)

    def estimate(self, task: Task, probe: Probe) -> float:
        """See `Stage.estimate`."""
        learning = 30.0 if "round" in self.recover else 0.0
        return 3.0 + self.samples * probe.forward * (4 + 6 * len(self.recover)) + learning

    def rehearse(self, value: Candidate, context: Context) -> Candidate:
        """See `Stage.rehearse`: only where it works on the torch side."""
        neural_compressor.trace(value, context)
        return value

    def run(self, value: Candidate | Graph, context: Context) -> Graph:
        """See `Stage.run`."""
        if isinstance(value, Candidate):
            settings = (self.calibrator, self.tolerable_loss, self.samples, self.batch_size)
            return neural_compressor.quantize(value, *settings, context)
        name = calibration_split(context.task)
        split = context.task.split(name, context.where)
        indices = sample_indices(split, self.samples)
        model, found, recovered = calibrate_and_recover(
            canonicalise(onnx_file.load(value.path)),
            lambda: self._with_progress(split, indices, context),
            Rules(
                calibrator=self.calibrator,
                per_tensor=self.weights == "per-tensor",
                recover=self.recover,
                transposed=any(TARGETS[target].transposed for target in context.targets),
            ),
            TARGETS[context.targets[0]].dialects(),
            context.machine.device,
            context.where,
            context.progress,
        )
        path = context.work / "model.onnx"
        onnx_file.save(model, path)
        context.notes.append(
            f"{len(indices)} samples of the '{name}' split, calibrator {self.calibrator}, {len(found.params)} tensors"
        )
        context.notes.extend([*recovered, *warnings(found.ranges)])
        context.notes.extend(f"{node} stays in float: {why}" for node, why in found.keep_float.items())
        return Graph(
            path=path,
            digest=digest.of_file(path),
            params=found.params,
            keep_float=found.keep_float,
            ranges=found.ranges,
            calibration=calibration_identity(context.task),
        )

    def _batches(self, split: Split, indices: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        return feeds(split, indices, self.batch_size)

    def _with_progress(self, split: Split, indices: np.ndarray, context: Context) -> Iterator[dict[str, np.ndarray]]:
        with context.progress.bar(f"calibrate {context.where}", len(indices)) as advance:
            for number, feed in enumerate(self._batches(split, indices), 1):
                yield feed
                advance(min(number * self.batch_size, len(indices)), "")
