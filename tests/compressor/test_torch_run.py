"""The original of a run as torch runs it: the same numbers, eagerly and compiled, and only its own memory."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from edgesmith.compressor import torch_run
from edgesmith.compressor.candidate import Candidate, state_of

TASK = """
import numpy as np
import edgesmith
from torch import nn

data = np.ones((20_000, 400), np.float32)


def build():
    return nn.Sequential(nn.Linear(400, 100), nn.BatchNorm1d(100), nn.Dropout(0.5), nn.Linear(100, 3)).train()


def task():
    split = edgesmith.ArraySplit({"x": data}, np.zeros(20_000, np.int64))
    return edgesmith.Task(name="t", model=build, train=split, validation=split, test=split)
"""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """What the openers set is meant for a process of their own."""
    import torch._dynamo
    import torch._inductor.config

    torch_run._task.cache_clear()
    with torch._dynamo.config.patch(recompile_limit=8), torch._inductor.config.patch(compile_threads=1):
        yield


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "task.py").write_text(TASK)
    folder = tmp_path / "runs" / "t"
    (folder / torch_run.ORIGINAL).parent.mkdir(parents=True)
    recipe = 'task = "../../task.py"\n[[stages]]\nuse = "export"\n[limits]\ndrop = 0.5\n'
    (folder / "recipe.toml").write_text(recipe)
    return folder


def stored(run: Path) -> Candidate:
    """A candidate with weights of its own, saved where a run keeps the original."""
    task, _ = torch_run._task(str(run))
    torch.manual_seed(1)
    module = task.model()
    candidate = Candidate(factory=task.model, example={}, edits=(), weights=state_of(module))
    candidate.save(run / torch_run.ORIGINAL)
    return candidate


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
@pytest.mark.parametrize("open_", [torch_run.open_eager, torch_run.open_compiled])
def test_the_numbers_are_those_of_the_candidate(run: Path, open_: object) -> None:
    if open_ is torch_run.open_compiled and torch_run.cannot_compile():
        return  # what is said then is in tests/cli/test_bench.py
    candidate = stored(run)
    session = open_(str(run), 1)  # type: ignore[operator]
    for batch in (1, 5):
        x = np.random.default_rng(batch).standard_normal((batch, 400)).astype(np.float32)
        with torch.inference_mode():
            expected = candidate.module()(torch.tensor(x)).numpy()
        np.testing.assert_allclose(session.run({"x": x})["output"], expected, rtol=1e-4, atol=1e-5)
        session.bind({"x": x})()
    assert torch.get_num_threads() == 1


def test_the_tasks_data_is_not_the_models_memory(run: Path) -> None:
    stored(run)
    torch_run._task.cache_clear()
    found = torch_run.open_eager(str(run), 1).foreign_bytes
    assert 30e6 < found < 60e6  # 32 MB of samples
