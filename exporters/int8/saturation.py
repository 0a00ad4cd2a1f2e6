"""INT8 products as an x86 CPU without VNNI adds them: VPMADDUBSW saturates the sum of two in 16 bits.

ONNX Runtime multiplies unsigned activations by signed weights four at a time along the reduced axis (MLAS: the AVX2 and
AVX512 kernels of its integer GEMM, GEMV and symmetric convolution). Neighbours 2i and 2i + 1 are added in 16 bits, all
else in 32. A convolution's reduced axis is that of its im2col: kernel positions first, the group's input channels last.
Depthwise kernels, signed activations and unsigned weights take other instructions and are exact.
"""

import numpy as np

LARGEST = 255  # of an unsigned activation
_LOW, _HIGH = -(2**15), 2**15 - 1
_EXACT = 512  # products whose sum is exact in float32 in any order: 512 * 255 * 128 < 2 ** 24
_ROWS = 2**17  # of which the excess is computed at a time


def pairs(weight: np.ndarray) -> np.ndarray:
    """Neighbours along the reduced axis: `(K, N)` int8 to `(ceil(K / 2), 2, N)` int32; an odd end gets a zero."""
    padded = np.pad(weight.astype(np.int32), ((0, len(weight) % 2), (0, 0)))
    found: np.ndarray = padded.reshape(-1, 2, weight.shape[1])
    return found


def can_saturate(weight: np.ndarray) -> np.ndarray:
    """Which pairs of weights some activations make saturate: `(K, N)` int8 to `(ceil(K / 2), N)` bool."""
    both = pairs(weight)
    high, low = (LARGEST * part.sum(axis=1) for part in (np.maximum(both, 0), np.minimum(both, 0)))
    found: np.ndarray = (high > _HIGH) | (low < _LOW)
    return found


def products(data: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Sums of products as such a CPU gives them.

    Args:
        data: `(R, K)` uint8.
        weight: `(K, N)` int8.

    Returns:
        `(R, N)` int32.
    """
    found: np.ndarray = exact(data, weight) - excess(data, weight)
    return found


def exact(data: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The sums themselves, `(R, N)` int32: float32 products, which are fast, of pieces in which nothing is rounded."""
    found = np.zeros((len(data), weight.shape[1]), np.int32)
    for start in range(0, len(weight), _EXACT):
        piece = slice(start, start + _EXACT)
        found += (data[:, piece].astype(np.float32) @ weight[piece].astype(np.float32)).astype(np.int32)
    return found


def excess(data: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What saturation cuts off the sums, `(R, N)` int32: only pairs of weights that can saturate are looked at."""
    found = np.zeros((len(data), weight.shape[1]), np.int32)
    both, risky = pairs(weight), can_saturate(weight)
    for index in np.flatnonzero(risky.any(axis=1)):
        columns = np.flatnonzero(risky[index])
        for start in range(0, len(data), _ROWS):
            rows = data[start : start + _ROWS, 2 * index : 2 * index + 2].astype(np.int32)
            sums = rows @ both[index, : rows.shape[1]][:, columns]
            found[start : start + _ROWS, columns] += sums - np.clip(sums, _LOW, _HIGH)
    return found


def as_matrices(weight: np.ndarray, groups: int) -> list[np.ndarray]:
    """A convolution's weight `(M, C / groups, *kernel)` as each group's `(K, M / groups)`, in the order of im2col."""
    last = np.moveaxis(weight, (0, 1), (-1, -2))  # (*kernel, C / groups, M)
    return np.split(last.reshape(-1, weight.shape[0]), groups, axis=1)


def is_depthwise(weight: np.ndarray, groups: int) -> bool:
    """Whether each channel is convolved by itself, which has kernels of its own."""
    return groups > 1 and weight.shape[:2] == (groups, 1)
