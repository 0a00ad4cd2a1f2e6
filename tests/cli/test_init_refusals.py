"""What `edgesmith init` cannot start from is refused in words that help."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from .init_models import digits, network, refused, write_digits


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
        "DataError: 6 test samples cannot prove any useful limit on the accuracy; give at least 17 to judge on "
        "(220 prove a drop of 3 points, 3,099 one of 1 point)\n"
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


def test_an_encoder_without_a_head(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it pools is as wide as the network, and would be taken for that many classes."""
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=20, **sizes)).save_pretrained("encoder")
    tokens = np.random.default_rng(0).integers(0, 20, (100, 6))
    np.savez("text.npz", input_ids=tokens, labels=tokens[:, 0] % 2)
    capsys.readouterr()
    assert refused(capsys, "encoder", "--data", "text.npz") == (
        "TaskError: encoder: BertModel has no head: 'pooler_output' is no row of scores; give a model that was trained on "
        "these labels, or for texts write a task with edgesmith.TextEncoder, which puts a head on it and trains it\n"
    )
