"""How the arrays of a file become runs, and what is refused."""

import re
from pathlib import Path

import numpy as np
import pytest

from edgesmith.compressor.int8.runs import RunData, batched, from_file, refuse_one_hot
from edgesmith.core.errors import DataError
from edgesmith.core.values import TensorSpec

IMAGE = TensorSpec(name="x", dtype="float32", shape=("batch", 3, 8, 8))
ROWS = (TensorSpec(name="x", dtype="float32", shape=("batch", 3)),)
STATE = TensorSpec(name="h", dtype="float32", shape=(2, 1, 4))


def numbered(count: int, *shape: int) -> np.ndarray:
    """Sample i holds i everywhere, so that it is seen where each one went."""
    return np.arange(count, dtype=np.float32).reshape(-1, *[1] * len(shape)) * np.ones(shape, np.float32)


def read(folder: Path, inputs: tuple[TensorSpec, ...], **arrays: np.ndarray) -> RunData:
    np.savez(folder / "data.npz", **arrays)
    return from_file(folder / "data.npz", inputs)


def seen(data: RunData, part: str) -> list[float]:
    return [float(feed["x"].flat[0]) for feed in getattr(data, part).feeds]


def test_every_sample_is_one_run_and_stands_in_one_part(tmp_path: Path) -> None:
    data = read(tmp_path, (IMAGE,), x=numbered(20, 3, 8, 8), labels=np.arange(20))
    assert [len(seen(data, part)) for part in ("calibration", "validation", "test")] == [10, 5, 5]
    everything = [*seen(data, "calibration"), *seen(data, "validation"), *seen(data, "test")]
    assert sorted(everything) == list(range(20))
    assert seen(data, "calibration") != list(range(10))  # sorted data must not calibrate on one class alone
    assert {feed["x"].shape for feed in data.test.feeds} == {(1, 3, 8, 8)}
    assert data.test.labels is not None and data.test.labels.tolist() == seen(data, "test")
    assert data.metric is not None and data.metric.name == "accuracy"


def test_a_state_is_fed_whole_beside_rows(tmp_path: Path) -> None:
    data = read(tmp_path, (IMAGE, STATE), x=numbered(8, 3, 8, 8), h=numbered(8, 2, 1, 4))
    assert data.metric is None
    for feed in data.calibration.feeds:
        assert feed["x"].shape == (1, 3, 8, 8) and feed["h"].shape == (2, 1, 4)
        assert feed["x"].flat[0] == feed["h"].flat[0]


def test_a_fixed_batch_takes_several_samples_a_run(tmp_path: Path) -> None:
    data = read(tmp_path, (TensorSpec(name="x", dtype="float32", shape=(4, 3)),), x=numbered(18, 3))
    feeds = [*data.calibration.feeds, *data.validation.feeds, *data.test.feeds]
    assert len(feeds) == 4 and {feed["x"].shape for feed in feeds} == {(4, 3)}  # two samples are left over


def test_a_folder_holds_one_run_a_file(tmp_path: Path) -> None:
    for index in range(6):
        np.savez(tmp_path / f"{index}.npz", x=np.full((2, 3, 8, 8), index, np.float32))
    data = from_file(tmp_path, (IMAGE,))
    everything = [*seen(data, "calibration"), *seen(data, "validation"), *seen(data, "test")]
    assert sorted(everything) == list(range(6)) and data.calibration.feeds[0]["x"].shape == (2, 3, 8, 8)


def test_what_labels_are_judged_by(tmp_path: Path) -> None:
    for labels, name in ((np.ones(20, np.float32), "mae"), (np.ones((20, 8, 8), np.int64), "miou")):
        found = read(tmp_path, (IMAGE,), x=numbered(20, 3, 8, 8), labels=labels).metric
        assert found is not None and found.name == name


def test_feeds_of_another_size_for_timing() -> None:
    feeds = [{"x": row} for row in np.split(numbered(10, 3), 10)]
    assert list(batched(feeds, ROWS, None, 4)) == [1] and len(batched(feeds, ROWS, None, 4)[1]) == 4
    (several,) = batched(feeds, ROWS, 4, 4).values()
    assert [feed["x"][:, 0].tolist() for feed in several] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(
        DataError, match=r"^--batch 32: the data has 10 rows to time with; give more, or a smaller batch$"
    ):
        batched(feeds, ROWS, 32, 4)


