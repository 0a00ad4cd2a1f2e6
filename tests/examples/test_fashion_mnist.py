"""The Fashion-MNIST examples on a few hundred real images: the committed checkpoints, every recipe, the missing data."""

from pathlib import Path

import pytest

from tests.examples_at import EXAMPLES

from .fashion_runs import QUICK, report_of, run


@pytest.mark.long
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


@pytest.mark.parametrize("name", ["resnet20", "mobilenet", "lenet", "ensemble"])
def test_a_dry_run_accepts_it(name: str, dataset: Path, tmp_path: Path) -> None:
    """It builds the network and takes out what the recipe takes out."""
    code, printed = run(EXAMPLES / "fashion_mnist" / f"{name}.toml", dataset, tmp_path, "--dry-run")
    assert code == 0, printed
    assert "quantize" in [line.split()[1] for line in printed.splitlines()[1:-1]]


def test_without_the_data_the_error_says_where_to_get_it(tmp_path: Path) -> None:
    code, printed = run(EXAMPLES / "fashion_mnist" / "resnet20.toml", tmp_path, tmp_path)
    assert code == 2
    assert (
        f"Fashion-MNIST: no file {tmp_path}/train-images-idx3-ubyte.gz; on Debian: apt install dataset-fashion-mnist; "
        "elsewhere: download the four gzip files from github.com/zalandoresearch/fashion-mnist and set FASHION_MNIST to "
        "their folder"
    ) in printed
