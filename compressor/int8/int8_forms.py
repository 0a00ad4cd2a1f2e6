"""The forms that one network can be written in: written, judged, timed, and which of them is to be taken.

Of the forms that keep the bounds, the one that is fastest over all batch sizes is: INT8 may lose a few percent at one
batch size and gain much at another.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import onnx

from ...benches.report.int8_report import Quality
from ...benches.timing import latency
from ...benches.timing.latency import PairedLatency
from ...core.values import Arrays, Artifact, Interval, QuantParams
from ...exporters.int8 import qdq
from ...exporters.int8.placement import Placement
from ...exporters.targets.target import Target
from .bounds import Bounds
from .closeness_judge import Judge

EVEN = 0.02  # forms that differ by less are as fast as each other, however quiet the machine seems
_BUSY = 0.05  # a noise floor beyond which a comparison that decides nothing is made once more


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """One way to write the model, how good and how fast it is."""

    artifact: Artifact
    keep_float: Mapping[str, str]  # node -> why
    quality: Quality | None = None
    speedup: Mapping[int, Interval] = dataclasses.field(default_factory=dict)  # batch size -> against the baseline
    noise: float = 0.0  # what the baseline differed from itself by in the same measurement, as a share
    milliseconds: Mapping[int, float] = dataclasses.field(default_factory=dict)  # batch size -> median of one batch
    original_speedup: Mapping[int, float] = dataclasses.field(default_factory=dict)  # the original's own; {}: it is 1

    @property
    def mean(self) -> float:
        """The speed-up over all batch sizes, their geometric mean; 0: not timed."""
        values = [found.value for found in self.speedup.values()]
        return statistics.geometric_mean(values) if values else 0.0

    @property
    def least(self) -> float:
        """The speed-up against the original at the batch size where it is least; 0: not timed."""
        found = self.speedup.items()
        return min((each.value / self.original_speedup.get(batch, 1.0) for batch, each in found), default=0.0)

    @property
    def least_in_float(self) -> float:
        """The same of the baseline."""
        return min((1 / value for value in self.original_speedup.values()), default=1.0)

    @property
    def first_ms(self) -> float:
        """Median of one batch of the first batch size; 0: not timed."""
        return next(iter(self.milliseconds.values()), 0.0)

    @property
    def slower(self) -> bool:
        """Than the baseline, and by more than the noise."""
        return self.mean < 1 - self.noise


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What is searched: a float graph with its parameters, on one target, against one baseline."""

    model: onnx.ModelProto  # canonical
    params: Mapping[str, QuantParams]
    target: Target
    baseline: Artifact  # the graph in float, which every form is timed against
    judge: Judge
    feeds: Mapping[int, Sequence[Arrays]]  # batch size -> what is timed
    threads: int
    seconds: float  # timed per comparison and batch size
    folder: Path  # for files that are tried
    prepare: Callable[[Artifact], None] = lambda artifact: None  # what a file needs before it is timed
    bounds: Bounds = dataclasses.field(default_factory=Bounds)
    in_float: Quality | None = None  # of the baseline, where files are held close to another network than that

    @property
    def may_be_float(self) -> bool:
        """Whether the baseline itself is good enough: not where weights were trained for INT8 alone."""
        return self.in_float is None or self.judge.keeps(self.in_float, spare=True)

    def write(self, dialect_name: str, keep_float: Mapping[str, str], stem: str) -> Form:
        """Write one form."""
        dialect = next(dialect for dialect in self.target.dialects() if dialect.name == dialect_name)
        path = self.folder / f"{stem}.onnx"
        artifact = self.target.write(self.model, self.params, dialect, path, keep_float)
        return Form(artifact=artifact, keep_float=dict(keep_float))

    def placed(self, keep_float: Mapping[str, str]) -> Placement:
        """What can run in INT8 in any of the target's dialects, which are of one mind."""
        return qdq.placed(self.model, self.params, self.target.dialects()[0], keep_float)

    def small_enough(self, form: Form) -> bool:
        return form.artifact.file_bytes <= self.bounds.max_bytes

    def fast_enough(self, form: Form) -> bool:
        """At every batch size."""
        asked = 1 - form.noise if self.bounds.speedup is None else self.bounds.speedup
        return form.least >= asked and form.first_ms <= self.bounds.latency_ms

    def rank(self, form: Form) -> tuple[bool, bool, float, bool, float]:
        """The greatest is the one to take: in the bounds, then fast; INT8 where only noise is between it and float."""
        return self.small_enough(form), self.fast_enough(form), self._speed(form), _in_int8(form), form.mean

    def ordered(self, forms: Iterable[Form]) -> list[Form]:
        """The one to take first; where only noise is between several and the fastest, the closest of these.

        So that the same work comes to the same file again, though the clock is not the same twice.
        """
        first, *others = sorted(forms, key=self.rank, reverse=True)
        equal = [first, *(form for form in others if self.as_fast(form, first))]
        best = max(equal, key=closeness)
        return [best, *(form for form in (first, *others) if form is not best)]

    def _speed(self, form: Form) -> float:
        """What forms are compared by; where one is too slow, how near it comes. INT8 is float's equal within noise."""
        found, in_float = (form.mean, 1.0) if self.fast_enough(form) else (form.least, form.least_in_float)
        return found if found < in_float * (1 - form.noise) else max(found, in_float)

    def as_fast(self, form: Form, first: Form) -> bool:
        """Whether an INT8 form of use is as fast as the first one, but for noise."""
        even = self._speed(form) >= self._speed(first) * (1 - max(form.noise, EVEN))
        as_safe = first.slower or (not form.slower and (form.mean >= 1 or first.mean < 1))  # than float
        return _in_int8(form) and _in_int8(first) and even and as_safe and self.rank(form)[:2] == self.rank(first)[:2]

    def judged(self, form: Form) -> Form:
        return dataclasses.replace(form, quality=self.judge.quality(form.artifact.path))

    def timed(self, forms: Sequence[Form]) -> list[Form]:
        """All forms against the baseline in one measurement, the original too: the quieter of two on a busy machine."""
        for form in forms:
            self.prepare(form.artifact)
        original = self.bounds.original
        beside = [] if original is None or original.digest == self.baseline.digest else [original]
        files = [self.baseline, *(form.artifact for form in forms), *beside]
        results = self._compared(files)
        if _noise(results) > _BUSY and _undecided(results, len(forms)):
            results = min(results, self._compared(files), key=_noise)
        noise = _noise(results)
        return [
            dataclasses.replace(
                form,
                speedup={result.batch: result.speedup[index] for result in results},
                noise=noise,
                milliseconds={result.batch: result.latency[index + 1].p50 for result in results},
                original_speedup={result.batch: result.speedup[-1].value for result in results} if beside else {},
            )
            for index, form in enumerate(forms)
        ]

    def beating(self, form: Form) -> "Problem":
        """The same, with this form in the original's place."""
        return dataclasses.replace(self, baseline=form.artifact, bounds=Bounds(max_bytes=self.bounds.max_bytes))

    def _compared(self, files: Sequence[Artifact]) -> list[PairedLatency]:
        return latency.compare(files, self.feeds, self.threads, seconds=self.seconds, **latency.GUIDE)


def _noise(results: Sequence[PairedLatency]) -> float:
    return max(result.noise_floor for result in results)


def _undecided(results: Sequence[PairedLatency], forms: int) -> bool:
    """Whether one of the forms cannot be told from the baseline, or from the fastest of them."""
    return any(_alike(result, [one.value for one in result.speedup[:forms]]) for result in results)


def _alike(result: PairedLatency, speedups: Sequence[float]) -> bool:
    noise, fastest = result.noise_floor, max(speedups)
    from_float = any(abs(value - 1) <= noise for value in speedups)
    return from_float or sum(value >= fastest * (1 - noise) for value in speedups) > 1


def _in_int8(form: Form) -> bool:
    return form.artifact.dialect != "float"


def closeness(form: Form) -> float:
    """Signal-to-noise ratio of the worst output, in dB."""
    return -math.inf if form.quality is None else form.quality.snr_db
