"""What every stage did, measured on validation data; written by the pipeline, read by the report."""

import dataclasses
from collections.abc import Sequence

_PRUNE = ("prune", "prune-blocks")
_GOES_WITH_PRUNE = ("distill", "finetune", *_PRUNE)  # what repairs a prune, or prunes on before the repair


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One stage's result as the target would run it. The first entry is the original."""

    id: str  # the stage's id in the recipe; "original" for the first
    name: str  # what the stage is: "prune"
    seconds: float  # wall time of the stage itself
    accuracy: float  # main metric on the validation split
    latency_ms: float | None  # median of one batch of the first batch size; None: no runtime for the target here
    macs: int | None
    parameters: int | None
    file_bytes: int
    digest: str  # of the stage's result
    old: float | None = None  # main metric of the old task on its validation split; None: the task names none
    notes: tuple[str, ...] = ()  # what the stage has to say: what was kept, what was refused and why


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Entries in the order the stages ran."""

    entries: tuple[LedgerEntry, ...] = ()

    def with_entry(self, entry: LedgerEntry) -> "Ledger":
        return Ledger((*self.entries, entry))

    def with_notes(self, id: str, notes: Sequence[str]) -> "Ledger":
        """With more to say of the stage called `id`."""
        noted = (dataclasses.replace(e, notes=(*e.notes, *notes)) if e.id == id else e for e in self.entries)
        return Ledger(tuple(noted))

    def since(self, id: str) -> "Ledger":
        """From the entry called `id` on."""
        return Ledger(self.entries[[entry.id for entry in self.entries].index(id) :])

    def guilty(self, higher_is_better: bool) -> str | None:
        """The stage that lost most of the main metric; a prune and the training that follows it are judged as one.

        Returns:
            The id (`prune + distill` for a pair), or None where nothing was lost.
        """
        sign = 1.0 if higher_is_better else -1.0
        losses: dict[str, float] = {}
        entries = self.entries
        index = 1
        while index < len(entries):
            last = index
            label = entries[index].id
            pruned = entries[index].name in _PRUNE
            while pruned and last + 1 < len(entries) and entries[last + 1].name in _GOES_WITH_PRUNE:
                last += 1
                label += f" + {entries[last].id}"
            losses[label] = sign * (entries[index - 1].accuracy - entries[last].accuracy)
            index = last + 1
        worst = max(losses, key=lambda name: losses[name], default=None)
        return worst if worst is not None and losses[worst] > 0 else None
