"""From limits to one verdict to one exit code."""

import itertools
import math

import pytest

from edgesmith.core.errors import ExitCode
from edgesmith.core.limits import LimitResult, Limits, Status, Verdict

CODES = {"pass": ExitCode.PASS, "fail": ExitCode.LIMIT_MISSED, "unproven": ExitCode.UNPROVEN}


def verdict(*statuses: Status) -> Verdict:
    return Verdict(
        results=tuple(
            LimitResult(name="drop", limit=0.01, measured=0.0, low=-0.01, high=0.02, status=status)
            for status in statuses
        )
    )


@pytest.mark.parametrize("statuses", list(itertools.product(CODES, repeat=3)))
def test_one_failure_fails_and_one_doubt_is_doubt(statuses: tuple[Status, ...]) -> None:
    expected = "fail" if "fail" in statuses else "unproven" if "unproven" in statuses else "pass"
    assert verdict(*statuses).status == expected
    assert verdict(*statuses).exit_code == CODES[expected]


def test_the_exit_codes_of_the_three_verdicts() -> None:
    assert [int(verdict(status).exit_code) for status in ("pass", "fail", "unproven")] == [0, 3, 4]


def test_nothing_is_judged_by_default_but_the_confidence_is_set() -> None:
    limits = Limits()
    values = {name: getattr(limits, name) for name in limits.__dataclass_fields__}
    assert values.pop("confidence") == 0.95
    assert set(values.values()) == {None}


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        (Limits(), math.inf),
        (Limits(file_ratio=0.25), 250.0),
        (Limits(file_bytes=300), 300),
        (Limits(file_ratio=0.25, file_bytes=300), 250.0),
        (Limits(file_ratio=0.5, file_bytes=300), 300),
    ],
)
def test_the_largest_file_is_what_the_stricter_limit_allows(limits: Limits, most: float) -> None:
    assert limits.largest_file(1000) == most
