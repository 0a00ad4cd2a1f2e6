"""Equal digest, equal thing: known values, what must not matter, and what must."""

import hashlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st

from edgesmith.core import digest
from edgesmith.core.errors import DataError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_known_values() -> None:
    """FIPS 180-2, appendix B: the digests of "abc" and of nothing."""
    assert digest.of_bytes(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest.of_bytes(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_json_is_written_in_one_way_only() -> None:
    expected = hashlib.sha256(b'{"a":[1,2.5,null],"b":{"c":true}}').hexdigest()
    assert digest.of_json({"b": {"c": True}, "a": (1, 2.5, None)}) == expected


@given(st.dictionaries(st.text(), JSON, min_size=2, max_size=5))
def test_the_order_of_keys_does_not_matter(value: dict[str, object]) -> None:
    assert digest.of_json(value) == digest.of_json(dict(reversed(value.items())))


def test_floats_keep_every_digit() -> None:
    assert digest.of_json(0.1) != digest.of_json(np.nextafter(0.1, 1).item())
    assert digest.of_json(1) != digest.of_json(1.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_without_nan(value: float) -> None:
    with pytest.raises(ValueError, match="Out of range float values"):
        digest.of_json({"limit": value})


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path, size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    (tmp_path / "file").write_bytes(data)
    assert digest.of_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_arrays_by_definition() -> None:
    """Name, type, shape and bytes; run directories on disk hold these digests, so the definition stays."""
    values = np.array([[1.0, 2.0]], dtype=np.float32)
    expected = hashlib.sha256(b"a:int64:();" + (7).to_bytes(8, "little") + b"x:float32:(1, 2);" + values.tobytes())
    assert digest.of_arrays({"x": values, "a": np.array(7)}) == expected.hexdigest()


def test_what_does_not_matter_to_arrays() -> None:
    grid = np.arange(12, dtype=np.int32).reshape(3, 4)
    one = digest.of_arrays({"x": grid, "y": grid + 1})
    assert digest.of_arrays({"y": grid + 1, "x": grid}) == one, "the order of names"
    assert digest.of_arrays({"x": np.asfortranarray(grid), "y": grid + 1}) == one, "the order in memory"
    doubled = np.repeat(grid, 2, axis=1)
    assert digest.of_arrays({"x": doubled[:, ::2], "y": grid + 1}) == one, "strides"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros(1), np.array(0.0)),
        (np.zeros((1, 1)), np.zeros(1)),
        (np.zeros(0), np.zeros((0, 4))),
        (np.zeros(2, np.float32), np.zeros(1, np.float64)),
        (np.zeros(2, np.int32), np.zeros(2, np.uint32)),
        (np.zeros(2, np.float32), np.full(2, -0.0, np.float32)),
        (np.array([1.0]), np.array([np.nextafter(1.0, 2.0)])),
        (np.ones(2, ml_dtypes.float8_e4m3fn).view(np.uint8), np.ones(2, ml_dtypes.float8_e4m3fn)),
        (np.zeros(2, ml_dtypes.float8_e4m3fn), np.zeros(2, ml_dtypes.float8_e5m2)),
        (np.zeros(1, "datetime64[s]"), np.zeros(1, "datetime64[D]")),
    ],
)
def test_what_matters_to_arrays(first: np.ndarray, second: np.ndarray) -> None:
    assert digest.of_arrays({"x": first}) != digest.of_arrays({"x": second})


def test_names_matter() -> None:
    assert digest.of_arrays({"x": np.zeros(1)}) != digest.of_arrays({"y": np.zeros(1)})
    assert digest.of_arrays({"x": np.zeros(1)}) != digest.of_arrays({"x": np.zeros(1), "y": np.zeros(0)})


def test_arrays_of_objects_are_refused() -> None:
    """Their bytes are addresses: the same texts would have another digest in every process."""
    with pytest.raises(DataError) as caught:
        digest.of_arrays({"text": np.array(["good", "bad"], dtype=object)})
    assert str(caught.value) == (
        "array 'text' holds Python objects; give it a fixed type such as float32, int64 or <U32"
    )
    assert digest.of_arrays({"text": np.array(["good", "bad"])})


def test_samples_shared_by_two_splits_are_found(fashion_slice: dict[str, np.ndarray]) -> None:
    images = fashion_slice["images"]
    known = set(digest.of_samples({"image": images[:300]}))
    other = digest.of_samples({"image": images[290:]})
    assert [index for index, value in enumerate(other) if value in known] == list(range(10))
    assert len(known) == 300, "no two of the real images are the same"


def test_a_sample_is_all_of_its_inputs() -> None:
    tokens, mask = np.array([[1, 2], [1, 2]]), np.array([[1, 1], [1, 0]])
    assert len(set(digest.of_samples({"tokens": tokens}))) == 1
    assert len(set(digest.of_samples({"tokens": tokens, "mask": mask}))) == 2
