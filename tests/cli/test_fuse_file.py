"""A member of a fusion that is a bare ONNX file, named by its path, through the command line."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.naive_bayes import GaussianNB

from edgesmith.cli import main
from edgesmith.core.errors import ExitCode
from edgesmith.core.files import as_file_name

TASK = """
import numpy as np
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

import edgesmith


def task():
    x, y = load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order].astype(np.float32), y[order]
    parts = {name: slice(*ends) for name, ends in (("validation", (70, 100)), ("test", (100, 150)))}
    return edgesmith.Task(
        name="iris",
        model=LogisticRegression(max_iter=500).fit(x[:70], y[:70]),
        outputs=("kind",),
        **{name: edgesmith.ArraySplit({"flower": x[part]}, y[part]) for name, part in parts.items()},
    )
"""
RECIPE = """
task = "../task.py"
targets = ["onnxruntime-arm"]  # which is not timed here
[[stages]]
use = "fuse"
members = ["original", "files/bayes.onnx"]
gives = "probabilities"
[limits]
metric = 0.5
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("files", "recipes"):
        (tmp_path / name).mkdir()
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "recipes" / "recipe.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_bayes(path: Path) -> None:
    """Naive Bayes with probabilities as its only output."""
    x, y = load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))[:70]
    bayes = GaussianNB().fit(x[order], y[order])
    model = to_onnx(bayes, x[:1].astype(np.float32), options={"zipmap": False}, target_opset={"": 18, "ai.onnx.ml": 3})
    model.graph.input[0].name = "flower"
    for node in model.graph.node:
        node.input[:] = ["flower" if name == "X" else name for name in node.input]
    kept = [value for value in model.graph.output if value.name == "probabilities"]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, path)


def test_a_path_from_the_tasks_folder_is_a_member(project: Path) -> None:
    write_bayes(project / "files" / "bayes.onnx")
    assert main(["compress", "recipes/recipe.toml", "--out", "run"]) == ExitCode.UNPROVEN
    graph = onnx.load(project / "run" / "artifacts" / "onnxruntime-arm" / "model.onnx").graph
    assert {node.name.split("/")[0] for node in graph.node if "/" in node.name} >= {"original", "files"}
    assert {path.name for path in project.iterdir()} <= {"files", "recipes", "task.py", "run", "cache", "__pycache__"}
    # The recipe that the run keeps leads to the same file, and so to the same run.
    assert main(["compress", "run/recipe.toml", "--out", "run"]) == ExitCode.UNPROVEN


def test_a_file_that_is_not_there(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "recipes/recipe.toml", "--out", "run"]) == ExitCode.USAGE
    assert "files/bayes.onnx" in capsys.readouterr().err


def test_a_pickle_named_by_its_path_is_not_opened(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "files" / "tree.pkl").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    members = 'fuse.members=["original", "files/tree.pkl"]'
    assert main(["compress", "recipes/recipe.toml", "--out", "run", "--set", members, "--dry-run"]) == ExitCode.USAGE
    assert "files/tree.pkl' is a pickle, which runs whatever code it holds when it is opened" in capsys.readouterr().err


def test_names_as_parts_of_paths() -> None:
    assert as_file_name("seed-1") == "seed-1"
    made = [as_file_name(name) for name in ("a/b.onnx", "a_b.onnx", "../b.onnx")]
    assert len(set(made)) == 3
    assert all("/" not in name for name in made)
