"""`edgesmith init`: what it writes runs as it is, and what it cannot start from is refused in words that help."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgesmith.cli import main
from edgesmith.core.errors import ExitCode

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


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 2, 3, padding=1)

    def forward(self, image):
        return {"aside": image.mean(), "mask": self.conv2(self.conv1(image).relu())}


def trained():
    torch.manual_seed(0)
    return Net()


number = 3
"""
# Verdicts here are about what was generated, not about speed: two restarts are the fewest that 75 % allow.
QUICK = tuple(
    f"--set={change}"
    for change in (
        "measure.restarts=2", "measure.seconds=0.05", "measure.batch_sizes=[1]",
        "limits.confidence=0.75", "limits.speedup=0.01", "limits.file_ratio=2.0",
    )
)  # fmt: skip
TAUGHT = (*QUICK, "--set=distill.epochs=1")


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
        nn.functional.cross_entropy(module(x[chosen]), y[chosen]).backward()
        optimizer.step()
    return module.eval()


def write_onnx(path: str = "model.onnx", name: str = "logits") -> None:
    from edgesmith.core.values import TensorSpec
    from edgesmith.exporters.from_torch import export

    images = digits()[0][:16]
    spec = TensorSpec(name="image", dtype="float32", shape=("batch", 1, 8, 8))
    export(train(network("Net")), {"image": images}, (spec,), (name,), Path(path))


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


@pytest.mark.slow
def test_a_class_with_safetensors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_digits()
    save_file(train(network("Net")).state_dict(), "net.safetensors")
    assert main(["init", "nets.py:Net", "--data", "digits.npz", "--weights", "net.safetensors", "--out", "my own"]) == 0
    assert capsys.readouterr().out == (
        "nets.py:Net: image float32 (batch, 1, 8, 8) -> logits\n"
        "1,079 samples to train, 359 to choose on, 359 to judge on\n"
        "judged by accuracy, limit on its loss 0.03\n"
        "wrote my own/task.py and my own/recipe.toml; a dry run accepts them. Next:\n"
        "  edgesmith compress 'my own/recipe.toml' --dry-run\n"
        "  edgesmith compress 'my own/recipe.toml'\n"
    )
    assert sorted(path.name for path in Path("my own").iterdir()) == ["recipe.toml", "task.py"]
    assert ruff(Path("my own/task.py")) == ""
    text = Path("my own/recipe.toml").read_text()
    assert [line for line in text.splitlines() if line.startswith(("use", "macs_ratio", "# ["))] == [
        'use = "prune" # whole channels leave, the least important first',
        "macs_ratio = 0.5 # what is left of the multiply-adds; less is faster and harder to teach",
        'use = "distill" # the original teaches, beside the labels', 'use = "export" # to ONNX, compared with torch',
        "use = \"quantize\" # INT8; ranges from the 'train' split", "# [build]",
    ]  # fmt: skip
    assert verdict(Path("my own"), *TAUGHT).keys() == {"drop", "speedup", "file_ratio"}


