"""Make `fashion_mnist_512.npz` from the four files of Fashion-MNIST.

Usage: python tests/data/make_slice.py FOLDER

FOLDER holds `t10k-images-idx3-ubyte.gz` and `t10k-labels-idx1-ubyte.gz`. The first 51 images of every class are taken,
of the classes 0 and 1 one more, in the order of the file: no random choice, so the slice is the same wherever it is made.
"""

import gzip
import sys
from pathlib import Path

import numpy as np

COUNT = 512
CLASSES = 10


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file of unsigned bytes: magic 0, 0, 8, number of axes; the axes, big-endian; the bytes."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\x00\x00\x08":
        raise SystemExit(f"{path}: not an IDX file of unsigned bytes")
    axes = data[3]
    shape = np.frombuffer(data, dtype=">i4", count=axes, offset=4)
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape)


def balanced(labels: np.ndarray) -> np.ndarray:
    """Indices of the first COUNT samples, as many of each class as of any other (give or take one), ascending."""
    per_class = [COUNT // CLASSES + (label < COUNT % CLASSES) for label in range(CLASSES)]
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label, count in enumerate(per_class)]))


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    folder = Path(sys.argv[1])
    images = read_idx(folder / "t10k-images-idx3-ubyte.gz")
    labels = read_idx(folder / "t10k-labels-idx1-ubyte.gz")
    chosen = balanced(labels)
    np.savez_compressed(
        Path(__file__).with_name("fashion_mnist_512.npz"),
        images=images[chosen],
        labels=labels[chosen],
        index=chosen.astype(np.int32),
    )


if __name__ == "__main__":
    main()
