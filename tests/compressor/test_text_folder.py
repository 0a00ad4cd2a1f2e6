"""Where an encoder comes from, and what does not belong together in its folder."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import transformers

from edgesmith.compressor.text import TextEncoder
from edgesmith.core.errors import TaskError

from .tiny_encoder import WORDS, write_encoder, write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny-bert")


def test_half_an_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(folder, place)
    tensors = safetensors.torch.load_file(place / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layer.1." not in name and "pooler" not in name}
    safetensors.torch.save_file(kept, place / "model.safetensors", metadata={"format": "pt"})
    encoder = TextEncoder.open(place, tokens=8)
    with pytest.raises(TaskError) as caught:
        encoder.load_weights(encoder.classifier(2)())
    assert str(caught.value) == (
        f"{place / 'model.safetensors'}: 16 of the encoder's tensors are missing (first: "
        "'encoder.layer.1.attention.output.LayerNorm.bias') and would stay as they were drawn; is it the file of another "
        "model, or half of one?"
    )


def changed(folder: Path, place: Path, **settings: object) -> Path:
    """A copy of the encoder's folder with another config.json."""
    shutil.copytree(folder, place)
    config = json.loads((folder / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, **settings}))
    return place


def test_weights_that_do_not_fit_or_cannot_be_read_are_refused(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def refusal(place: Path) -> str:
        encoder = TextEncoder.open(place, tokens=8)
        with pytest.raises(TaskError) as caught:
            encoder.load_weights(encoder.classifier(2)())
        return str(caught.value)

    wide = changed(folder, tmp_path / "wide", hidden_size=32)
    assert refusal(wide) == (
        f"{wide}/model.safetensors: 37 tensors have other shapes than config.json says (first: "
        "'embeddings.LayerNorm.bias' is (16,), not (32,)); they belong to different models"
    )
    assert "[transformers]" not in capfd.readouterr().err
    cut = changed(folder, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:2000])
    assert refusal(cut).startswith(f"{cut}/model.safetensors: cannot read the weights: ")


