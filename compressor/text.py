"""Text: a Hugging Face encoder and its tokenizer from this machine, as a network of token ids and their mask."""

import dataclasses
import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.errors import DataError, TaskError

INPUTS = ("input_ids", "attention_mask")
TOKENIZER = "tokenizer.json"
_NEEDED = ("config.json", "model.safetensors", TOKENIZER)
_PADDING = 128  # embeddings are padded to a multiple of this at most


class TextClassifier(nn.Module):
    """Logits `(N, classes)` of token ids and mask `(N, tokens)`: a linear head on the mean of the last states."""

    def __init__(self, folder: str | Path, classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        transformers = load_transformers()
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        self.encoder = transformers.AutoModel.from_config(config)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(config.hidden_size, classes)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Padding, where the mask is 0, has no part in the answer."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * weights).sum(1) / weights.sum(1).clamp(min=1.0)
        logits: torch.Tensor = self.head(self.dropout(mean))
        return logits


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """An encoder's folder, checked, and how long its texts are."""

    folder: Path
    tokens: int  # texts are cut to this length and padded to it, special tokens included

    @classmethod
    def open(cls, source: str | Path, tokens: int = 128) -> "TextEncoder":
        """Find an encoder on this machine; nothing is ever downloaded.

        Args:
            source: a folder with `config.json`, `model.safetensors` and `tokenizer.json`; or `package:folder`, in an
                installed package.
            tokens: length of a text.

        Raises:
            TaskError: no such folder or package, a file that is missing, a tokenizer of another model, a length beyond
                the model's.
        """
        folder = _found(source)
        missing = [name for name in _NEEDED if not (folder / name).is_file()]
        if missing:
            raise TaskError(f"{folder}: no encoder's folder, {missing[0]} is missing; it needs {', '.join(_NEEDED)}")
        config = load_transformers().AutoConfig.from_pretrained(folder, local_files_only=True)
        known, rows = _tokenizer(folder).get_vocab_size(), config.vocab_size
        if not known <= rows < known + _PADDING:
            raise TaskError(
                f"{folder}: {TOKENIZER} knows {known:,} tokens, but the model's embedding has {rows:,} rows; "
                "they belong to different models: take the tokenizer that the model was trained with"
            )
        longest = getattr(config, "max_position_embeddings", None)
        if not 3 <= tokens <= (longest or tokens):
            raise TaskError(f"{folder}: texts of {tokens} tokens; the model takes 3 to {longest or 'any number'}")
        return cls(folder=folder, tokens=tokens)

    def classifier(self, classes: int, dropout: float = 0.1) -> Callable[[], nn.Module]:
        """The `model` of a task: builds the architecture, without weights."""
        return functools.partial(TextClassifier, str(self.folder), classes, dropout)

    def load_weights(self, module: nn.Module) -> None:
        """The `load_weights` of a task: the encoder's trained weights; the head stays as it was drawn."""
        trained = load_transformers().AutoModel.from_pretrained(self.folder, local_files_only=True)
        assert isinstance(module, TextClassifier)
        module.encoder.load_state_dict(trained.state_dict())

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Token ids and attention mask, int64 `(N, tokens)`; what is longer is cut, its last special token kept.

        Raises:
            DataError: a text that is empty, or of which the tokenizer knows nothing; names it.
        """
        tokenizer = _tokenizer(self.folder)
        unknown = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "[UNK]")
        tokenizer.enable_truncation(self.tokens)
        tokenizer.enable_padding(length=self.tokens, **_padding(tokenizer))
        encoded = tokenizer.encode_batch(list(texts))
        for number, (text, found) in enumerate(zip(texts, encoded, strict=True)):
            own = [id for id, special in zip(found.ids, found.special_tokens_mask, strict=True) if not special]
            if not own:
                raise DataError(f"text {number} is empty ({text!r}); leave it out, with its label")
            if all(token == unknown for token in own):
                raise DataError(
                    f"text {number} ({text[:40]!r}) has no token that the tokenizer of {self.folder.name} knows; is "
                    "it in another script than the model's? leave it out, or take a model for its language"
                )
        arrays = ([e.ids for e in encoded], [e.attention_mask for e in encoded])
        return {name: np.array(rows, np.int64) for name, rows in zip(INPUTS, arrays, strict=True)}

    def dynamic_axes(self) -> Mapping[str, Mapping[int, str]]:
        """The `dynamic_axes` of a task: the file takes texts of every length."""
        return {name: {1: "tokens"} for name in INPUTS}

    def files(self) -> tuple[Path, ...]:
        """The `files` of a task: the device needs the tokenizer."""
        return (self.folder / TOKENIZER,)


def _found(source: str | Path) -> Path:
    if Path(source).is_dir():
        return Path(source)
    package, _, inside = str(source).partition(":")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))) / inside
    raise TaskError(
        f"encoder '{source}': neither a folder nor in an installed package; nothing is downloaded from a hub: fetch it "
        f"first (hf download {source} --local-dir encoder) and name the folder"
    )


def _padding(tokenizer: Any) -> dict[str, Any]:
    """The padding token that the file itself names, or BERT's."""
    set_up = tokenizer.padding or {}
    token = set_up.get("pad_token", "[PAD]")
    return {"pad_token": token, "pad_id": set_up.get("pad_id", tokenizer.token_to_id(token) or 0)}


def _tokenizer(folder: Path) -> Any:
    load_transformers()
    import tokenizers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:  # the library raises a bare Exception
        raise TaskError(f"{folder / TOKENIZER}: not a tokenizer: {error}") from error


def load_transformers(who: str = "text") -> Any:
    """The package, quiet.

    Args:
        who: needs it, for the error.

    Raises:
        TaskError: it is not installed.
    """
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns of every CUDA library that it does not find
    try:
        import transformers
    except ImportError as error:
        raise TaskError(f'{who} needs transformers: pip install "edgesmith[hf]"') from error
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of loading, which takes no time
    return transformers
