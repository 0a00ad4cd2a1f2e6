"""INT8 on the ONNX graph: calibration finds the ranges; each target's dialect writes them (see exporters)."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from ..calibration import hygiene
from ..calibration.calibrators import CALIBRATORS
from ..calibration.histogram import Histogram
from ..core import digest
from ..core.tables import resolve
from ..core.task import Split, Task
from ..core.values import QuantParams
from ..exporters import onnx_file, placement, qdq, taps
from ..exporters.canonical import canonicalise
from ..exporters.targets import TARGETS
from . import recover
from .data import calibration_split, sample_indices
from .stage import Context, Graph, Probe, Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantize(Stage):
    """Post-training INT8: weights from their largest values, activations by a calibrator over real samples."""

    name: ClassVar[str] = "quantize"
    accepts: ClassVar[Literal["candidate", "graph"]] = "graph"
    returns: ClassVar[Literal["candidate", "graph"]] = "graph"

    calibrator: str = "mse"
    samples: Annotated[int, Field(ge=1)] = 512
    batch_size: Annotated[int, Field(ge=1)] = 32
    weights: Literal["per-channel", "per-tensor"] = "per-channel"  # one scale per output channel, or one for all
    recover: tuple[str, ...] = ()  # names in recover.RECOVERIES

    def check(self, task: Task, where: str) -> None:
        """See `Stage.check`: calibration data is looked at before any work."""
        resolve(self.calibrator, CALIBRATORS, f"{where}.calibrator")
        recover.chosen(self.recover, f"{where}.recover")
        if task.calibration is None:
            task.split("train", f"{where}: calibration (no 'calibration' split is set)")
        split = task.split(calibration_split(task), where)
        indices = sample_indices(split, self.samples)
        hygiene.check_samples(self._batches(split, indices))
        hygiene.check_overlap(_digests(split, indices), _digests(task.test, np.arange(len(task.test))))

    def estimate(self, task: Task, probe: Probe) -> float:
        """See `Stage.estimate`."""
        learning = 30.0 if "round" in self.recover else 0.0
        return 3.0 + self.samples * probe.forward * (4 + 6 * len(self.recover)) + learning

    def run(self, value: Graph, context: Context) -> Graph:
        """See `Stage.run`."""
        name = calibration_split(context.task)
        split = context.task.split(name, context.where)
        indices = sample_indices(split, self.samples)
        model = canonicalise(onnx_file.load(value.path))
        batches = functools.partial(self._batches, split, indices)
        where, device = f"{context.where}.recover", context.machine.device
        model, folded = recover.before_ranges(self.recover, model, batches, device, where)
        placed = placement.place(model)
        observed = placement.tensors_to_observe(placed)
        histograms = taps.observe(model, self._with_progress(split, indices, context), observed, context.machine.device)
        params = qdq.weight_params(model, placed, self.weights == "per-tensor") | {
            name: self._activation(histogram, context.where) for name, histogram in histograms.items()
        }
        dialect = TARGETS[context.targets[0]].dialects()[0]
        model, changed = recover.after_ranges(
            self.recover, model, placed, params, dialect, batches, device, where, context.progress
        )
        path = context.work / "model.onnx"
        onnx_file.save(model, path)
        context.notes.append(
            f"{len(indices)} samples of the '{name}' split, calibrator {self.calibrator}, {len(params)} tensors"
        )
        context.notes.extend([*folded, *changed])
        return Graph(path=path, digest=digest.of_file(path), params=params)

    def _activation(self, histogram: Histogram, where: str) -> QuantParams:
        """What the calibrator wants kept, as far as there were values."""
        low, high = resolve(self.calibrator, CALIBRATORS, f"{where}.calibrator")(histogram, 8, True)
        return qdq.activation_params(max(low, histogram.low), min(high, histogram.high), self.calibrator)

    def _batches(self, split: Split, indices: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(indices), self.batch_size):
            yield split.batch(indices[start : start + self.batch_size])[0]

    def _with_progress(self, split: Split, indices: np.ndarray, context: Context) -> Iterator[dict[str, np.ndarray]]:
        with context.progress.bar(f"calibrate {context.where}", len(indices)) as advance:
            for number, feed in enumerate(self._batches(split, indices), 1):
                yield feed
                advance(min(number * self.batch_size, len(indices)), "")


def _digests(split: Split, indices: np.ndarray) -> list[str]:
    digests: list[str] = []
    for start in range(0, len(indices), 256):
        digests += digest.of_samples(split.batch(indices[start : start + 256])[0])
    return digests
