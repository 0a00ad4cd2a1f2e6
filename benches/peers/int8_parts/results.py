"""What is stored of a model, and what it comes to; what was measured of a file that is no longer there is left out."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from . import cells, profile, quality, quantizing, timing
from .cells import Cell
from .models import Model
from .peers import Peer

K = TypeVar("K")
Pair = tuple[int, int]  # batch, threads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """The cells of a model, by peer; those of timing by batch and threads."""

    model: Model
    float_bytes: int
    quantized: Mapping[str, Cell]
    quality: Mapping[str, Cell]
    times: Mapping[Pair, Cell]
    profiles: Mapping[int, Cell]  # by batch, of edgesmith's file in ONNX Runtime

    def kept(self, peer: str) -> bool:
        """Its file runs and is good enough to be used."""
        return bool(self.quality.get(peer, {}).get("kept", False))

    def speedup(self, peer: str, pair: Pair) -> Cell | None:
        """value, low, high; None where it was not timed."""
        found: Cell | None = self.times.get(pair, {"speedup": {}})["speedup"].get(peer)
        return found

    def worth(self, peer: str, pair: Pair) -> float | None:
        """What a user gains: the speed-up, or 1 where no file is good enough; None: not timed."""
        if pair not in self.times or peer not in self.quantized:
            return None
        if not self.kept(peer):
            return 1.0
        found = self.speedup(peer, pair)
        return None if found is None else float(found["value"])

    def faster(self, ours: str, pair: Pair, rivals: Sequence[str]) -> dict[str, float]:
        """Rivals' files that are good enough and faster than ours beyond both intervals, fastest first."""
        own = self.speedup(ours, pair) if self.kept(ours) else None
        limit = 1.0 if own is None else own["high"]
        speedups = {name: one for name, one in self.times[pair]["speedup"].items() if name in rivals}
        found = {name: one["value"] for name, one in speedups.items() if self.kept(name) and one["low"] > limit}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def closer(self, ours: str, rivals: Sequence[str]) -> dict[str, str]:
        """Rivals' files that lose less: accuracy beyond both intervals, or more decibels."""
        own, found = self.quality.get(ours, {}), {}
        for name, one in ((name, one) for name, one in self.quality.items() if name in rivals):
            if "drop" in own and "drop" in one and one["drop"]["high"] < own["drop"]["low"]:
                found[name] = f"{100 * one['value']:.2f} %"
            if "snr_db" in own and one.get("snr_db", -1.0) > own["snr_db"]:
                found[name] = f"{one['snr_db']:.1f} dB"
        return found


def read(root: Path, model: Model, peers: Sequence[Peer]) -> Results | None:
    """Everything that is stored; None where the model is not there."""
    file = root / "models" / model.name / "model.onnx"
    if not file.exists():
        return None
    quantized = _stored({peer.name: quantizing.cell_path(root, model, peer) for peer in peers})
    files = {name: cell.get("digest") for name, cell in quantized.items()}
    judged = _stored({peer.name: quality.cell_path(root, model, peer) for peer in peers})
    pairs = [(batch, threads) for threads in timing.THREADS for batch in model.batches]
    times = _stored({pair: timing.cell_path(root, model, *pair) for pair in pairs})
    profiles = _stored({batch: profile.cell_path(root, model, batch) for batch in model.batches})
    for cell in times.values():
        timed = cell["files"]
        cell["speedup"] = {
            name: one for name, one in cell["speedup"].items() if name in files and timed[name] == files[name]
        }
    return Results(
        model=model,
        float_bytes=file.stat().st_size,
        quantized=quantized,
        quality={name: cell for name, cell in judged.items() if cell["file"] == files.get(name)},
        times=times,
        profiles={batch: cell for batch, cell in profiles.items() if cell["file"] == files.get("edgesmith")},
    )


def _stored(paths: Mapping[K, Path]) -> dict[K, Cell]:
    found = {name: cells.stored(path) for name, path in paths.items()}
    return {name: cell for name, cell in found.items() if cell is not None}
