"""The Fashion-MNIST examples on a few hundred real images: the committed checkpoints, every recipe, the missing data."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# Real recipes; only the time they take is cut down. The limits are for the whole data and are not judged here.
QUICK = ["measure.seconds=0.3", "distill.epochs=1", "distill.batch_size=32", "quantize.samples=64"]


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


def run(recipe: Path, dataset: Path, cwd: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    options = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, "-m", "edgesmith", "compress", str(recipe), "--out", str(cwd / "run"), *options]
    environment = {**os.environ, "FASHION_MNIST": str(dataset)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def report_of(folder: Path, done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode in (0, 3, 4), done.stdout + done.stderr
    found: dict[str, object] = json.loads((folder / "run" / "report.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "original", "speedup", "file_ratio"),
    [("resnet20", 0.9, 2.5, 0.125), ("mobilenet", 0.88, 1.5, 0.166), ("lenet", 0.9, 4.0, 0.25)],
)
def test_a_recipe(name: str, original: float, speedup: float, file_ratio: float, dataset: Path, tmp_path: Path) -> None:
    """The checkpoint is a trained one, and the structure alone brings the speed and the size that the example promises."""
    done = run(EXAMPLES / "fashion_mnist" / f"{name}.toml", dataset, tmp_path, *QUICK)
    report: dict = report_of(tmp_path, done)  # type: ignore[type-arg]  # JSON
    assert report["test_samples"] == 200
    assert report["original"]["accuracy"] >= original
    assert report["speedup"]["median"] > speedup
    assert report["final"]["file_bytes"] < file_ratio * report["original"]["file_bytes"]
    assert [artifact["target"] for artifact in report["artifacts"]] == ["onnxruntime-cpu", "tensorrt"]


@pytest.mark.slow
def test_dense_outputs(dataset: Path, tmp_path: Path) -> None:
    """Segmentation with a network that has learnt little: masks, mean IoU and the whole chain."""
    folder = tmp_path / "segmentation"
    folder.mkdir()
    source = (EXAMPLES / "segmentation" / "task.py").read_text()
    small = source.replace("4_500", "300").replace("cut = 4_000", "cut = 260").replace("500, seed=1", "40, seed=1")
    small = small.replace("Path(__file__).parents[1]", f"Path({str(EXAMPLES)!r})").replace(
        "epochs: int = 12", "epochs: int = 3"
    )
    (folder / "task.py").write_text(small)
    (folder / "recipe.toml").write_text((EXAMPLES / "segmentation" / "recipe.toml").read_text())
    report: dict = report_of(tmp_path, run(folder / "recipe.toml", dataset, tmp_path, *QUICK))  # type: ignore[type-arg]
    assert report["main_metric"] == "miou"
    assert 0.03 < report["original"]["accuracy"] < 0.9
    assert report["final"]["macs"] <= 0.5 * report["original"]["macs"]
    assert report["final"]["metrics"]["miou"]["kind"] == "statistic"


def test_without_the_data_the_error_says_where_to_get_it(tmp_path: Path) -> None:
    done = run(EXAMPLES / "fashion_mnist" / "resnet20.toml", tmp_path, tmp_path)
    assert done.returncode == 2
    assert (
        f"Fashion-MNIST: no file {tmp_path}/train-images-idx3-ubyte.gz; on Debian: apt install dataset-fashion-mnist; "
        "elsewhere: download the four gzip files from github.com/zalandoresearch/fashion-mnist and set FASHION_MNIST to "
        "their folder"
    ) in done.stderr
