"""How a recipe wants things to be measured."""

import dataclasses
from typing import Annotated

from pydantic import Field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """`[measure]`: how long and at what sizes the benchmark runs."""

    batch_sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 32)
    seconds: Annotated[float, Field(gt=0)] = 2.0  # timed seconds per restart and batch size
    restarts: Annotated[int, Field(ge=2)] = 5  # fresh processes; the interval is over them
    concurrency: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = ()  # threads on one session; (): untried
