"""Models with different outputs as one file, through the command line to the verdict."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.cli import main
from edgesmith.compressor.fusion.combine import Combine
from edgesmith.compressor.fusion.fuse import Fuse
from edgesmith.compressor.fusion.preparation import Preparation
from edgesmith.core.errors import ExitCode, RecipeError
from edgesmith.core.task import ArraySplit, Task
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession
from tests.quick import BRIEF

TASK = """
import numpy as np
from sklearn.datasets import load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression

import edgesmith


def task():
    flowers, kinds = load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(kinds))
    flowers, kinds = flowers[order].astype(np.float32), kinds[order]
    x, y = flowers[:, :3], flowers[:, 3]  # how wide a petal is, is to be told from the rest
    parts = {name: slice(*ends) for name, ends in (("train", (0, 70)), ("validation", (70, 100)), ("test", (100, 150)))}
    return edgesmith.Task(
        name="iris",
        model=LogisticRegression(max_iter=500).fit(x[:70], kinds[:70]),
        models={"width": LinearRegression().fit((x[:70] - [5.8, 3.1, 3.8]) / [0.8, 0.4, 1.8], y[:70])},
        outputs=("kind",),
        **{name: edgesmith.ArraySplit({"flower": x[part]}, kinds[part]) for name, part in parts.items()},
    )
"""
RECIPE = """
task = "task.py"
[[stages]]
use = "combine"
heads = { original = ["kind"], width = ["width"] }
prepare = { width = { mean = [5.8, 3.1, 3.8], std = [0.8, 0.4, 1.8] } } # that it was fitted on
[limits]
drop = 0.15
"""


def test_a_classifier_and_a_regressor_are_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("task.py").write_text(TASK)
    Path("recipe.toml").write_text(RECIPE)
    assert main(["compress", "recipe.toml", "--out", "run", *BRIEF]) == ExitCode.PASS
    report = json.loads(Path("run/report.json").read_text())
    assert report["stages"][1]["notes"] == [
        "outputs: kind of original, width of width; each as its model alone gives it, on all validation samples"
    ]
    assert report["final"]["accuracy"] == report["original"]["accuracy"] > 0.9
    session = OnnxRuntimeSession(Path("run/artifacts/onnxruntime-cpu/model.onnx"))
    assert [spec.name for spec in session.inputs] == ["flower"]
    assert [spec.name for spec in session.outputs] == ["kind", "width"]
    flowers = np.array([[5.1, 3.5, 1.4], [6.5, 3.0, 5.5]], np.float32)  # a setosa of 0.2 cm, a virginica of 1.8
    found = session.run({"flower": flowers})
    assert found["kind"].argmax(1).tolist() == [0, 2]
    np.testing.assert_allclose(found["width"].ravel(), [0.2, 1.8], atol=0.3)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"original": ("kind",)}, "w.heads: combining takes at least two models; got ['original']"),
        ({"original": ("kind",), "width": ()}, "w.heads: 'width' gives no output; name one, or leave it out"),
        (
            {"original": ("kind",), "width": ("kind",)},
            "w.heads: 'kind' is an output of 'original' and of 'width'; each needs a name of its own, and what is said of one "
            "thing by several models is fused instead",
        ),
        ({"original": ("kind",), "width": ("flower",)}, "w.heads: 'flower' is the name of an input"),
        ({"original": ("sort",), "width": ("width",)}, "w.heads: no model gives the task's output 'kind'"),
    ],
)
def test_what_makes_no_combination_is_refused(heads: Any, message: str) -> None:
    split = ArraySplit({"flower": np.zeros((2, 3), np.float32)}, np.zeros(2, np.int64))
    task = Task(name="t", model="m.onnx", test=split, validation=split, outputs=("kind",))
    with pytest.raises(RecipeError) as caught:
        Combine(id="c", heads=heads).check(task, "w")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        ({"wide": {}}, "w.prepare: unknown 'wide'; did you mean 'width'? known: original, width"),
        ({"width": {"mean": (1.0, 2.0)}}, "w.prepare.width.mean: 2 numbers for 3 channels; give one, or one for each"),
        ({"width": {"std": (1.0, 0.0, 1.0)}}, "w.prepare.width.std: [1.0, 0.0, 1.0]; each has to be above 0"),
        ({"width": {"std": (float("nan"),)}}, "w.prepare.width.std: [nan]; each has to be above 0"),
    ],
)
def test_what_makes_no_preparation_is_refused(prepare: Any, message: str) -> None:
    split = ArraySplit({"flower": np.zeros((2, 3), np.float32)}, np.zeros(2, np.int64))
    task = Task(name="t", model="m.onnx", test=split, validation=split, outputs=("kind",))
    wanted = {name: Preparation(**keys) for name, keys in prepare.items()}
    stages: Any = [
        Combine(id="c", heads={"original": ("kind",), "width": ("width",)}, prepare=wanted),
        Fuse(id="f", members=("original", "width"), gives="logits", prepare=wanted),
    ]
    for stage in stages:
        with pytest.raises(RecipeError) as caught:
            stage.check(task, "w")
        assert str(caught.value) == message


def test_token_ids_have_no_mean() -> None:
    split = ArraySplit({"ids": np.zeros((2, 3), np.int64)}, np.zeros(2, np.int64))
    task = Task(name="t", model="m.onnx", test=split, validation=split, outputs=("kind",))
    stage = Combine(id="c", heads={"a": ("kind",), "b": ("width",)}, prepare={"a": Preparation()})
    with pytest.raises(RecipeError) as caught:
        stage.check(task, "w")
    assert str(caught.value) == (
        "w.prepare: the task has ids int64 ('batch', 3); what can be prepared is one float32 input (batch, channels, ...)"
    )
