"""What a recipe's limits leave to the forms that one network can be written in."""

import dataclasses
import math
from typing import Any

from ...core.values import Artifact


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """Limits on one file, as far as they tell its forms apart."""

    max_bytes: float = math.inf  # the largest file that is of use
    original: Artifact | None = None  # what has to be beaten; None: the baseline
    speedup: float | None = None  # against that, at every batch size; None: no slower, but for noise
    latency_ms: float = math.inf  # the longest median of one batch of the first batch size

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
