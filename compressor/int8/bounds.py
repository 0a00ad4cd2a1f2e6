"""What a recipe's limits leave to the forms that one network can be written in."""

import dataclasses
import math
from typing import Any

from ...core.limits import Limits
from ...core.values import Artifact


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """Limits on one file, as far as they tell its forms apart."""

    max_bytes: float = math.inf  # the largest file that is of use
    original: Artifact | None = None  # what has to be beaten; None: the baseline
    speedup: float | None = None  # against that, at every batch size; None: no slower, but for noise
    latency_ms: float = math.inf  # the longest median of one batch of the first batch size

    @classmethod
    def of(cls, limits: Limits, against: Artifact | None, target: str) -> "Bounds":
        """What the limits leave to a file of `target`, which is judged against another.

        Args:
            against: None: a stage that stands after the network.
        """
        if against is None:
            return cls()
        most = limits.largest_file(against.file_bytes)
        if target != against.target:
            return cls(max_bytes=most)  # times on another target say nothing here
        slowest = math.inf if limits.latency_ms is None else limits.latency_ms
        return cls(max_bytes=most, original=against, speedup=limits.speedup, latency_ms=slowest)

    def key(self) -> dict[str, Any]:
        """What a choice between forms hangs on."""
        found = {
            "max_bytes": self.max_bytes,
            "original": self.original and self.original.digest,
            "speedup": self.speedup,
            "latency_ms": self.latency_ms,
            "rule": "geometric mean",
        }
        return {name: value for name, value in found.items() if value not in (None, math.inf)}


FREE = Bounds()  # nothing but the network in float has to be beaten
