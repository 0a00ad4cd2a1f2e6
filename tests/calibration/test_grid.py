"""What a grid makes of a tensor, against really quantizing the values one by one."""

import numpy as np
import pytest

from edgesmith.calibration.grid import Grid, clipped_share, squared_error, unused_share
from edgesmith.calibration.histogram import Histogram

GRIDS = {
    "signed": Grid(0.02, -128, 127),
    "unsigned": Grid(0.02, 0, 255),
    "asymmetric": Grid(0.03, -40, 215),
    "few levels": Grid(0.5, -7, 7),
}


def seen(values: np.ndarray) -> Histogram:
    found = Histogram()
    found.update(values)
    return found


@pytest.mark.parametrize("name", sorted(GRIDS))
@pytest.mark.parametrize("kind", ["gauss", "relu", "far outlier"])
def test_the_error_is_that_of_the_values(name: str, kind: str) -> None:
    values = np.random.default_rng(0).standard_normal(100_000)
    values = {"gauss": values, "relu": np.maximum(values, 0), "far outlier": np.append(values, 60.0)}[kind]
    grid, histogram = GRIDS[name], seen(values)
    back = np.clip(np.rint(values / grid.scale), grid.lowest, grid.highest) * grid.scale
    expected = float(np.mean((values - back) ** 2))
    # Zeros behind a Relu count as spread over their bin, as everything else; the grids here are that fine.
    assert squared_error(histogram.edges, histogram.counts, grid) == pytest.approx(expected, rel=0.04)


def test_what_is_clipped() -> None:
    values = np.random.default_rng(0).standard_normal(200_000)
    histogram = seen(values)
    assert clipped_share(histogram, -2.0, 1.5) == pytest.approx(np.mean((values < -2) | (values > 1.5)), rel=0.01)
    assert clipped_share(histogram, values.min(), values.max()) == 0.0  # exactly, though bins reach further
    assert clipped_share(histogram, values.min() - 1, values.max() + 1) == 0.0
    assert clipped_share(histogram, -1e-9, 1e-9) == pytest.approx(1.0, abs=0.01)
    assert clipped_share(seen(np.full(5, 3.0)), 0.0, 3.0) == 0.0


def test_levels_that_stand_for_nothing() -> None:
    grid = Grid(1.0, -4, 4)
    assert unused_share(seen(np.arange(-4.0, 5.0)), grid) == 0.0
    assert unused_share(seen(np.arange(-4.0, 5.0, 2.0)), grid) == pytest.approx(4 / 9)
    assert unused_share(seen(np.array([0.0, 1.2, 0.9, 40.0])), grid) == pytest.approx(6 / 9)  # 40 is the level 4
    assert unused_share(seen(np.zeros(3)), grid) == pytest.approx(8 / 9)


def test_an_outlier_leaves_most_of_the_range_empty() -> None:
    values = np.append(np.random.default_rng(0).standard_normal(100_000), 100.0)
    grid = Grid(100 / 127, -127, 127)
    used = len(np.unique(np.rint(values / grid.scale)))
    assert unused_share(seen(values), grid) == pytest.approx(1 - used / 255, abs=2 / 255)
