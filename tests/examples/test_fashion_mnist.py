"""The Fashion-MNIST examples on a few hundred real images: the committed checkpoints, every recipe, the missing data."""

from pathlib import Path

import pytest

from tests.examples_at import EXAMPLES

from .fashion_runs import QUICK, report_of, run


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "original", "speedup", "file_ratio"),
    [("mobilenet", 0.88, 1.5, 0.166), ("lenet", 0.9, 4.0, 0.25)],
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


def test_resnet20s_recipe_is_accepted(dataset: Path, tmp_path: Path) -> None:
    """Its stages are among MobileNet's; a dry run builds the network and takes its blocks out."""
    code, printed = run(EXAMPLES / "fashion_mnist" / "resnet20.toml", dataset, tmp_path, "--dry-run")
    assert code == 0, printed
    assert [line.split()[1] for line in printed.splitlines()[1:5]] == ["prune-blocks", "distill", "export", "quantize"]


def test_without_the_data_the_error_says_where_to_get_it(tmp_path: Path) -> None:
    code, printed = run(EXAMPLES / "fashion_mnist" / "resnet20.toml", tmp_path, tmp_path)
    assert code == 2
    assert (
        f"Fashion-MNIST: no file {tmp_path}/train-images-idx3-ubyte.gz; on Debian: apt install dataset-fashion-mnist; "
        "elsewhere: download the four gzip files from github.com/zalandoresearch/fashion-mnist and set FASHION_MNIST to "
        "their folder"
    ) in printed
