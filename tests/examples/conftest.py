"""Images that the tests of this folder share."""

import gzip
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def dataset(fashion_slice: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Debian's package has it, with 312 images to train and 200 to test."""
    folder = tmp_path_factory.mktemp("fashion-mnist")
    for part, rows in (("train", np.s_[:312]), ("t10k", np.s_[312:])):
        images, labels = fashion_slice["images"][rows], fashion_slice["labels"][rows]
        for name, head, data in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
            with gzip.open(folder / f"{part}-{name}-ubyte.gz", "wb") as stream:
                stream.write(bytes(head) + data.tobytes())
    return folder