def test_code_that_comes_with_a_model_is_not_run_and_not_asked_about(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever would say yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    parts = {"AutoConfig": "own.Own", "AutoModel": "own.Net"}
    own = changed(folder, tmp_path / "own", model_type="own", auto_map=parts)
    (own / "own.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(TaskError) as caught:
        TextEncoder.open(own, tokens=8)
    assert str(caught.value).startswith(
        f"{own}/config.json: not the configuration of a model that transformers {transformers.__version__} knows, and "
        f"code that comes with a model is not run (The repository {own} contains custom code which must be executed"
    )
    (own / "config.json").write_text("{")
    with pytest.raises(TaskError, match=r" is not run \(It looks like the config file at .* is not a valid JSON file"):
        TextEncoder.open(own, tokens=8)


def test_what_is_no_encoder_of_tokens_is_refused(folder: Path, tmp_path: Path) -> None:
    for number, config in enumerate((transformers.T5Config(), transformers.CLIPConfig())):
        place = changed(folder, tmp_path / str(number))
        (place / "config.json").write_text(json.dumps(config.to_dict()))
        with pytest.raises(TaskError) as caught:
            TextEncoder.open(place, tokens=8)
        assert str(caught.value) == (
            f"{place}: a model of the type '{config.model_type}' is no encoder of tokens alone; take one like BERT, "
            "RoBERTa or MiniLM"
        )


def test_a_package_holds_an_encoder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "tiny_encoder_package"
    shutil.copytree(folder, package / "model")
    (package / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert TextEncoder.open("tiny_encoder_package:model", tokens=8).folder == package / "model"


def test_a_name_on_the_hub_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three files of it, none of which is a pickle."""
    asked: list[object] = []

    def download(name: str, *, revision: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        asked.append((name, revision, allow_patterns, local_files_only))
        if local_files_only and len(asked) == 1:
            raise FileNotFoundError("not fetched yet")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for _ in range(2):
        assert TextEncoder.open("somebody/tiny-bert", tokens=8, revision="v1").folder == folder
    files = ["config.json", "model.safetensors", "tokenizer.json"]
    # What is there is taken, whatever the hub has by now.
    assert asked == [("somebody/tiny-bert", "v1", files, there) for there in (True, False, True)]


def test_a_name_on_the_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, **_: object) -> str:
        raise ConnectionError("no route to host\nmore of that")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(TaskError) as caught:
        TextEncoder.open("somebody/tiny-bert")
    assert str(caught.value) == (
        "encoder 'somebody/tiny-bert': neither a folder nor in an installed package, and the Hugging Face hub does not give "
        "it (no route to host); where there is a network, fetch it (hf download somebody/tiny-bert --local-dir encoder) and "
        "name the folder"
    )


def test_a_folder_that_was_mistyped_is_not_asked_for_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    for source in (Path("encoder"), "./encoder", "/models/encoder", "models/bert/encoder"):
        with pytest.raises(TaskError) as caught:
            TextEncoder.open(source)
        assert str(caught.value) == f"encoder '{source}': neither a folder nor in an installed package"


def test_ends_of_lines_that_are_words_do_not_move_the_others(folder: Path, tmp_path: Path) -> None:
    place, words = tmp_path / "copy", [*WORDS[:4], "\u2028", "\x85", "", "twice", "twice", "end"]
    shutil.copytree(folder, place)
    write_tokenizer(place, [*WORDS[:4], "\u2028", "\x85", "other", "twice", "again", "end"])
    (place / "vocab.txt").write_bytes("\n".join(words).encode())
    assert TextEncoder.open(place, tokens=8).tokens == 8


def test_a_tokenizer_that_says_nothing_of_padding_fits_any(folder: Path, tmp_path: Path) -> None:
    """RoBERTa's pads with 1, which its tokenizer.json need not say; padded places are masked."""
    place = tmp_path / "copy"
    shutil.copytree(folder, place)
    settings = json.loads((folder / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**settings, "pad_token_id": 1}))
    write_tokenizer(place, ["<s>", "<pad>", *WORDS[2:]])
    assert TextEncoder.open(place, tokens=8).encode(["good"])["input_ids"].tolist() == [[2, 4, 3, 1, 1, 1, 1, 1]]
    write_tokenizer(place, ["<s>", "nothing", *WORDS[2:]])
    assert TextEncoder.open(place, tokens=8).encode(["good"])["attention_mask"].sum() == 3


def test_a_folder_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    def refusal(place: Path, tokens: int = 8) -> str:
        with pytest.raises(TaskError) as caught:
            TextEncoder.open(place, tokens=tokens)
        return str(caught.value)

    assert refusal(folder, 13) == f"{folder}: texts of 13 tokens; the model takes 3 to 12"
    place = tmp_path / "copy"
    shutil.copytree(folder, place)
    write_tokenizer(place, [*WORDS[1:], "[PAD]"])
    assert refusal(place) == (
        f"{place}: tokenizer.json pads with 9 ('[PAD]'), config.json says 0; they belong to different models: take the "
        "tokenizer that the model was trained with"
    )
    write_tokenizer(place, [*WORDS[:8], "not", "a"])
    (place / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    assert refusal(place) == (
        f"{place}: 'a' is token 9 in tokenizer.json, 8 in vocab.txt; they belong to different models: take the tokenizer that "
        "the model was trained with"
    )
    (place / "vocab.txt").unlink()
    write_tokenizer(place, WORDS)
    settings = json.loads((folder / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**settings, "model_type": "roberta"}))
    assert refusal(place, 12) == f"{place}: texts of 12 tokens; the model takes 3 to 11"  # its positions start at 1
    (place / "config.json").write_text(json.dumps(settings))
    write_tokenizer(place, [*WORDS, "more"])
    assert refusal(place) == (
        f"{place}: tokenizer.json knows 11 tokens, but the model's embedding has 10 rows; they belong to different models: "
        "take the tokenizer that the model was trained with"
    )
    config = json.loads((folder / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "vocab_size": 139}))
    assert refusal(place).startswith(
        f"{place}: tokenizer.json knows 11 tokens, but the model's embedding has 139 rows; "
    )
    (place / "tokenizer.json").write_text("{}")
    assert refusal(place).startswith(f"{place}/tokenizer.json: not a tokenizer: ")
    (place / "model.safetensors").unlink()
    assert refusal(place) == (
        f"{place}: no encoder's folder, model.safetensors is missing; it needs config.json, model.safetensors, tokenizer.json"
    )
