"""The segmentation example with a network that has learnt little: masks, mean IoU and the whole chain."""

from pathlib import Path

import pytest

from tests.examples_at import EXAMPLES

from .fashion_runs import QUICK, report_of, run


@pytest.mark.long
def test_dense_outputs(dataset: Path, tmp_path: Path) -> None:
    """Segmentation with a network that has learnt little: masks, mean IoU and the whole chain."""
    folder = tmp_path / "segmentation"
    folder.mkdir()
    source = (EXAMPLES / "segmentation" / "task.py").read_text()
    small = source.replace("4_500", "200").replace("cut = 4_000", "cut = 160").replace("500, seed=1", "40, seed=1")
    small = small.replace("width: int = 16", "width: int = 8").replace(
        "Path(__file__).parents[1]", f"Path({str(EXAMPLES)!r})"
    )
    small = small.replace("epochs: int = 12", "epochs: int = 2")
    (folder / "task.py").write_text(small)
    (folder / "recipe.toml").write_text((EXAMPLES / "segmentation" / "recipe.toml").read_text())
    report: dict = report_of(tmp_path, run(folder / "recipe.toml", dataset, tmp_path, *QUICK))  # type: ignore[type-arg]
    assert report["main_metric"] == "miou"
    assert 0.03 < report["original"]["accuracy"] < 0.9
    assert report["final"]["macs"] <= 0.5 * report["original"]["macs"]
    assert report["final"]["metrics"]["miou"]["kind"] == "statistic"
