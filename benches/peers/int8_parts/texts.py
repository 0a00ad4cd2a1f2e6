"""A MiniLM encoder that is fine-tuned on rated sentences: is a film review positive?

The encoder and the sentences are those of examples/text_sentiment.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from .fashion import CALIBRATION, example

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_TOKENS, _BATCH, _RATE = 48, 32, 5e-5
_SHARES = (0.72, 0.08)  # of the sentences: to train on, to choose on; the rest judges


class Classifier(nn.Module):
    """Logits `(N, 2)`, from three inputs `(N, tokens)`."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        logits: torch.Tensor = self.bert(input_ids, attention_mask, token_type_ids).logits
        return logits


def module(folder: Path) -> nn.Module:
    """The fine-tuned network that `prepare` left in `folder`."""
    from transformers import AutoModelForSequenceClassification

    return Classifier(AutoModelForSequenceClassification.from_pretrained(folder / "bert")).eval()


def prepare(folder: Path) -> None:
    """Fetch, fine-tune for one epoch, export with dynamic batch and length; see `fashion.prepare`."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source, texts, positive = _rated()
    tokens = AutoTokenizer.from_pretrained(source)(
        texts, padding="max_length", truncation=True, max_length=_TOKENS, return_tensors="np"
    )
    arrays = {name: tokens[name].astype(np.int64) for name in INPUTS}
    order = np.random.default_rng(0).permutation(len(texts))
    cuts = np.cumsum([round(share * len(texts)) for share in _SHARES])
    train, validation, test = np.split(order, cuts)
    torch.manual_seed(0)
    bert = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2)
    _tune(Classifier(bert), arrays, positive, train)
    bert.save_pretrained(folder / "bert")
    chosen: dict[str, Any] = {name: array[train[:CALIBRATION]] for name, array in arrays.items()}
    np.savez(folder / "calibration.npz", **chosen)
    for part, indices in (("validation", validation), ("test", test)):
        chosen = {name: array[indices] for name, array in arrays.items()}
        np.savez(folder / f"{part}.npz", labels=positive[indices], **chosen)
    _export(module(folder), folder / "model.onnx")


def _rated() -> tuple[Path, list[str], np.ndarray]:
    """The encoder's folder; sentences rated -0.5 or lower, or 0.5 or higher, and whether they are positive."""
    sentences = example("sentences", "text_sentiment")
    source, files = sentences.fetch()
    texts, ratings = sentences.rated(files, "film")
    clear = np.abs(ratings) >= 0.5
    kept = [text for text, sure in zip(texts, clear, strict=True) if sure]
    return source, kept, (ratings[clear] > 0).astype(np.int64)


def _tune(model: nn.Module, arrays: dict[str, np.ndarray], labels: np.ndarray, train: np.ndarray) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), _RATE)
    model.train()
    for start in range(0, len(train) - _BATCH + 1, _BATCH):
        chosen = train[start : start + _BATCH]
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(*(torch.from_numpy(array[chosen]) for array in arrays.values()))
        loss = functional.cross_entropy(logits.float(), torch.from_numpy(labels[chosen]))
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        optimizer.step()
    print(f"loss of the last batch {float(loss.detach()):.3f}", flush=True)


def _export(model: nn.Module, path: Path) -> None:
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    example = {name: torch.ones(2, _TOKENS, dtype=torch.int64) for name in INPUTS}
    torch.onnx.export(
        model,
        (),
        str(path),
        kwargs=example,
        input_names=list(INPUTS),
        output_names=["logits"],
        dynamic_shapes=dict.fromkeys(INPUTS, axes),
        external_data=False,
        verbose=False,
    )
