"""What calibration data must be before ranges are taken from it: there, finite, varied, and not the test data."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..core.errors import DataError


def check_samples(batches: Iterable[Mapping[str, np.ndarray]]) -> int:
    """Look at every batch once.

    Integer inputs (tokens, masks) may be constant; a floating input that is the same everywhere gives no range.

    Returns:
        How many samples there are.

    Raises:
        DataError: none, NaN or infinity, or a constant input; names input and sample.
    """
    count = 0
    ranges: dict[str, tuple[float, float]] = {}
    for batch in batches:
        size = len(next(iter(batch.values()), ()))
        for name, array in batch.items():
            if array.dtype.kind == "f" and array.size:
                _check_finite(name, array, count)
                low, high = ranges.get(name, (np.inf, -np.inf))
                ranges[name] = min(low, float(array.min())), max(high, float(array.max()))
        count += size
    if count == 0:
        raise DataError("calibration data: no samples; give some that look like what the model will see")
    for name, (low, high) in ranges.items():
        if low == high:
            raise DataError(
                f"calibration data: input '{name}' is {low:g} everywhere in all {count} samples; no range can be found "
                "from it: give samples that look like what the model will see"
            )
    return count


def check_overlap(calibration: Sequence[str], test: Sequence[str]) -> None:
    """Refuse calibration samples that the verdict is measured on.

    Args:
        calibration: digests of the calibration samples, see `core.digest.of_samples`.
        test: those of the test split.

    Raises:
        DataError: how many are shared, and the first.
    """
    places = {digest: index for index, digest in reversed(list(enumerate(test)))}
    shared = [index for index, digest in enumerate(calibration) if digest in places]
    if shared:
        first = shared[0]
        raise DataError(
            f"calibration data: {len(shared)} of {len(calibration)} samples are also in the test split (first: "
            f"calibration sample {first} = test sample {places[calibration[first]]}); the verdict would be measured on "
            "data the ranges were fitted to: take them out of one of the two"
        )


def _check_finite(name: str, array: np.ndarray, before: int) -> None:
    finite = np.isfinite(array.reshape(len(array), -1)).all(1)
    if not bool(finite.all()):
        first = before + int(np.flatnonzero(~finite)[0])
        raise DataError(
            f"calibration data: input '{name}' holds NaN or infinity, first in sample {first}; clean the data"
        )
