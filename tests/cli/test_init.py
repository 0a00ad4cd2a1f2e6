"""`edgesmith init`: what it writes runs as it is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgesmith.cli import main

from .init_models import QUICK, TAUGHT, digits, network, refused, ruff, train, verdict, write_digits, write_onnx


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
        vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
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
def test_a_token_classifier_whose_padding_has_no_label(folder: Path) -> None:
    """As many tokens as tags, so that the axes fit either way."""
    from transformers import BertConfig, BertForTokenClassification

    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16, num_labels=5,
    )  # fmt: skip
    BertForTokenClassification(config).save_pretrained("tagger")
    tokens = np.random.default_rng(0).integers(5, 60, (400, 5))
    mask = np.ones_like(tokens)
    mask[:, 4] = 0
    np.savez("tags.npz", input_ids=tokens, attention_mask=mask, labels=np.where(mask, tokens % 5, -100))
    assert main(["init", "tagger", "--data", "tags.npz", "--out", "out"]) == 0
    assert ruff(Path("out/task.py")) == ""
    assert "        return answer.logits.movedim(-1, 1)\n" in Path("out/task.py").read_text()
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
    write_onnx("model.onnx", "embedding")
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


def test_scores_are_judged_and_not_the_features_before_them(folder: Path) -> None:
    write_digits()
    save_file(network("Featured").state_dict(), "net.safetensors")
    assert (
        main(["init", "nets.py:Featured", "--data", "digits.npz", "--weights", "net.safetensors", "--out", "out"]) == 0
    )
    assert 'outputs=("scores", "features"),  # the first is judged' in Path("out/task.py").read_text()
    assert ruff(Path("out/task.py")) == ""


def test_an_onnx_file_whose_second_output_is_judged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_digits()
    write_onnx("model.onnx", "features", "scores", of="Featured")
    assert main(["init", "model.onnx", "--data", "digits.npz", "--out", "out"]) == 0
    assert ruff(Path("out/task.py")) == ""
    assert 'metrics=(dataclasses.replace(METRICS["accuracy"], output="scores"),)' in Path("out/task.py").read_text()
    assert verdict(Path("out"), *QUICK)["drop"] == "pass"
    assert json.loads(Path("out/run/report.json").read_text())["original"]["accuracy"] > 0.7


def test_dense_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, _ = digits()
    save_file(network("Pixels").state_dict(), "pixels.safetensors")
    np.savez("pixels.npz", image=images, labels=(images[:, 0] > 0.5).astype(np.uint8))
    assert (
        main(["init", "nets.py:Pixels", "--data", "pixels.npz", "--weights", "pixels.safetensors", "--out", "out"]) == 0
    )
    assert "-> mask\n" in capsys.readouterr().out  # `aside` has no axis of samples
    assert 'metrics=("miou",)' in Path("out/task.py").read_text()


def test_classes_on_the_last_axis(folder: Path) -> None:
    images, _ = digits()
    save_file(network("Pixels").state_dict(), "pixels.safetensors")
    labels = np.where(images[:, 0] > 0.9, -100, images[:, 0] > 0.5)
    np.savez("pixels.npz", image=images, labels=labels)
    for name, said in (("LastTensor", "answer"), ("LastMapping", 'answer["mask"]'), ("LastTuple", "answer[0]")):
        given = ["--data", "pixels.npz", "--weights", "pixels.safetensors", "--out", name]
        assert main(["init", f"nets.py:{name}", *given]) == 0
        assert f"        return {said}.movedim(-1, 1)\n" in Path(name, "task.py").read_text()
        assert ruff(Path(name, "task.py")) == ""


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
