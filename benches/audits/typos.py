"""Typing errors, each on one screen (after Belinkov & Bisk, ICLR 2018, arXiv:1711.02173)."""

import dataclasses
import re
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

_WORD = re.compile(r"[^\W\d_]+")
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = {row[i]: row[max(0, i - 1) : i] + row[i + 1 : i + 2] for row in _ROWS for i in range(len(row))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Typo:
    """`function` takes a word and a generator; a word that it cannot change comes back as it is."""

    function: Callable[[str, np.random.Generator], str]
    sizes: tuple[float, float, float, float, float]  # share of the words, at the severities 1 to 5


def swapped_letters(word: str, rng: np.random.Generator) -> str:
    """Two neighbours inside the word change places; the first and the last letter stay."""
    places = [i for i in range(1, len(word) - 2) if word[i] != word[i + 1]]
    if not places:
        return word
    i = int(rng.choice(places))
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def missing_letters(word: str, rng: np.random.Generator) -> str:
    """A letter inside the word is left out."""
    if len(word) < 4:
        return word
    i = int(rng.integers(1, len(word) - 1))
    return word[:i] + word[i + 1 :]


def wrong_letters(word: str, rng: np.random.Generator) -> str:
    """A letter becomes its neighbour on an English keyboard."""
    places = [i for i, letter in enumerate(word) if letter.lower() in _NEIGHBOURS]
    if len(word) < 2 or not places:
        return word
    i = int(rng.choice(places))
    near = str(rng.choice(list(_NEIGHBOURS[word[i].lower()])))
    return word[:i] + (near.upper() if word[i].isupper() else near) + word[i + 1 :]


TYPOS: Mapping[str, Typo] = {
    "swapped-letters": Typo(function=swapped_letters, sizes=(0.05, 0.1, 0.2, 0.3, 0.5)),
    "missing-letters": Typo(function=missing_letters, sizes=(0.05, 0.1, 0.2, 0.3, 0.5)),
    "wrong-letters": Typo(function=wrong_letters, sizes=(0.05, 0.1, 0.2, 0.3, 0.5)),
}


def mistype(name: str, texts: Sequence[str], indices: np.ndarray, severity: int, seed: int) -> list[str]:
    """Texts as a typist leaves them; severity 0 changes nothing.

    Every text has randomness of its own, which depends on seed, name and its index: the words that a severity changes
    are changed in the same way by the higher ones.

    Args:
        name: in `TYPOS`.
        texts: N of them.
        indices: of the texts in their split, `(N,)`.
        severity: 0 to 5.
    """
    if severity == 0:
        return list(texts)
    return [_mistyped(TYPOS[name], text, severity, [seed, zlib.crc32(name.encode()), int(index)])
            for text, index in zip(texts, indices, strict=True)]  # fmt: skip


def _mistyped(typo: Typo, text: str, severity: int, seed: list[int]) -> str:
    parts, end = [], 0
    for number, match in enumerate(_WORD.finditer(text)):
        rng = np.random.default_rng([*seed, number])
        changed = rng.random() < typo.sizes[severity - 1]
        parts += [text[end : match.start()], typo.function(match[0], rng) if changed else match[0]]
        end = match.end()
    return "".join([*parts, text[end:]])