@pytest.mark.parametrize("shape", [(2, 1, 4), ()], ids=["state", "number"])
def test_an_input_that_takes_no_other_number_of_rows(shape: tuple[int, ...]) -> None:
    feeds = [{"x": numbered(1, 3), "h": np.zeros(shape, np.float32)}] * 8
    spec = TensorSpec(name="h", dtype="float32", shape=shape)
    with pytest.raises(DataError) as caught:
        batched(feeds, (*ROWS, spec), 4, 4)
    said = ", ".join(map(str, shape))
    assert str(caught.value) == f"--batch 4: input 'h' is ({said}) in every run; leave --batch out"


def test_a_number_is_fed_as_an_array(tmp_path: Path) -> None:
    number = TensorSpec(name="t", dtype="float32", shape=())
    data = read(tmp_path, (*ROWS, number), x=numbered(8, 3), t=np.arange(8, dtype=np.float32))
    for feed in data.calibration.feeds:
        assert isinstance(feed["t"], np.ndarray) and feed["t"].shape == () and feed["t"] == feed["x"][0, 0]


def test_labels_of_a_folder_go_with_their_runs(tmp_path: Path) -> None:
    for index in range(8):  # runs of one, two and three rows
        rows = 1 + index % 3
        np.savez(tmp_path / f"{index}.npz", x=np.full((rows, 3), index, np.float32), labels=np.full(rows, index))
    data = from_file(tmp_path, ROWS)
    assert data.metric is not None and data.metric.name == "accuracy"
    for part in (data.calibration, data.validation, data.test):
        assert part.labels is not None
        assert part.labels.tolist() == np.concatenate([feed["x"][:, 0] for feed in part.feeds]).tolist()
    np.savez(tmp_path / "5.npz", x=np.full((3, 3), 5, np.float32))
    with pytest.raises(
        DataError, match=r": 5\.npz has no labels, and other runs have; give every run its own, or none$"
    ):
        from_file(tmp_path, ROWS)


@pytest.mark.parametrize(
    ("first", "other", "said"),
    [
        (np.zeros(2, np.int64), np.zeros((2, 4), np.int64), "int64 (2, 4), and 0.npz has int64 (2,)"),
        (np.zeros(2, np.int64), np.zeros(2, np.float32), "float32 (2,), and 0.npz has int64 (2,)"),
    ],
    ids=["shape", "kind"],
)
def test_labels_of_a_folder_are_alike(first: np.ndarray, other: np.ndarray, said: str, tmp_path: Path) -> None:
    for index in range(8):
        labels = other if index in (3, 5) else first.astype(np.uint8) if index == 2 else first
        np.savez(tmp_path / f"{index}.npz", x=np.full((2, 3), index, np.float32), labels=labels)
    with pytest.raises(DataError) as caught:
        from_file(tmp_path, ROWS)
    assert str(caught.value) == (
        f"{tmp_path}: 3.npz has labels {said}; they must be of one kind, and of one shape but for how many there are"
    )


def test_a_column_of_classes_is_a_vector(tmp_path: Path) -> None:
    data = read(tmp_path, ROWS, x=numbered(20, 3), labels=np.arange(20)[:, None])
    assert data.metric is not None and data.metric.name == "accuracy"
    assert data.test.labels is not None and data.test.labels.tolist() == seen(data, "test")


SCORES = TensorSpec(name="y", dtype="float32", shape=("batch", 4))


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.bool_, np.float32])
def test_one_hot_labels_are_no_classes(kind: type, tmp_path: Path) -> None:
    labels = np.eye(4)[np.arange(20) % 4].astype(kind)
    data = read(tmp_path, ROWS, x=numbered(20, 3), labels=labels)
    text = (
        f"{tmp_path / 'data.npz'}: the labels are one-hot, (N, 4); give class numbers (N,), as labels.argmax(axis=1) "
        "makes them"
    )
    with pytest.raises(DataError, match=f"^{re.escape(text)}$"):
        refuse_one_hot(tmp_path / "data.npz", data, (SCORES,))
    dense = TensorSpec(name="y", dtype="float32", shape=("batch", 2, 4))
    refuse_one_hot(tmp_path / "data.npz", data, (dense,))  # one class of two at each of four positions
    labels[:, 1] = 1
    refuse_one_hot(tmp_path / "data.npz", read(tmp_path, ROWS, x=numbered(20, 3), labels=labels), (SCORES,))


