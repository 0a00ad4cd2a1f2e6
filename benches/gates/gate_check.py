"""What a gate consists of: one check each for files, limits and comparisons with the last release."""

import dataclasses
from typing import Literal

from ...core.errors import ExitCode
from ...core.limits import Status

Group = Literal["file", "limit", "baseline"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that is held against a promise. `low <= measured <= high`; positive is worse in group "baseline"."""

    group: Group  # a file is what was judged; a limit of the run's own; no worse than the last release
    name: str
    status: Status
    promise: str  # in words
    found: str  # in words
    note: str = ""
    limit: float | None = None
    measured: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def id(self) -> str:
        """Unique in a gate."""
        return f"{self.group}: {self.name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """What a release build reads."""

    task: str
    target: str
    confidence: float
    baseline: str | None  # the file; None: there was none
    status: Status
    checks: tuple[Check, ...]
    ratchet: str = ""  # what --ratchet did and why; empty: it was not asked for

    @property
    def exit_code(self) -> ExitCode:
        return {"pass": ExitCode.PASS, "fail": ExitCode.LIMIT_MISSED, "unproven": ExitCode.UNPROVEN}[self.status]
