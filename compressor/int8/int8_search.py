"""Which layers run in INT8 on one target: tried, judged on real outputs, and timed against the original.

The whole placement comes first. Where it loses too much, the layers that cost most by themselves go back to float, as
few as will do. Where it is slower than it could be, layers whose kernels and conversions take longer than the float
kernels they replace go back too, as long as a paired measurement confirms it and the file stays small enough.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...benches.report.int8_report import Decision, describe
from ...core.errors import QuantizationError
from ...core.values import Arrays
from ...exporters.int8 import dynamic
from ..progress import Progress
from .int8_forms import Form, Problem, closeness
from .int8_times import LayerTimes, layer_times, slower_in_int8

_ROUNDS = 3  # of giving slow layers back to float
_WORTH = 1.02  # what layers given back must gain beyond the noise: a choice, not a claim, so that the estimate decides
_LEAST_SAVING = 1e-3  # share of all the time that a layer counts as saving, however little it does


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What a search came to."""

    best: Form | None  # None: no INT8 form is good enough
    forms: tuple[Form, ...]  # everything that was timed, the best first
    decisions: tuple[Decision, ...]
    refused: tuple[str, ...] = ()  # why other forms were not taken
    tried: tuple[Form, ...] = ()  # everything that was judged, good enough or not, in the order it was tried


def search(problem: Problem, keep_float: Mapping[str, str], progress: Progress, give_back: bool = True) -> Found:
    """Find the fastest form that keeps the judge's promise.

    Args:
        problem: see there.
        keep_float: nodes that cannot run in INT8, and why.
        progress: gets a line for each step.
        give_back: where all layers together lose too much, look for those to be given back to float.

    Raises:
        QuantizationError: the target refuses every form; says why.
    """
    return _Search(_with_passed_ranges(problem, keep_float), keep_float, progress).run(give_back)


def again(problem: Problem, keep_float: Mapping[str, str], dialect: str, in_float: Mapping[str, str]) -> Form | None:
    """One form that a search has found before, written anew; None: it cannot be, or loses too much now."""
    found = _with_passed_ranges(problem, keep_float)
    if dialect not in {each.name for each in problem.target.dialects()}:
        return None
    try:
        form = found.judged(found.write(dialect, in_float, "again"))
    except QuantizationError:
        return None  # a search says why
    assert form.quality is not None
    return form if problem.judge.keeps(form.quality, spare=True) else None


def _with_passed_ranges(problem: Problem, keep_float: Mapping[str, str]) -> Problem:
    """With fewer nodes in INT8 a tensor may be the first of those that values pass through, and need its own range."""
    placed = problem.placed(keep_float)
    source = {name: placed.source[name] for name in placed.activations}
    params = {**problem.params, **{name: problem.params[s] for name, s in source.items() if s in problem.params}}
    return dataclasses.replace(problem, params=params)


