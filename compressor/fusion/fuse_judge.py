"""What a member or a fusion answers, and what the task's main metric says of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...benches.metrics import accuracy, metrics
from ...core.errors import ContractError
from ...core.task import Metric, Split
from ...exporters.sessions.ort_session import OnnxRuntimeSession
from ..compare import CONFIDENCE, Comparison
from ..evaluation import BATCH, task_metrics
from ..stage import Context
from .exclusion import Exclusion
from .hierarchy import Hierarchy
from .member_outputs import Form


def answers(path: Path, split: Split, context: Context) -> np.ndarray:
    """What a file gives as the task's output."""
    session = OnnxRuntimeSession(path, device=context.machine.device)
    try:
        return accuracy.predict(session, split, BATCH)[context.task.outputs[0]]
    finally:
        session.close()


class Judge:
    """The task's main metric of fused outputs."""

    def __init__(self, context: Context, form: Form) -> None:
        self.metric: Metric = task_metrics(context.task)[0]
        self.sign = 1 if self.metric.higher_is_better else -1
        self._output, self._form = context.task.outputs[0], form

    def scores(self, fused: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return self.scores_of_file(self._form(fused), labels)

    def scores_of_file(self, output: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return metrics.scores_of(self.metric, {self._output: output}, labels)

    def score(self, fused: np.ndarray, labels: np.ndarray) -> float:
        """Such that higher is better."""
        return self.sign * metrics.value(self.metric, self.scores(fused, labels))

    def compare(self, first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> Comparison:
        return self.compared(self.scores(first, labels), self.scores(second, labels))

    def compared(self, one: np.ndarray, other: np.ndarray) -> Comparison:
        gain = accuracy.paired_drop(self.metric, one, other, CONFIDENCE)
        values = metrics.value(self.metric, one), metrics.value(self.metric, other)
        return Comparison(metric=self.metric.name, values=values, gain=gain)


def rules_kept(known: Sequence[Exclusion | Hierarchy], before: np.ndarray, labels: np.ndarray, judge: Judge) -> str:
    """How many rules were broken before they were kept and after, and what that does to the metric."""
    after = before
    for each in known:
        after = each(after)
    rules, counts = sum(each.rules for each in known), [sum(e.broken(rows) for e in known) for rows in (before, after)]
    scores = [judge.sign * judge.score(rows, labels) for rows in (before, after)]
    return (
        f"{rules} rule{'s' * (rules != 1)} on {len(before):,} validation samples: {counts[0]:,} of "
        f"{rules * len(before):,} broken before, {counts[1]:,} after; {judge.metric.name} {scores[0]:.4f} before, "
        f"{scores[1]:.4f} after"
    )


def check_computes(path: Path, form: Form, fused: np.ndarray, context: Context) -> None:
    """The graph computes what was judged."""
    found, expected = answers(path, context.task.split("validation", context.where), context), form.undo(form(fused))
    difference = np.abs(form.undo(found) - expected)
    # ONNX Runtime computes in single precision: close probabilities may change places in a vote.
    if not float(np.quantile(difference, 0.99)) <= 1e-3 * max(1.0, float(np.abs(expected).max())):
        raise ContractError(f"{context.where}: the fused graph differs from its parts by up to {difference.max():.3g}")
