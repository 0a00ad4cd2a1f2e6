"""A run killed again and again, against one that was never killed: ``python benches/results/kills.py OUT [--kills N]``.

SIGKILL at random moments of the digits example with a short training, inside the training too; the same command goes on
each time, and a run that gets to its end is followed by another. After every kill: nothing that was finished is done
again. At the end of every run: stages, all artefacts and the limits' statuses are those of the run that was never
killed, whose choices by time it takes over (`--like`), every finished file is whole, and nothing half done lies about.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgesmith.core import digest

RECIPE = Path(__file__).resolve().parents[2] / "examples" / "digits" / "recipe.toml"
SHORT = (
    "distill.epochs=4",
    "measure.seconds=0.2",
    "measure.restarts=2",
    "limits.confidence=0.75",
    "limits.speedup=0.1",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    whole, code = options.out / "whole", start(options.out / "whole").wait()
    length = time.monotonic() - started
    wanted, moments, kills, runs, moment = facts(whole) | {"code": code}, random.Random(options.seed), 0, 0, ""
    print(f"never killed: {length:.0f} s, exit code {code}")
    while kills < options.kills:
        run, finished = options.out / f"killed-{runs:02d}", dict[str, str]()
        while True:
            process = start(run, "--like", str(whole))
            try:
                code = process.wait(timeout=moments.uniform(0, length) if kills < options.kills else None)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills, code, moment = kills + 1, -9, where(run)
            now = done(run)
            # What is needed for a while only leaves when the run ends; whatever comes back must be the same.
            again = [name for name, content in finished.items() if now.get(name, content) != content]
            assert not again, f"done again: {again}"
            finished |= now
            if code != -9:
                break
            print(f"kill {kills:3d} in {run.name}, {moment}: {len(now)} results finished", flush=True)
        assert facts(run) | {"code": code} == wanted, f"{run}: other results than those of {whole}"
        check_whole(run)
        runs += 1
        print(f"{run.name}: the same stages, artefact and statuses", flush=True)
    print(f"{kills} kills in {runs} runs, {time.monotonic() - started:.0f} s: nothing differed, nothing was done twice")


def start(run: Path, *options: str) -> subprocess.Popen[bytes]:
    changes = [part for change in SHORT for part in ("--set", change)]
    command = [sys.executable, "-m", "edgesmith", "compress", str(RECIPE), "--out", str(run), *changes, *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def done(run: Path) -> dict[str, str]:
    """Every finished result and the digest of what it says of itself, its seconds included."""
    return {path.parent.relative_to(run).as_posix(): digest.of_file(path) for path in sorted(run.glob("*/*/done.json"))}


def where(run: Path) -> str:
    """The last line of the log: what was going on."""
    log = run / "log.txt"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return lines[-1].strip() if lines else "before the log"


def facts(run: Path) -> dict[str, Any]:
    """What two runs of one recipe share where the second is like the first."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    return {
        "stages": [(stage["id"], stage["digest"]) for stage in report["stages"]],
        "scores": [stage["accuracy"] for stage in report["stages"]],
        "artifacts": [each["digest"] for each in report["artifacts"]],
        "statuses": {limit["name"]: limit["status"] for limit in report["limits"]},
    }


def check_whole(run: Path) -> None:
    half = [*run.rglob(".partial-*"), *run.glob("work/*")]
    assert not half, f"left half done: {half}"
    for path in run.glob("*/*/done.json"):
        for name, content in json.loads(path.read_text(encoding="utf-8"))["files"].items():
            assert digest.of_file(path.parent / name) == content, f"{path.parent / name}: not what was written"


if __name__ == "__main__":
    main()
