"""Limits that the user's test split can prove, chosen before anything is measured."""

import numpy as np

from ...benches.metrics.accuracy import samples_needed
from ...benches.metrics.metrics import METRICS
from ...core.errors import DataError

CONFIDENCE = 0.95
# Of 1,000 samples, how many a fair result loses and wins against its original: half a point of loss.
_LOST, _WON = 15, 10
_LADDER = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2)


def drop_of_proportion(samples: int) -> float:
    """The tightest usual limit on lost accuracy that `samples` prove, if 1.5 % are lost and 1 % won.

    Raises:
        DataError: so few samples that not even 0.2 can be proven.
    """
    needed = {limit: _needed(limit) for limit in _LADDER}
    for limit in _LADDER:
        if needed[limit] <= samples:
            return limit
    raise DataError(
        f"{samples} test samples cannot prove any useful limit on the accuracy; give at least {needed[_LADDER[-1]]} "
        f"to judge on ({needed[0.03]:,} prove a drop of 3 points, {needed[0.01]:,} one of 1 point)"
    )


def samples_for(limit: float) -> int:
    """How many test samples prove a drop of at most `limit` under the same assumption."""
    return _needed(limit)


def _needed(limit: float) -> int:
    original, final = np.ones(1000), np.ones(1000)
    final[:_LOST] = 0
    original[_LOST : _LOST + _WON] = 0
    found = samples_needed(METRICS["accuracy"], original, final, limit, CONFIDENCE)
    assert found is not None, "no limit of the ladder is the assumed drop itself"
    return found


def drop_of_error(value: float) -> float:
    """A limit on a growing error: a tenth of the original's own, in two digits; 0.001 where that is zero."""
    return float(f"{0.1 * value:.2g}") or 0.001
