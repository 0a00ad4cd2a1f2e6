"""Energy counters: RAPL of the CPU's packages through Linux' powercap, NVML's of a GPU. Each says why it is missing.

A counter is of the whole package or GPU: other work and what it takes to be idle count too. So models are compared by
turns, and a figure by itself is an upper bound.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ...core.errors import MeasurementError
from .nvml import GPU_SESSIONS, Gpu

POWERCAP = Path("/sys/class/powercap")
# Of a window: RAPL is renewed every millisecond, NVML's counter every 20 to 100.
SHORTEST_MS = {"cpu": 200.0, "gpu": 1000.0}


class Counter(Protocol):
    """Counts up."""

    def joules(self) -> float: ...


class Rapl:
    """All packages of the CPU; AMD's are driven under Intel's name. Follows the kernel's powercap.rst.

    Args:
        root: the powercap folder.

    Raises:
        MeasurementError: there is none, or it cannot be read; says why.
    """

    def __init__(self, root: Path | None = None) -> None:
        root = POWERCAP if root is None else root
        if not root.is_dir():
            raise MeasurementError(f"no energy counter: {root} is not there (a virtual machine, or no RAPL)")
        zones: dict[str, Path] = {}
        for zone in sorted(root.glob("*-rapl*:*"), key=lambda path: (len(path.name), path.name)):
            name = zone / "name"
            if zone.name.count(":") == 1 and name.is_file() and name.read_text().startswith("package"):
                zones.setdefault(name.read_text().strip(), zone)  # intel-rapl-mmio counts the same package again
        if not zones:
            raise MeasurementError(f"no energy counter: {root} has no CPU package")
        self._zones = list(zones.values())
        try:
            self._last = self._read()
            self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in self._zones]
        except PermissionError as error:
            raise MeasurementError(
                f"no energy counter: {error.filename} may be read by root alone; run as root, or once: "
                f"sudo chmod a+r {root}/*/energy_uj"
            ) from error
        except (OSError, ValueError) as error:
            raise MeasurementError(f"no energy counter: {error}") from error
        self._total = 0

    def joules(self) -> float:
        """Energy since this was made; it has to be asked before a counter goes round twice (minutes)."""
        now = self._read()
        for last, value, largest in zip(self._last, now, self._ranges, strict=True):
            self._total += value - last if value >= last else value - last + largest
        self._last = now
        return self._total / 1e6

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]


def which(kinds: Sequence[str]) -> str:
    """The counter for sessions of these kinds, "cpu" or "gpu".

    Raises:
        MeasurementError: none for all of them, or it is not here; says why.
    """
    on_gpu = {kind in GPU_SESSIONS for kind in kinds}
    if len(on_gpu) > 1:
        raise MeasurementError("no energy counter is of CPU and GPU sessions alike")
    name = "gpu" if on_gpu == {True} else "cpu"
    opened(name).joules()
    return name


def why_not(kinds: Sequence[str]) -> str:
    """Why there is no counter for sessions of these kinds; empty: there is one."""
    try:
        which(kinds)
    except MeasurementError as error:
        return str(error)
    return ""


def opened(name: str) -> Counter:
    """A counter by what `which` calls it.

    Raises:
        MeasurementError: it is not here; says why.
    """
    if name == "cpu":
        return Rapl()
    try:
        return Gpu()
    except MeasurementError as error:
        raise MeasurementError(f"no energy counter: {error}") from error
