"""The committed images: what the documents say of them, and the script that made them."""

import gzip
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from edgesmith.core import digest

DATA = Path(__file__).parents[1] / "data"


def test_the_slice_is_the_one_that_was_committed(fashion_slice: dict[str, np.ndarray]) -> None:
    """Accuracies asserted elsewhere hold for these images and no others."""
    assert {name: (array.dtype.name, array.shape) for name, array in fashion_slice.items()} == {
        "images": ("uint8", (512, 28, 28)),
        "labels": ("uint8", (512,)),
        "index": ("int32", (512,)),
    }
    assert np.bincount(fashion_slice["labels"]).tolist() == [52, 52, 51, 51, 51, 51, 51, 51, 51, 51]
    assert np.all(np.diff(fashion_slice["index"]) > 0)
    # The first ten labels of the published test file.
    assert fashion_slice["labels"][:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert digest.of_arrays(fashion_slice) == "0f8dc9466c4f349adece4b1ed9d5f60348953f45db5eb294c9de72e565a804ed"
    # Mean and deviation of all 70,000 images are 0.286 and 0.353 of the full range.
    assert abs(fashion_slice["images"].mean() / 255 - 0.286) < 0.015
    assert abs(fashion_slice["images"].std() / 255 - 0.353) < 0.015


def test_the_slice_cannot_be_changed_by_a_test(fashion_slice: dict[str, np.ndarray]) -> None:
    assert not any(array.flags.writeable for array in fashion_slice.values())


def test_the_script_takes_the_first_of_every_class(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (900, 28, 28), dtype=np.uint8)
    labels = np.random.default_rng(1).integers(0, 10, 900, dtype=np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
        (tmp_path / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    script = shutil.copy(DATA / "make_slice.py", tmp_path)
    subprocess.run([sys.executable, script, tmp_path], check=True, timeout=60)
    with np.load(tmp_path / "fashion_mnist_512.npz", allow_pickle=False) as made:
        index = made["index"]
        assert np.array_equal(made["images"], images[index])
        assert np.array_equal(made["labels"], labels[index])
    for label in range(10):
        everything = np.flatnonzero(labels == label)
        chosen = index[labels[index] == label]
        assert chosen.tolist() == everything[: 52 if label < 2 else 51].tolist()