def test_one_array_under_the_name_of_several(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", numbered(8, 3))
    (tmp_path / "data.npy").rename(tmp_path / "data.npz")
    with pytest.raises(DataError, match=r"data\.npz: holds one array without a name; write one with three lines"):
        from_file(tmp_path / "data.npz", ROWS)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"x": numbered(3, 3, 8, 8)}, "3 run(s) are too few to calibrate, choose and judge; give at least 4"),
        ({"y": numbered(9, 3, 8, 8)}, "no array for input 'x'; the model's inputs are x, the arrays y"),
        (
            {"x": numbered(9, 3, 8, 8), "z": np.ones(9)},
            "an array 'z' that is no input; the model's inputs are x, the arrays x, z",
        ),
        (
            {"x": numbered(9, 8, 8, 3)},
            "input 'x' must be float32 (batch, 3, 8, 8) in each run, got float32 (1, 8, 8, 3); it looks like (N, H, W, C): "
            "transpose it with array.transpose(0, 3, 1, 2)",
        ),
        (
            {"x": numbered(9, 3, 8, 8).astype(np.uint8)},
            "input 'x' must be float32 (batch, 3, 8, 8) in each run, got uint8 (1, 3, 8, 8); convert it with "
            "array.astype(np.float32), scaled as in training",
        ),
        ({"x": np.full((9, 3, 8, 8), np.nan, np.float32)}, "input 'x' holds NaN or infinity; clean the data"),
        ({"x": numbered(9, 3, 8, 8), "labels": np.ones(8)}, "8 labels for 9 runs; every run needs as many"),
        ({"x": numbered(9, 3, 8, 8), "labels": np.ones(())}, "1 labels for 9 runs; every run needs as many"),
        ({"x": numbered(9, 3, 8, 8), "labels": np.ones(0)}, "0 labels for 9 runs; every run needs as many"),
    ],
    ids=["few", "missing", "extra", "layout", "type", "nan", "labels", "one label", "no labels"],
)
def test_arrays_that_do_not_fit(arrays: dict[str, np.ndarray], text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, (IMAGE,), **arrays)
    assert str(caught.value) == f"{tmp_path / 'data.npz'}: {text}"


def test_a_copy_of_a_run_does_not_judge_it(tmp_path: Path) -> None:
    data = read(tmp_path, (IMAGE,), x=np.concatenate([numbered(8, 3, 8, 8)] * 3), labels=np.arange(24) % 8)
    everything = [*seen(data, "calibration"), *seen(data, "validation"), *seen(data, "test")]
    assert sorted(everything) == list(range(8))
    assert data.test.labels is not None and data.test.labels.tolist() == seen(data, "test")
    with pytest.raises(DataError, match=r"2 different run\(s\) are too few; give at least 4$"):
        read(tmp_path, (IMAGE,), x=np.concatenate([numbered(2, 3, 8, 8)] * 5))


def test_data_that_never_changes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"input 'x' is 1 everywhere; no range can be found: give real samples"):
        read(tmp_path, (IMAGE,), x=np.ones((9, 3, 8, 8), np.float32))
    state = np.zeros((9, 2, 1, 4), np.float32)  # a first state always is
    assert len(read(tmp_path, (IMAGE, STATE), x=numbered(9, 3, 8, 8), h=state).test) == 3


def test_arrays_of_unequal_length(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"every array needs the same number of runs, got \{'x': 9, 'h': 5\}$"):
        read(tmp_path, (IMAGE, STATE), x=numbered(9, 3, 8, 8), h=numbered(5, 2, 1, 4))


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"no \.npz files \(found: \.png\); give one \.npz file a run"):
        from_file(tmp_path, (IMAGE,))
