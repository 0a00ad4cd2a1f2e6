"""`edgesmith bench`: inputs made from specs, and the models that cannot be paired."""

import re
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgesmith.benches.timing.compare_files import contenders, random_feeds
from edgesmith.core.errors import ArtifactError, UsageError
from edgesmith.core.values import TensorSpec
from tests.benches.models import WIDTH, chain, write

TOKENS = TensorSpec(name="tokens", dtype="int64", shape=("batch", "length"))
IMAGE = TensorSpec(name="image", dtype="float32", shape=("batch", 3, 8, 8))


def test_two_files_are_two_contenders(tmp_path: Path) -> None:
    slow, fast = chain(tmp_path / "slow.onnx", 16), chain(tmp_path / "fast.onnx", 4)
    found, feeds = contenders([slow, fast], batch_sizes=[16, 2], seed=1)
    assert [(one.label, one.session, one.path, one.file) for one in found] == [
        ("1", "onnxruntime-cpu", slow, slow),
        ("2", "onnxruntime-cpu", fast, fast),
    ]
    assert {batch: [feed["x"].shape for feed in several] for batch, several in feeds.items()} == {
        16: [(16, WIDTH)] * 4,
        2: [(2, WIDTH)] * 4,
    }


def test_inputs_follow_the_specs_and_the_seed() -> None:
    feeds = random_feeds([IMAGE, TOKENS], 4, 7, {"tokens": (1, 48)})
    assert len(feeds) > 1
    for one in feeds:
        assert (one["image"].shape, one["image"].dtype) == ((4, 3, 8, 8), np.float32)
        assert (one["tokens"].shape, one["tokens"].dtype) == ((4, 48), np.int64)
        assert set(np.unique(one["tokens"])) == {0, 1}
    assert not np.array_equal(feeds[0]["image"], feeds[1]["image"])
    again = random_feeds([IMAGE, TOKENS], 4, 7, {"tokens": (1, 48)})
    np.testing.assert_array_equal(feeds[1]["image"], again[1]["image"])


@pytest.mark.parametrize(
    ("spec", "batch", "shapes", "text"),
    [
        (
            TOKENS,
            1,
            {},
            "input 'tokens' has dynamic axes int64 (?, ?); give them a size: --shape tokens=1,48",
        ),
        (
            TensorSpec(name="x", dtype="float32", shape=(1, 5)),
            8,
            {},
            "input 'x' has a fixed batch of 1; use --batch 1 instead of 8",
        ),
        (
            IMAGE,
            1,
            {"imag": (1, 3, 8, 8)},
            "--shape imag: the model has no such input; did you mean 'image'?; its inputs: image",
        ),
        (
            IMAGE,
            1,
            {"image": (1, 4, 8, 8)},
            "--shape image=1,4,8,8: does not fit the input, which is float32 (?, 3, 8, 8)",
        ),
        (TOKENS, 1, {"tokens": (1, 0)}, "--shape tokens=1,0: does not fit the input, which is int64 (?, ?)"),
        (TOKENS, 1, {"tokens": (48,)}, "--shape tokens=48: does not fit the input, which is int64 (?, ?)"),
    ],
)
def test_shapes_that_do_not_do(spec: TensorSpec, batch: int, shapes: dict[str, tuple[int, ...]], text: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        random_feeds([spec], batch, 0, shapes)


def test_models_with_other_inputs_are_refused(tmp_path: Path) -> None:
    first = chain(tmp_path / "first.onnx", 1)
    wide, named = chain(tmp_path / "wide.onnx", 1, width=64), chain(tmp_path / "named.onnx", 1, name="image")
    extra = write(
        tmp_path / "extra.onnx",
        [helper.make_node("Add", ["x", "bias"], ["y"])],
        [],
        {"x": (TensorProto.FLOAT, ["batch", 128]), "bias": (TensorProto.FLOAT, ["batch", 128])},
        {"y": ["batch", 128]},
    )
    cases = {
        wide: f"{wide}: input 'x' is float32 (?, 64), but float32 (?, 128) in {first}; "
        "only models with the same inputs can be paired",
        named: f"{named}: has no input 'x', which {first} has; only alike models can be paired",
        extra: f"{extra}: has an input 'bias', which {first} has not",
    }
    for path, text in cases.items():
        with pytest.raises(ArtifactError, match=f"^{re.escape(text)}$"):
            contenders([first, path])
    with pytest.raises(
        UsageError, match=r"^bench compares at least 2 files, got 1; or give the directory of a finished run alone$"
    ):
        contenders([first])


def test_a_fixed_batch_in_either_file_is_kept(tmp_path: Path) -> None:
    open_, fixed = chain(tmp_path / "open.onnx", 1), chain(tmp_path / "fixed.onnx", 1, batch=2)
    for files in ([open_, fixed], [fixed, open_]):
        with pytest.raises(UsageError, match=r"^input 'x' has a fixed batch of 2; use --batch 2 instead of 1$"):
            contenders(files, batch_sizes=[1])
