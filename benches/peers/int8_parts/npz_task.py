"""The task that `edgesmith quantize` gets: a model's arrays, without its test images.

It calibrates with the images that every quantizer gets. Validation images choose and judge, half of them each.
"""

import os
from pathlib import Path

import numpy as np

import edgesmith


def task() -> edgesmith.Task:
    """The model whose folder is in the environment, as `PEERS_MODEL`."""
    folder = Path(os.environ["PEERS_MODEL"])
    with np.load(folder / "calibration.npz", allow_pickle=False) as stored:
        calibration = edgesmith.ArraySplit(dict(stored))
    with np.load(folder / "validation.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    labels = arrays.pop("labels")
    half = len(labels) // 2
    parts = [
        edgesmith.ArraySplit({name: array[rows] for name, array in arrays.items()}, labels[rows])
        for rows in (slice(None, half), slice(half, None))
    ]
    return edgesmith.Task(
        name=folder.name,
        model=folder / "model.onnx",
        calibration=calibration,
        validation=parts[0],
        test=parts[1],
    )
