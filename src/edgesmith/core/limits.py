"""The promise a release makes, and what became of it."""

import dataclasses
import math
from typing import Literal

from .errors import ExitCode

Status = Literal["pass", "fail", "unproven"]
ASKED = "asked_latency"  # a limit that no recipe sets: a pruning was asked for a time, and what came of it is slower


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """`[limits]` of a recipe. What is not set is not judged; each is judged by its interval, not its estimate."""

    drop: float | None = None  # largest loss in the main metric, original minus final, in the metric's own unit
    metric: float | None = None  # smallest (largest, where lower is better) value of the main metric
    negative_flips: float | None = (
        None  # largest share of samples that were right and are wrong (Yan et al., CVPR 2021)
    )
    class_drop: float | None = None  # largest loss of any class, as `drop`
    slice_drop: float | None = None  # largest loss of any of the task's slices, as `drop`
    corruption_drop: float | None = None  # largest loss under any common corruption of the test data, as `drop`
    disparity: float | None = None  # most that the gap between the best and the worst class (or slice) may grow
    speedup: float | None = None  # smallest paired speed-up, at the worst of the measured batch sizes
    latency_ms: float | None = None  # largest median latency of one batch of the first batch size
    peak_memory_ratio: float | None = None  # largest peak memory, final / original
    peak_memory_bytes: int | None = None
    file_ratio: float | None = None  # largest file size, final / original
    file_bytes: int | None = None
    macs_ratio: float | None = None  # largest multiply-accumulate count, final / original
    params_ratio: float | None = None
    confidence: float = 0.95  # of the one-sided bound that decides

    def largest_file(self, original: int) -> float:
        """Bytes that the final file may have at most, where the original's has `original`; infinity: any number."""
        ratio = math.inf if self.file_ratio is None else self.file_ratio * original
        return min(ratio, math.inf if self.file_bytes is None else self.file_bytes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LimitResult:
    """One limit and how it was met. `low <= measured <= high` at the limits' confidence."""

    name: str
    limit: float
    measured: float | None  # None: not measured
    low: float | None
    high: float | None
    status: Status
    note: str = ""  # where it was measured, or what would settle it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the run concludes: fail if any limit failed, else unproven if any is, else pass."""

    results: tuple[LimitResult, ...]

    @property
    def status(self) -> Status:
        statuses = {result.status for result in self.results}
        if "fail" in statuses:
            return "fail"
        return "unproven" if "unproven" in statuses else "pass"

    @property
    def exit_code(self) -> ExitCode:
        return {"pass": ExitCode.PASS, "fail": ExitCode.LIMIT_MISSED, "unproven": ExitCode.UNPROVEN}[self.status]
