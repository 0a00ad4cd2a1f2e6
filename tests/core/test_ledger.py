"""Which stage lost the metric."""

import pytest

from edgesmith.core.ledger import Ledger, LedgerEntry


def ledger(*stages: tuple[str, str, float]) -> Ledger:
    """Entries from (id, name, accuracy)."""
    book = Ledger()
    for id_, name, accuracy in stages:
        book = book.with_entry(
            LedgerEntry(
                id=id_,
                name=name,
                seconds=1.0,
                accuracy=accuracy,
                latency_ms=None,
                macs=None,
                parameters=None,
                file_bytes=1,
                digest="0",
            )
        )
    return book


ORIGINAL = ("original", "original", 0.95)


def test_the_largest_loss_is_guilty() -> None:
    book = ledger(ORIGINAL, ("export", "export", 0.95), ("int8", "quantize", 0.90), ("fuse", "fuse", 0.89))
    assert book.guilty(higher_is_better=True) == "int8"


def test_a_prune_is_judged_by_what_its_training_leaves() -> None:
    """A prune alone costs 40 points; after distillation one is missing, and quantization lost two."""
    book = ledger(ORIGINAL, ("prune", "prune", 0.55), ("distill", "distill", 0.94), ("int8", "quantize", 0.92))
    assert book.guilty(higher_is_better=True) == "int8"


def test_the_pair_is_named_as_a_pair() -> None:
    book = ledger(ORIGINAL, ("cut", "prune", 0.55), ("teach", "distill", 0.90), ("int8", "quantize", 0.89))
    assert book.guilty(higher_is_better=True) == "cut + teach"


def test_prunes_in_a_row_and_all_their_training_are_one() -> None:
    book = ledger(
        ORIGINAL,
        ("p1", "prune", 0.80),
        ("d1", "distill", 0.93),
        ("p2", "prune", 0.70),
        ("f2", "finetune", 0.90),
        ("int8", "quantize", 0.89),
    )
    assert book.guilty(higher_is_better=True) == "p1 + d1 + p2 + f2"


def test_a_prune_without_training_stands_alone() -> None:
    book = ledger(ORIGINAL, ("p1", "prune", 0.80), ("int8", "quantize", 0.79))
    assert book.guilty(higher_is_better=True) == "p1"


def test_training_without_a_prune_is_judged_alone() -> None:
    book = ledger(ORIGINAL, ("d1", "distill", 0.90), ("f1", "finetune", 0.88))
    assert book.guilty(higher_is_better=True) == "d1"


def test_the_sign_follows_the_metric() -> None:
    book = ledger(("original", "original", 1.0), ("p1", "prune", 0.8), ("int8", "quantize", 1.1))
    assert book.guilty(higher_is_better=False) == "int8"
    assert book.guilty(higher_is_better=True) == "p1"


@pytest.mark.parametrize(
    "stages",
    [(), (ORIGINAL,), (ORIGINAL, ("int8", "quantize", 0.95)), (ORIGINAL, ("d", "distill", 0.97))],
    ids=["empty", "original", "equal", "better"],
)
def test_nobody_is_guilty_of_nothing(stages: tuple[tuple[str, str, float], ...]) -> None:
    assert ledger(*stages).guilty(higher_is_better=True) is None


def test_a_ledger_with_one_more_entry_is_a_new_ledger() -> None:
    first = ledger(ORIGINAL)
    second = first.with_entry(first.entries[0])
    assert (len(first.entries), len(second.entries)) == (1, 2)