class _Search:
    def __init__(self, problem: Problem, keep_float: Mapping[str, str], progress: Progress) -> None:
        self._problem, self._progress = problem, progress
        self._impossible = dict(keep_float)
        self._alone: dict[str, float] = {}
        self._float_ms: dict[str, float] = {}
        self._int8_ms: dict[str, float] = {}
        self._refused: list[str] = []
        self._tried: dict[Path, Form] = {}  # file -> what is known of it by now
        self._number = itertools.count()  # of files, so that none is written over
        self._measurable = problem.target.unmeasurable() is None
        self._profiled = self._measurable and problem.target.profiled
        leads = dynamic.leads(problem.model, problem.placed(keep_float))
        self._dialects = [dialect for dialect in problem.target.dialects() if leads or not dialect.dynamic]

    def run(self, give_back: bool) -> Found:
        forms = self._forms(self._impossible)
        if give_back and not any(self._good(form) for form in forms):
            choices = self._without_sensitive_layers(max(forms, key=closeness))
            forms += [form for keep_float in choices for form in self._forms(keep_float)]
        good = [form for form in forms if self._good(form)]
        self._note_refused([form for form in forms if not self._good(form)])
        if good and self._measurable:
            self._progress.say(f"  timing {len(good)} form(s) against the original")
            timed = self._problem.ordered(self._noted(self._problem.timed(good)))
            changed = self._without_slow_layers(timed[0]) if self._profiled else []
            good = self._problem.ordered([*changed, *timed[1:]]) if changed else timed
        return Found(
            best=good[0] if good else None,
            forms=tuple(good),
            decisions=self._decisions(good[0].keep_float if good else self._impossible),
            refused=tuple(dict.fromkeys(self._refused)),
            tried=tuple(self._tried.values()),
        )

    def _noted(self, forms: Sequence[Form]) -> Sequence[Form]:
        """The same forms, remembered as tried."""
        self._tried.update({form.artifact.path: form for form in forms})
        return forms

    def _forms(self, keep_float: Mapping[str, str]) -> list[Form]:
        """One choice of layers in every dialect, judged."""
        written: list[Form] = []
        refused: list[str] = []
        for dialect in self._dialects:
            try:
                form = self._problem.write(dialect.name, keep_float, f"{dialect.name}-{next(self._number)}")
                written.append(self._problem.judged(form))
            except QuantizationError as error:
                refused.append(f"{dialect.name} refused: {error}")
        if not written:
            raise QuantizationError(
                f"target '{self._problem.target.name}': no INT8 file could be written: {'; '.join(refused)}"
            )
        self._refused += refused
        self._noted(written)
        return written

    def _note_refused(self, forms: Sequence[Form]) -> None:
        for form in forms:
            if form.quality is not None:
                kept = f" with {len(form.keep_float)} layers in float" if form.keep_float else ""
                self._refused.append(f"{form.artifact.dialect}{kept}: {describe(form.quality)}, not good enough")

    def _good(self, form: Form) -> bool:
        assert form.quality is not None
        return self._problem.judge.keeps(form.quality, spare=True)

    def _without_sensitive_layers(self, closest: Form) -> list[dict[str, str]]:
        """Choices that keep the promise with as few layers in float as will do, in one order and in another.

        The first order is the harm a layer does alone; the second that harm for the time it saves. Which is faster
        cannot be told beforehand: a layer that saves nothing itself may stand between two that do.

        Args:
            closest: everything in INT8, in the dialect that loses least; layers are tried in this one.
        """
        layers, dialect = self._layers(), closest.artifact.dialect
        self._progress.say(f"  all in INT8 loses too much: trying {len(layers)} layers one by one")
        self._alone = self._each_alone(layers, dialect)
        if self._profiled:
            self._note_times(closest)
        orders = [sorted(layers, key=key, reverse=True) for key in (self._harm, self._harm_per_saving)]
        counts = [self._fewest(order, dialect) for order in orders]
        chosen = [order[:count] for order, count in zip(orders, counts, strict=True) if count < len(layers)]
        return [
            self._impossible | {name: f"costs too much: {self._alone[name]:.1f} dB by itself" for name in names}
            for names in {frozenset(names): names for names in chosen}.values()
        ]

    def _fewest(self, order: Sequence[str], dialect: str) -> int:
        """How many layers from the front of `order` have to be in float; all of them: nothing is left to do."""
        low, high = 0, len(order)  # the promise fails with `low` of them in float
        while high - low > 1:
            middle = (low + high) // 2
            form = self._problem.write(dialect, self._impossible | dict.fromkeys(order[:middle], ""), "trial")
            low, high = (low, middle) if self._good(self._problem.judged(form)) else (middle, high)
        return high

    def _each_alone(self, layers: Sequence[str], dialect: str) -> dict[str, float]:
        """Layer -> signal-to-noise ratio of the outputs, in dB, when no other one runs in INT8."""
        found: dict[str, float] = {}
        with self._progress.bar("layer by layer", len(layers)) as advance:
            for number, name in enumerate(layers, 1):
                others = self._impossible | {other: "" for other in layers if other != name}
                form = self._problem.write(dialect, others, "alone")
                found[name] = self._problem.judge.quality(form.artifact.path).snr_db
                advance(number, name)
        return found

    def _harm(self, name: str) -> float:
        """Noise power that a layer alone adds, as a share of the outputs'."""
        return float(10 ** (-self._alone[name] / 10))

    def _harm_per_saving(self, name: str) -> float:
        """The same over the share of all time that it saves; where nothing is timed, the same."""
        saved = self._float_ms.get(name, 0.0) - self._int8_ms.get(name, 0.0)
        total = sum(self._float_ms.values())
        return self._harm(name) / max(saved / total, _LEAST_SAVING) if total else self._harm(name)

    def _note_times(self, form: Form) -> LayerTimes:
        """Profile a form beside the baseline; a layer's INT8 time is that of the form in which it last ran in INT8."""
        problem = self._problem
        files = problem.baseline.path, form.artifact.path
        times = layer_times(problem.target, problem.model, *files, self._one_feed(), problem.threads)
        self._float_ms = dict(times.in_float)
        self._int8_ms |= {name: ms for name, ms in times.in_int8.items() if name not in form.keep_float}
        return times

    def _layers(self) -> list[str]:
        """Nodes with weights that the current placement takes."""
        placed = self._problem.placed(self._impossible)
        chosen = set(placed.nodes)
        return [
            node.name
            for node in self._problem.model.graph.node
            if node.name in chosen and any(name in placed.weights for name in node.input)
        ]

    def _without_slow_layers(self, whole: Form) -> Sequence[Form]:
        """The same form with layers back in float that are slower in INT8, as long as that pays, beside it; or none."""
        best, problem = whole, self._problem
        for number in range(_ROUNDS):
            trials = self._trials(best, number)
            beaten = problem.beating(best)
            gains = self._noted(beaten.timed(trials)) if trials else []
            better = [form for form in gains if form.mean > _WORTH + form.noise]
            if not better:
                break
            best = beaten.ordered(better)[0]
        return [] if best is whole else self._noted(problem.timed([best, whole]))  # in one measurement

    def _trials(self, best: Form, number: int) -> list[Form]:
        """Forms with some more layers in float that the profile says are better off there."""
        problem = self._problem
        times = self._note_times(best)
        trials = []
        for index, names in enumerate(slower_in_int8(problem.model, times, problem.placed(best.keep_float))):
            keep = dict(best.keep_float) | dict.fromkeys(names, "slower in INT8, conversions included")
            if not problem.placed(keep).weights:
                continue
            self._progress.say(f"  trying {len(names)} layer(s) in float that seem slower in INT8")
            form = problem.judged(problem.write(best.artifact.dialect, keep, f"faster-{number}-{index}"))
            as_small = problem.small_enough(form) or not problem.small_enough(best)
            trials += [form] if as_small and self._good(form) else []
        return trials

    def _one_feed(self) -> Sequence[Arrays]:
        return self._problem.feeds[min(self._problem.feeds)]

    def _decisions(self, kept: Mapping[str, str]) -> tuple[Decision, ...]:
        placed = self._problem.placed({})
        chosen = set(placed.nodes)
        return tuple(
            Decision(
                node=node.name,
                operator=node.op_type,
                int8=node.name not in kept,
                why=kept.get(node.name, ""),
                alone_db=self._alone.get(node.name),
                float_ms=self._float_ms.get(node.name),
                int8_ms=self._int8_ms.get(node.name),
            )
            for node in self._problem.model.graph.node
            if node.name in chosen and any(name in placed.weights for name in node.input)
        )
