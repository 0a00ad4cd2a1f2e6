"""Models of a user's own and what `edgesmith init` makes of them: what its tests share."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgesmith.cli import main
from edgesmith.core.errors import ExitCode
from tests.quick import BRIEF

NETS = """
import dataclasses

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 32, 3, 2, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(32, 10)
        self.train()
        self.register_forward_hook(lambda module, inputs, output: output)

    def forward(self, image):
        x = self.norm1(self.conv1(image)).relu()
        return self.head(self.drop(self.conv2(x).relu().mean((2, 3))))


class NeedsWidth(Net):
    def __init__(self, width, depth=1):
        super().__init__(width)


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(64, 48)
        self.head = nn.Linear(48, 1)

    def forward(self, pixels, unused=None, scale=None):
        x = self.inner(pixels.flatten(1)).relu()
        return self.head(x if scale is None else x * scale)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.second = nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.head = nn.Linear(64, 10)

    def forward(self, image):
        return self.head(self.second(self.first(image.flatten(1)).relu()).relu())


@dataclasses.dataclass
class Answer:
    features: torch.Tensor
    logits: torch.Tensor


class Structured(Net):
    def forward(self, image):
        x = self.conv2(self.norm1(self.conv1(image)).relu()).mean((2, 3))
        return Answer(x[:, :5], self.head(x))


class Featured(Net):
    def forward(self, image):
        features = self.conv2(self.conv1(image)).relu().mean((2, 3))
        return {"features": features, "scores": self.head(features)}


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 2, 3, padding=1)

    def forward(self, image):
        return {"aside": image.mean(), "mask": self.conv2(self.conv1(image).relu())}


class LastTensor(Pixels):
    def forward(self, image):
        return super().forward(image)["mask"].movedim(1, -1)


class LastMapping(Pixels):
    def forward(self, image):
        return {"mask": super().forward(image)["mask"].movedim(1, -1)}


class LastTuple(Pixels):
    def forward(self, image):
        return (super().forward(image)["mask"].movedim(1, -1),)


def trained():
    torch.manual_seed(0)
    return Net()


number = 3
"""
# Verdicts here are about what was generated, not about speed.
QUICK = (*BRIEF, "--set=limits.speedup=0.01", "--set=limits.file_ratio=2.0")
TAUGHT = (*QUICK, "--set=distill.epochs=1")


def digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32), labels


def write_digits(**changes: np.ndarray) -> None:
    images, labels = digits()
    np.savez("digits.npz", **({"image": images, "labels": labels} | changes))


def network(name: str) -> nn.Module:
    sys.path.insert(0, str(Path.cwd()))
    import nets

    module: nn.Module = getattr(nets, name)()
    return module


def train(module: nn.Module) -> nn.Module:
    images, labels = digits()
    x, y = torch.tensor(images), torch.tensor(labels)
    optimizer = torch.optim.AdamW(module.parameters(), 1e-2)
    for step in range(80):
        chosen = torch.arange(step * 64, step * 64 + 64) % len(x)
        optimizer.zero_grad()
        answer = module(x[chosen])
        nn.functional.cross_entropy(answer["scores"] if isinstance(answer, dict) else answer, y[chosen]).backward()
        optimizer.step()
    return module.eval()


def write_onnx(path: str = "model.onnx", *names: str, of: str = "Net") -> None:
    """An exported network with these outputs; none named: `logits`."""
    from edgesmith.core.values import TensorSpec
    from edgesmith.exporters.from_torch import export

    images = digits()[0][:16]
    spec = TensorSpec(name="image", dtype="float32", shape=("batch", 1, 8, 8))
    export(train(network(of)), {"image": images}, (spec,), names or ("logits",), Path(path))


def ruff(path: Path) -> str:
    """What the linter and the formatter of a newcomer's project say."""
    said = ""
    for command in (["check", "--select", "E,F,W,I,UP,B,SIM"], ["format", "--diff"]):
        for length in ("88", "120"):
            options = ["--isolated", "--line-length", length, str(path)]
            done = subprocess.run([sys.executable, "-m", "ruff", *command, *options], capture_output=True, text=True)
            said += "" if done.returncode == 0 else done.stdout + done.stderr
    return said


def verdict(folder: Path, *options: str) -> dict[str, str]:
    """Limit -> status of a run of the generated recipe."""
    code = main(["compress", str(folder / "recipe.toml"), *options, "--out", str(folder / "run"), "--json"])
    report = json.loads((folder / "run" / "report.json").read_text())
    assert (
        code == {"pass": ExitCode.PASS, "fail": ExitCode.LIMIT_MISSED, "unproven": ExitCode.UNPROVEN}[report["verdict"]]
    )
    assert report["final"]["accuracy"] is not None
    return {limit["name"]: limit["status"] for limit in report["limits"]}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a refused init, which has written nothing."""
    before = {path for path in Path().rglob("*") if "__pycache__" not in path.parts}
    assert main(["init", *arguments]) == ExitCode.USAGE
    assert {path for path in Path().rglob("*") if "__pycache__" not in path.parts} == before
    return capsys.readouterr().err
