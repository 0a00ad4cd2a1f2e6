"""Which scripts a tokenizer has words of, and which texts are written in others."""

import collections
import functools
import unicodedata
from collections.abc import Iterable

_WORD = 3  # letters from which on a piece is a word, or a good part of one
_LEAST = 0.0005  # of all such pieces: English vocabularies hold a few Russian and Arabic ones by accident
_SIGNS = frozenset({"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"})  # one sign says as much as a word
_LEAST_SIGNS = 0.05  # of all pieces with letters; English vocabularies hold some hundreds
_FEW = 3  # letters that say nothing of a text's language: a name, a unit, an emoticon


@functools.lru_cache(maxsize=65536)
def script_of(character: str) -> str | None:
    """The script of a letter, or of a sign on one, as Unicode's names begin: "LATIN", "CYRILLIC"; None: neither."""
    if unicodedata.category(character)[0] not in "LM":
        return None
    script = unicodedata.name(character, "UNNAMED").split()[0]
    return None if script in ("COMBINING", "MODIFIER") else script  # accents, which any script may have


def known_scripts(vocabulary: Iterable[str]) -> frozenset[str]:
    """Scripts that a vocabulary has more of than single letters."""
    words: collections.Counter[str] = collections.Counter()
    signs = pieces = 0
    for piece in vocabulary:
        found = _scripts(piece)
        pieces += bool(found)
        signs += bool(found) and set(found) <= _SIGNS
        if len(found) >= _WORD and len(set(found)) == 1:
            words[found[0]] += 1
    known = {script for script, count in words.items() if count >= _LEAST * words.total()}
    return frozenset(known | _SIGNS if signs >= _LEAST_SIGNS * max(pieces, 1) else known - _SIGNS)


def foreign(text: str, known: frozenset[str]) -> str | None:
    """The commonest unknown script of a text that has more than half of its letters in such, or None."""
    if text.isascii() and "LATIN" in known:
        return None
    letters = collections.Counter(_scripts(text))
    unknown = {script: count for script, count in letters.items() if script not in known}
    if letters.total() < _FEW or 2 * sum(unknown.values()) <= letters.total():
        return None
    script = max(unknown, key=lambda script: unknown[script])
    return "Chinese characters" if script == "CJK" else script.capitalize()


def _scripts(text: str) -> list[str]:
    """Of its letters; fullwidth and mathematical ones are what they look like, a Korean syllable is its letters."""
    return [script for script in map(script_of, unicodedata.normalize("NFKD", text)) if script is not None]
