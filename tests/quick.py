"""A run whose time nobody asks about: measured as briefly as may be, at the fewest processes that 75 % allow."""

BRIEF = tuple(
    f"--set={each}"
    for each in ("measure.restarts=2", "measure.seconds=0.05", "measure.batch_sizes=[1]", "limits.confidence=0.75")
)
