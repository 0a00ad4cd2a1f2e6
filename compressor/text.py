"""Text: a Hugging Face encoder and its tokenizer, as a network of token ids and their mask."""

import collections
import contextlib
import dataclasses
import functools
import importlib.util
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import nn

from ..core.errors import DataError, TaskError
from .text_scripts import foreign, known_scripts

INPUTS = ("input_ids", "attention_mask")
TOKENIZER = "tokenizer.json"
_NEEDED = ("config.json", "model.safetensors", TOKENIZER)
_DIFFERENT = "they belong to different models: take the tokenizer that the model was trained with"
_AT_ONCE = 256  # texts
_PADDING = 128  # embeddings are padded to a multiple of this at most
_COUNT_FROM_PADDING = frozenset(  # positions begin behind its id
    {"camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta", "xlm-roberta", "xmod"}
)


class TextsCutWarning(UserWarning):
    """Texts that are longer than an encoder takes."""


class TextClassifier(nn.Module):
    """Logits `(N, classes)` of token ids and mask `(N, tokens)`: a linear head on the mean of the last states."""

    def __init__(self, folder: str | Path, classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        config = load_config(Path(folder))
        self.encoder = load_transformers().AutoModel.from_config(config, trust_remote_code=False)
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
    def open(cls, source: str | Path, tokens: int = 128, revision: str | None = None) -> "TextEncoder":
        """Find an encoder: on this machine, or by its name on the Hugging Face hub.

        Args:
            source: a folder with `config.json`, `model.safetensors` and `tokenizer.json`; or `package:folder`, in an
                installed package; or a name on the hub, of which these three files alone are fetched, once.
            tokens: length of a text.
            revision: of a name on the hub: a branch, tag or commit.

        Raises:
            TaskError: no such folder or package, a hub that cannot be reached, a file that is missing, a model that
                is no encoder of tokens, a tokenizer of another model, a length beyond the model's.
        """
        folder = _found(source, revision)
        missing = [name for name in _NEEDED if not (folder / name).is_file()]
        if missing:
            raise TaskError(f"{folder}: no encoder's folder, {missing[0]} is missing; it needs {', '.join(_NEEDED)}")
        config = load_config(folder)
        if getattr(config, "is_encoder_decoder", False) or not isinstance(getattr(config, "vocab_size", None), int):
            raise TaskError(
                f"{folder}: a model of the type '{config.model_type}' is no encoder of tokens alone; take one like "
                "BERT, RoBERTa or MiniLM"
            )
        known, rows = _tokenizer(folder).get_vocab_size(), config.vocab_size
        if not known <= rows < known + _PADDING:
            raise TaskError(
                f"{folder}: {TOKENIZER} knows {known:,} tokens, but the model's embedding has {rows:,} rows; "
                f"{_DIFFERENT}"
            )
        _check_tokenizer(folder, config)
        longest = getattr(config, "max_position_embeddings", None)
        if longest and config.model_type in _COUNT_FROM_PADDING:
            longest -= (config.pad_token_id or 0) + 1
        if not 3 <= tokens <= (longest or tokens):
            raise TaskError(f"{folder}: texts of {tokens} tokens; the model takes 3 to {longest or 'any number'}")
        return cls(folder=folder, tokens=tokens)

    def classifier(self, classes: int, dropout: float = 0.1) -> Callable[[], nn.Module]:
        """The `model` of a task: builds the architecture, without weights."""
        return functools.partial(TextClassifier, str(self.folder), classes, dropout)

    def load_weights(self, module: nn.Module) -> None:
        """The `load_weights` of a task: the encoder's trained weights; the head stays as it was drawn.

        Raises:
            TaskError: the file cannot be read, has weights of other shapes, or lacks some of the encoder's; a pooler's
                are of no use here.
        """
        file = self.folder / "model.safetensors"
        options = {"local_files_only": True, "trust_remote_code": False, "ignore_mismatched_sizes": True}
        with _quiet():  # what it says of the weights stands in `found`
            try:
                trained, found = load_transformers().AutoModel.from_pretrained(
                    self.folder, output_loading_info=True, **options
                )
            except safetensors.SafetensorError as error:
                raise TaskError(f"{file}: cannot read the weights: {error}") from error
        other = sorted(found["mismatched_keys"])
        if other:
            name, there, here = other[0]
            raise TaskError(
                f"{file}: {len(other)} tensors have other shapes than config.json says (first: '{name}' is "
                f"{tuple(there)}, not {tuple(here)}); they belong to different models"
            )
        missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
        if missing:
            raise TaskError(
                f"{file}: {len(missing)} of the encoder's tensors are missing (first: "
                f"'{missing[0]}') and would stay as they were drawn; is it the file of another model, or half of one?"
            )
        assert isinstance(module, TextClassifier)
        module.encoder.load_state_dict(trained.state_dict())

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Token ids and attention mask, int64 `(N, tokens)`; what is longer is cut, its last special token kept.

        Warns:
            TextsCutWarning: how many of the texts are cut.

        Raises:
            DataError: one text in place of several, or something that is no text; a text that is empty or of which the
                tokenizer knows nothing, texts that are mostly in a script that it has no words of; names them.
        """
        _check_texts(texts)
        tokenizer, file = _tokenizer(self.folder), self.folder / TOKENIZER
        unknown, known = _knows(file, file.stat().st_mtime_ns)
        tokenizer.enable_truncation(self.tokens)
        tokenizer.enable_padding(length=self.tokens, **_padding(tokenizer))
        arrays = {name: np.zeros((len(texts), self.tokens), np.int64) for name in INPUTS}
        others: list[tuple[int, str, str]] = []
        cut = 0
        for number, (text, found) in enumerate(zip(texts, _encoded(tokenizer, texts), strict=True)):
            for array, row in zip(arrays.values(), (found.ids, found.attention_mask), strict=True):
                array[number] = row
            cut += bool(found.overflowing)
            own = [id for id, special in zip(found.ids, found.special_tokens_mask, strict=True) if not special]
            if not own:
                raise DataError(f"text {number} is empty ({text!r}); leave it out, with its label")
            script = None if known is None else foreign(text, known)
            if script is not None:
                others.append((number, text, script))
            elif all(token == unknown for token in own):
                raise DataError(
                    f"text {number} ({text[:40]!r}) has no token that the tokenizer of {self.folder.name} knows; leave "
                    "it out, or take a model for its language"
                )
        if others:
            number, text, script = others[0]
            more = "" if len(others) == 1 else f"; so are {len(others) - 1} more ({_numbers(others[1:])})"
            raise DataError(
                f"text {number} ({text[:40]!r}) is written in {script}, of which the tokenizer of {self.folder.name} "
                f"has no words{more}; leave such texts out, or take a model for their language"
            )
        if cut:
            said = f"{cut} of {len(texts)} texts are longer than {self.tokens} tokens and are cut"
            warnings.warn(said, TextsCutWarning, stacklevel=2)
        return arrays

    def dynamic_axes(self) -> Mapping[str, Mapping[int, str]]:
        """The `dynamic_axes` of a task: the file takes texts of every length."""
        return {name: {1: "tokens"} for name in INPUTS}

    def files(self) -> tuple[Path, ...]:
        """The `files` of a task: the device needs the tokenizer."""
        return (self.folder / TOKENIZER,)


def _encoded(tokenizer: Any, texts: Sequence[str]) -> Iterator[Any]:
    """Of each text what the tokenizer says; it says all of a long text, so that many at once fill the memory."""
    every = list(texts)
    for start in range(0, len(every), _AT_ONCE):
        yield from tokenizer.encode_batch(every[start : start + _AT_ONCE])


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):  # a sequence of letters
        raise DataError(f"one text ({texts[:40]!r}) where a list of texts is wanted: give [text]")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"text {number} is no text but {text!r:.40} ({type(text).__name__}); leave it out, with its label"
            )
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise DataError(
                f"text {number} ({text[:40]!r}) holds half of a UTF-16 pair, which is no character; "
                'text.encode(errors="replace").decode() puts a question mark in its place'
            )


def _numbers(others: Sequence[tuple[int, str, str]], shown: int = 10) -> str:
    more = ", ..." if len(others) > shown else ""
    return ", ".join(str(number) for number, _, _ in others[:shown]) + more


def _found(source: str | Path, revision: str | None) -> Path:
    if Path(source).is_dir():
        return Path(source)
    package, _, inside = str(source).partition(":")
    spec = importlib.util.find_spec(package) if package.isidentifier() and package != "__main__" else None
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))) / inside
    if isinstance(source, Path) or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source):
        raise TaskError(f"encoder '{source}': neither a folder nor in an installed package")
    return _fetched(source, revision)


def _fetched(name: str, revision: str | None) -> Path:
    """What was fetched of it before, or from the Hugging Face hub."""
    load_transformers()
    import huggingface_hub

    fetch = functools.partial(huggingface_hub.snapshot_download, name, revision=revision, allow_patterns=list(_NEEDED))
    with contextlib.suppress(Exception):  # what is on this machine stays what it is, whatever the hub has by now
        folder = Path(fetch(local_files_only=True))
        if all((folder / needed).is_file() for needed in _NEEDED):
            return folder
    try:
        return Path(fetch())
    except Exception as error:  # no network, no such name, no leave: each raises a kind of its own
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TaskError(
            f"encoder '{name}': neither a folder nor in an installed package, and the Hugging Face hub does not give "
            f"it ({line}); where there is a network, fetch it (hf download {name} --local-dir encoder) and name the "
            "folder"
        ) from error


def _check_tokenizer(folder: Path, config: Any) -> None:
    """What both say of the vocabulary is the same: padding, and the words where `vocab.txt` lists them."""
    tokenizer = _tokenizer(folder)
    padding = _padding(tokenizer)
    named = tokenizer.token_to_id(padding["pad_token"]) is not None  # else it says nothing of padding
    if named and config.pad_token_id is not None and padding["pad_id"] != config.pad_token_id:
        raise TaskError(
            f"{folder}: {TOKENIZER} pads with {padding['pad_id']} ('{padding['pad_token']}'), config.json says "
            f"{config.pad_token_id}; {_DIFFERENT}"
        )
    listed = folder / "vocab.txt"
    text = listed.read_bytes().decode(errors="replace") if listed.is_file() else ""
    words = text.split("\n")  # some are other ends of lines
    counts = collections.Counter(words)
    for number, word in enumerate(word.removesuffix("\r") for word in words):
        found = tokenizer.token_to_id(word)
        if word and counts[word] == 1 and found not in (None, number):
            raise TaskError(f"{folder}: '{word}' is token {found} in {TOKENIZER}, {number} in vocab.txt; {_DIFFERENT}")


def _padding(tokenizer: Any) -> dict[str, Any]:
    """The padding token that the file itself names, or BERT's, or RoBERTa's."""
    set_up = tokenizer.padding or {}
    usual = "<pad>" if tokenizer.token_to_id("[PAD]") is None else "[PAD]"
    token = set_up.get("pad_token", usual)
    return {"pad_token": token, "pad_id": set_up.get("pad_id", tokenizer.token_to_id(token) or 0)}


@functools.lru_cache(maxsize=8)
def _knows(file: Path, changed: int) -> tuple[int | None, frozenset[str] | None]:
    """The id of what is in no vocabulary, or None; and the scripts that there are words of, None for pieces of bytes.

    Args:
        changed: when the file was, which makes it another one.
    """
    tokenizer = _tokenizer(file.parent)
    parts = json.loads(tokenizer.to_str())
    unknown = parts["model"].get("unk_id")
    if unknown is None:
        unknown = tokenizer.token_to_id(parts["model"].get("unk_token") or "[UNK]")
    steps = json.dumps([parts["normalizer"], parts["pre_tokenizer"]])
    of_bytes = "ByteLevel" in steps or parts["model"].get("byte_fallback")  # no script is foreign to it
    return unknown, None if of_bytes else known_scripts(tokenizer.get_vocab(with_added_tokens=False))


def _tokenizer(folder: Path) -> Any:
    load_transformers()
    import tokenizers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:  # the library raises a bare Exception
        raise TaskError(f"{folder / TOKENIZER}: not a tokenizer: {error}") from error


def load_config(folder: Path) -> Any:
    """A model's configuration; code that comes with it is neither run nor asked about.

    Raises:
        TaskError: a file that cannot be read, or is of a model that transformers does not know.
    """
    transformers = load_transformers()
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each kind of fault raises a kind of its own
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TaskError(
            f"{folder / 'config.json'}: not the configuration of a model that transformers {transformers.__version__} "
            f"knows, and code that comes with a model is not run ({line.strip()})"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the table that loading weights logs of those that are not used."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


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
