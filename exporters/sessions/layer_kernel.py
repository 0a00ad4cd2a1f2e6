"""What a runtime's profile says of one kernel, and the runs that a profile is taken over."""

import dataclasses
import time
from collections.abc import Callable, Sequence

from ...core.values import Arrays

_FEWEST_RUNS, _MOST_RUNS = 5, 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerKernel:
    """One kernel of the graph that a runtime made of a file."""

    node: str  # node of the float graph that it was made from, with what was fused to it; empty: none
    tensor: str  # of the float graph, whose values a conversion between float and integers carries; else empty
    milliseconds: float  # of one run, the median over the runs


def repeat(run: Callable[[Arrays], None], feeds: Sequence[Arrays], seconds: float) -> None:
    """Run feeds by turns for about so many seconds; at least a few times."""
    deadline, runs = time.monotonic() + seconds, 0
    while runs < _FEWEST_RUNS or (time.monotonic() < deadline and runs < _MOST_RUNS):
        run(feeds[runs % len(feeds)])
        runs += 1
