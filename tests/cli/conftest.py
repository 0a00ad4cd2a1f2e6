"""A task small enough to run a whole recipe in seconds: digits, a narrow network, a short training."""

import dataclasses
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .gated import BASELINE, RUN
from .init_models import NETS
from .planted import judged_file, measure_again, relabel, report_of, write_report

TASK = """
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import edgesmith

images, labels = load_digits(return_X_y=True)
images = (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, 2, padding=1)
        self.norm2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.norm1(self.conv1(x)).relu()
        x = self.norm2(self.conv2(x)).relu()
        x = (self.norm3(self.conv3(x)) + x).relu()
        return self.head(x.mean((2, 3)))


def load(model):
    with open("trained.log", "a") as log:
        log.write("once\\n")
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    x, y = torch.tensor(images[:1000]), torch.tensor(labels[:1000])
    model.train()
    for step in range(60):
        chosen = torch.arange(step * 64, step * 64 + 64) % 1000
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()


def part(start, stop):
    return edgesmith.ArraySplit({"image": images[start:stop]}, labels[start:stop])


def task():
    return edgesmith.Task(
        name="small",
        model=Net,
        load_weights=load,
        train=part(0, 1000),
        validation=part(1000, 1300),
        test=part(1300, 1797),
        outputs=("logits",),
    )
"""

RECIPE = """
task = "task.py"
targets = ["onnxruntime-cpu", "tensorrt"]

[[stages]]
use = "prune"
macs_ratio = 0.6

[[stages]]
use = "distill"
epochs = 3

[[stages]]
use = "export"

[[stages]]
use = "quantize"
samples = 128

[build]
batch = [1, 4, 8]

[measure]
batch_sizes = [1, 8]
seconds = 0.05

[limits]
drop = 0.05
file_ratio = 0.9
"""


@pytest.fixture(autouse=True)
def no_cache_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command keeps for the next time is this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_project(folder: Path) -> None:
    """Task and recipe."""
    folder.mkdir()
    (folder / "task.py").write_text(TASK)
    (folder / "recipe.toml").write_text(RECIPE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with classes of a user's own; they are forgotten afterwards."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose recipe was run, once for all tests and for all processes they run in."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    shared.mkdir(exist_ok=True)
    folder, done = shared / "my project", shared / "done"
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            write_project(folder)
            command = [sys.executable, "-m", "edgesmith", "compress", "recipe.toml"]
            run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
            (folder / "stdout.txt").write_text(run.stdout)
            (folder / "stderr.txt").write_text(run.stderr)
            done.touch()
    return folder


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to change, which is the current folder."""
    folder = tmp_path / "my project"
    shutil.copytree(finished_once, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a task and a recipe, which is the current one; its name has a space."""
    folder = tmp_path / "my project"
    write_project(folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def last(finished: Path) -> Path:
    """The last release is the finished run itself, with the float form judged whatever was the fastest."""
    shutil.copy(RUN / "measurements/03-export/model.onnx", judged_file(RUN))
    relabel(RUN, precision="float32", dialect="float")
    measure_again(RUN, "final", judged_file(RUN))
    limits = tuple(each for each in report_of(RUN).limits if each.name in ("drop", "file_ratio"))
    write_report(
        RUN, limits=limits, final=dataclasses.replace(report_of(RUN).final, file_bytes=judged_file(RUN).stat().st_size)
    )
    BASELINE.parent.mkdir()
    shutil.copy(RUN / "report.json", BASELINE)
    shutil.copy(RUN / "predictions.npz", BASELINE.parent)
    return finished