@pytest.mark.slow
def test_a_huggingface_folder(folder: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16, num_labels=2,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained("bert")
    tokens = np.random.default_rng(0).integers(5, 60, (400, 8))
    mask = np.ones_like(tokens)
    np.savez("text.npz", attention_mask=mask, input_ids=tokens, labels=(tokens[:, 0] > 30).astype(np.int32)[:, None])
    assert main(["init", "bert", "--data", "text.npz", "--out", "out"]) == 0
    assert ruff(Path("out/task.py")) == ""
    text = Path("out/recipe.toml").read_text()
    assert "macs_ratio = 0.7" in text
    assert 'only = ["network.bert.encoder.layer.*.intermediate.dense", "network.bert.pooler.dense"]' in text
    task = Path("out/task.py").read_text()
    assert "from transformers import AutoConfig, BertForSequenceClassification" in task
    assert 'labels = file["labels"].astype(np.int64).reshape(-1)' in task
    assert "drop" in verdict(Path("out"), *TAUGHT)


@pytest.mark.slow
def test_an_onnx_file_without_labels_is_held_to_its_own_answers(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_onnx()
    np.savez("images.npz", x=digits()[0].astype(np.float64))
    assert main(["init", "model.onnx", "--data", "images.npz", "--out", "out", "--name", "my digits"]) == 0
    assert (
        "judged by accuracy, limit on its loss 0.03 (no labels: agreement with the original)\n"
        in capsys.readouterr().out
    )
    assert ruff(Path("out/task.py")) == ""
    task = Path("out/task.py").read_text()
    assert "measured is agreement with the original, not whether either is right." in task
    assert '"image": file["x"].astype(np.float32),' in task
    assert 'name="my-digits"' in task
    assert verdict(Path("out"), *QUICK)["drop"] == "pass"
    report = json.loads(Path("out/run/report.json").read_text())
    assert report["original"]["accuracy"] == 1.0


def test_an_onnx_file_with_labels_and_a_test_file(folder: Path) -> None:
    write_onnx()
    images, labels = digits()
    np.savez("digits.npz", image=images[:1000], labels=labels[:1000])
    np.savez("test.npz", image=images[1000:], labels=labels[1000:])
    assert main(["init", "model.onnx", "--data", "digits.npz", "--test", "test.npz", "--out", "out"]) == 0
    assert ruff(Path("out/task.py")) == ""
    task = Path("out/task.py").read_text()
    assert '"""800 samples to find ranges with, 200 to choose on, 797 to judge on.' in task
    assert "original_answers" not in task


def test_embeddings_are_held_to_closeness(folder: Path) -> None:
    write_onnx(name="embedding")
    np.savez("images.npz", image=digits()[0])
    assert main(["init", "model.onnx", "--data", "images.npz", "--out", "out"]) == 0
    assert ruff(Path("out/task.py")) == ""
    assert "higher_is_better=False" in Path("out/task.py").read_text()
    assert main(["compress", "out/recipe.toml", "--dry-run"]) == 0


def test_regression_with_prefixed_test_arrays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = digits()
    torch.save({"state_dict": {f"module.{k}": v for k, v in network("Flat").state_dict().items()}}, "flat.pt")
    np.savez(
        "flat.npz", pixels=images[:1000], scale=images[:1000].max((1, 2, 3))[:, None] + labels[:1000, None], labels=labels[:1000] / 9.0,
        test_pixels=images[1000:], test_scale=labels[1000:, None] * 1.0, test_labels=labels[1000:] / 9.0,
    )  # fmt: skip
    assert main(["init", "nets.py:Flat", "--data", "flat.npz", "--weights", "flat.pt", "--out", "out"]) == 0
    assert "800 samples to train, 200 to choose on, 797 to judge on\njudged by mae" in capsys.readouterr().out
    task = Path("out/task.py").read_text()
    assert ruff(Path("out/task.py")) == ""
    assert 'loss="mse",\n        metrics=("mae",),\n        outputs=("prediction",),' in task
    assert 'labels = file["labels"].astype(np.float32).reshape(-1, 1)' in task
    assert 'state = {key.removeprefix("module."): value for key, value in state.items()}' in task
    assert "            scale=scale,\n" in task  # `unused` stands between the two, so they go by keyword
    assert main(["compress", "out/recipe.toml", "--dry-run"]) == 0


def test_tied_weights_that_stand_in_the_file_once(folder: Path) -> None:
    from safetensors.torch import save_model

    write_digits()
    save_model(train(network("Tied")), "tied.safetensors")
    assert main(["init", "nets:Tied", "--data", "digits.npz", "--weights", "tied.safetensors", "--out", "out"]) == 0
    assert ruff(Path("out/task.py")) == ""
    assert "load_model(model, WEIGHTS)  # knows which weights are shared" in Path("out/task.py").read_text()


def test_a_dataclass_answer_and_a_function_that_returns_the_model(folder: Path) -> None:
    write_digits()
    torch.save(network("Structured").state_dict(), "net.pt")
    assert main(["init", "nets.py:Structured", "--data", "digits.npz", "--weights", "net.pt", "--out", "out"]) == 0
    assert "        return answer.logits\n" in Path("out/task.py").read_text()
    assert main(["init", "nets.py:trained", "--data", "digits.npz"]) == 0
    assert "load_weights" not in Path("trained/task.py").read_text()
    assert "model=trained," in Path("trained/task.py").read_text()


def test_dense_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, _ = digits()
    save_file(network("Pixels").state_dict(), "pixels.safetensors")
    np.savez("pixels.npz", image=images, labels=(images[:, 0] > 0.5).astype(np.uint8))
    assert (
        main(["init", "nets.py:Pixels", "--data", "pixels.npz", "--weights", "pixels.safetensors", "--out", "out"]) == 0
    )
    assert "-> mask\n" in capsys.readouterr().out  # `aside` has no axis of samples
    assert 'metrics=("miou",)' in Path("out/task.py").read_text()


def test_copies_are_kept_out_of_the_test_split(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = digits()
    write_digits(image=np.concatenate([images, images[:50]]), labels=np.concatenate([labels, labels[:50]]))
    assert main(["init", "nets.py:trained", "--data", "digits.npz", "--out", "out"]) == 0
    assert "1,079 samples to train, 359 to choose on, 359 to judge on\n" in capsys.readouterr().out
    assert ruff(Path("out/task.py")) == ""
    from edgesmith.compressor.task_file import load_task

    task = load_task("task.py", Path("out"))
    assert sum(len(split) for split in (task.train, task.validation, task.test) if split) == 1797


def test_existing_files_stay_without_force(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_digits()
    Path("out").mkdir()
    Path("out/recipe.toml").write_text("mine")
    arguments = ["nets.py:trained", "--data", "digits.npz", "--out", "out"]
    assert refused(capsys, *arguments) == (
        "RunDirectoryError: out/recipe.toml: exists already; choose another folder with --out, or use --force\n"
    )
    assert Path("out/recipe.toml").read_text() == "mine"
    assert main(["init", *arguments, "--force"]) == 0
    assert "[limits]" in Path("out/recipe.toml").read_text()


def test_data_that_cannot_be_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = (
        "; write one with three lines of numpy:\n  import numpy as np\n"
        "  inputs, labels = ...  # your own samples, prepared as in training: (N, ...) and (N,)\n"
        '  np.savez("data.npz", input=inputs, labels=labels)  # one array per input of the model, by its name\n'
    )
    assert refused(capsys, "nets.py:trained") == (
        "DataError: nets.py:trained: --data is missing: a verdict needs real samples, made-up ones are never used" + how
    )
    given = ("nets.py:trained", "--data", "digits.npz")
    assert refused(capsys, *given) == "DataError: digits.npz: cannot read the data: No such file or directory" + how
    images, labels = digits()
    write_digits(image=images[:, :, :4].astype(object))
    assert refused(capsys, *given) == (
        "DataError: digits.npz: not a plain .npz file: it holds pickled Python objects, which are never opened" + how
    )
    np.savez("digits.npz", image=images)
    assert refused(capsys, *given) == (
        "DataError: digits.npz: no array 'labels': nets.py:trained is judged, and taught, by labels; "
        "add labels=... to np.savez\n"
    )
    write_digits(labels=labels + 1)
    assert refused(capsys, *given) == (
        "DataError: digits.npz: no output of nets.py:trained fits the labels (int64 (1797,), classes 1 to 10): "
        "for 4 samples it returns output (4, 10); wanted is (N, classes) for integer labels (N,)\n"
    )
    write_digits(extra=images)
    assert refused(capsys, *given) == (
        "DataError: digits.npz: has the inputs image, extra, but forward() of nets.py:trained takes image; "
        "give each array the name of its parameter\n"
    )
    np.savez("digits.npz", image=images[:30], labels=labels[:30])
    assert refused(capsys, *given) == (
        "DataError: 6 test samples cannot prove any useful limit on the accuracy; give at least 11 to judge on "
        "(159 prove a drop of 3 points, 2,773 one of 1 point)\n"
    )
    write_digits(image=np.where(images > 0.9, np.nan, images))
    assert refused(capsys, *given) == "DataError: digits.npz: 'image' holds NaN or infinity; clean the data\n"


def test_bytes_are_not_scaled_by_guess(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, _ = digits()
    write_digits(image=(images * 16).astype(np.uint8))
    said = refused(capsys, "nets.py:trained", "--data", "digits.npz")
    assert said.startswith(
        "TaskError: nets.py:trained: forward() on samples of digits.npz (image uint8 (4, 1, 8, 8)) raised RuntimeError: "
    )


def test_models_that_cannot_be_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_digits()
    said = {
        reference: refused(capsys, reference, "--data", "digits.npz")
        for reference in (
            "nets.py:NeedsWidth",
            "nets.py:Net",
            "nets.py:Nat",
            "nets.py",
            "none.py:Net",
            "digits.npz",
            "nets.py:dict",
        )
    }
    assert said["nets.py:NeedsWidth"] == (
        "TaskError: nets.py:NeedsWidth: NeedsWidth() needs width; write a function without arguments beside it, "
        "def build(): return NeedsWidth(width=...), and name that: nets.py:build\n"
    )
    assert said["nets.py:Net"] == (
        "TaskError: nets.py:Net: its weights are other ones each time it is built, so it is not trained; give them "
        "with --weights FILE.safetensors or FILE.pt, or name a function that returns the trained module\n"
    )
    assert said["nets.py:Nat"].startswith(
        "TaskError: nets.py:Nat: no class or function 'Nat' in nets.py; its modules: Net,"
    )
    assert said["nets.py"].startswith("TaskError: nets.py: name the class or function in it too: nets.py:Net, ")
    assert said["none.py:Net"] == "TaskError: none.py:Net: no file none.py\n"
    assert said["digits.npz"] == (
        "TaskError: digits.npz: not a model that is known; give package.module:Class, path/file.py:Class, "
        "a Hugging Face folder or an ONNX file\n"
    )


def test_weights_that_do_not_fit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_digits()
    state = network("Net").state_dict()
    given = ("nets.py:Net", "--data", "digits.npz", "--weights")
    save_file({"stem.weight": torch.ones(3), **{k: v for k, v in state.items() if "head" not in k}}, "a.safetensors")
    assert refused(capsys, *given, "a.safetensors") == (
        "ArtifactError: a.safetensors: these are not the weights of nets.py:Net: keys: "
        "2 missing (head.bias, head.weight), 1 unknown (stem.weight)\n"
    )
    save_file(state | {"conv1.bias": torch.full((16,), float("nan"))}, "b.safetensors")
    assert refused(capsys, *given, "b.safetensors") == (
        "DataError: b.safetensors: weight 'conv1.bias' holds NaN or infinity; train or load the model again\n"
    )
    torch.save(nn.Linear(2, 2), "whole.pt")
    assert refused(capsys, *given, "whole.pt") == (
        "ArtifactError: whole.pt: not a file of plain weights, and nothing else is unpickled; save them again with "
        "torch.save(model.state_dict(), ...)\n"
    )
    torch.save({"epoch": 3}, "empty.pt")
    assert refused(capsys, *given, "empty.pt") == (
        "ArtifactError: empty.pt: no state dict found in it, it holds: epoch; save model.state_dict()\n"
    )
    Path("cut.safetensors").write_bytes(Path("a.safetensors").read_bytes()[:200])
    assert refused(capsys, *given, "cut.safetensors").startswith(
        "ArtifactError: cut.safetensors: cannot read the weights: "
    )
    assert refused(capsys, "net.pt", "--data", "digits.npz") == (
        "TaskError: net.pt: weights alone are no model; name the class, and the file with --weights: "
        "edgesmith init path/file.py:Class --weights net.pt\n"
    )


def test_folders_that_are_no_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_digits()
    Path("model").mkdir()
    Path("model/config.json").write_text('{"architectures": ["OwnNet"]}')
    assert refused(capsys, "model", "--data", "digits.npz") == (
        "TaskError: model: a Hugging Face folder holds config.json and model.safetensors, not here: model.safetensors; "
        "save the model with model.save_pretrained(folder)\n"
    )
    save_file({"a": torch.ones(1)}, "model/model.safetensors")
    said = refused(capsys, "model", "--data", "digits.npz")
    assert said.startswith(
        "TaskError: model/config.json: architectures is ['OwnNet'], which is no class of transformers "
    )
    shutil.rmtree("model")
