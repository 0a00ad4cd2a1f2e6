"""Two candidates of the same start on validation: by how much one is better, and which to keep."""

import dataclasses

from ..benches.metrics import accuracy, metrics
from ..core.values import Interval
from ..exporters.sessions.torch_session import TorchSession
from .candidate import Candidate
from .evaluation import BATCH, task_metrics
from .stage import Context

CONFIDENCE = 0.95  # of each bound alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The main metric of both on validation, and the first's paired gain in its unit; positive is better."""

    metric: str
    values: tuple[float, float]
    gain: Interval

    @property
    def first_is_better(self) -> bool:
        """By the estimate: what is kept has to be chosen, proven or not."""
        return self.gain.value >= 0

    def note(self, first: str, second: str) -> str:
        """Both figures, the interval, and what it shows."""
        return (
            f"{self.metric} on validation: {first} {self.values[0]:.4f}, {second} {self.values[1]:.4f}, "
            f"gain {self.shown(first)}; kept: {first if self.first_is_better else second}"
        )

    def shown(self, first: str) -> str:
        """The gain, its interval, and what that shows of the first."""
        low, high = self.gain.low, self.gain.high
        shown = "better" if low > 0 else "worse" if high < 0 else "not shown to be better or worse"
        return f"{self.gain.value:.4f} ({low:.4f} to {high:.4f}): {first} is {shown}"


def compare(first: Candidate, second: Candidate, context: Context) -> Comparison:
    """Both on the same validation samples, with the interval of `accuracy.paired_drop`.

    Raises:
        DataError: outputs that do not fit the labels, fewer than two samples.
    """
    metric = task_metrics(context.task)[0]
    split = context.task.split("validation", context.where)
    labels = accuracy.labels_of(split)
    scores = []
    for candidate in (first, second):
        module = candidate.module().to(context.machine.device)
        session = TorchSession(module, context.task.input_specs(), context.task.outputs)
        scores.append(metrics.scores_of(metric, accuracy.predict(session, split, BATCH), labels))
    return Comparison(
        metric=metric.name,
        values=(metrics.value(metric, scores[0]), metrics.value(metric, scores[1])),
        gain=accuracy.paired_drop(metric, scores[0], scores[1], CONFIDENCE),
    )
