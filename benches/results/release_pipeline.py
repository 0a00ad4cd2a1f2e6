"""A release pipeline on unchanged work, again and again: what is not green is a false alarm.

One round is what docs/release-builds.md shows: `compress` into a new directory like the first round's, `gate` against
that round's report and, side by side, against its run directory, `verify --measure`. Every exit code is a line of
results.jsonl in the folder, written when it ends; the same command goes on where it was stopped, inside a round too.

    .venv/bin/python benches/results/release_pipeline.py FOLDER --times 200

The work is the small task of the command line's own tests. Ends with 0 where every command of every round was green.
"""

import argparse
import collections
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

RECIPE = """
task = "task.py"
targets = ["onnxruntime-cpu"]

[[stages]]
use = "prune"
macs_ratio = 0.6

[[stages]]
use = "distill"
epochs = 3

[[stages]]
use = "export"

[[stages]]
use = "quantize"
samples = 128

[measure]
batch_sizes = [8, 32]
seconds = 0.5

[limits]
drop = 0.05
speedup = 0.9
file_ratio = 0.4 # leaves INT8 alone: on some machines float is as fast, and the choice would change from run to run
"""
FIRST = "round-000"
SECONDS = 900.0
_SAID = 30  # lines that are kept of what was not green: a screen holds the reason


def commands(run: Path, first: Path) -> dict[str, list[str]]:
    """Of one round; the first has nothing to be compared with."""
    gate = ["gate", str(run), "--margin", "drop=0.02", "--margin", "speedup=0.1"]
    found = {"compress": ["compress", "recipe.toml", "--out", str(run)]}
    if run != first:
        found["compress"] += ["--like", str(first)]
        found["gate"] = [*gate, "--baseline", str(first / "report.json")]
        found["gate beside"] = [*gate, "--baseline", str(first)]
    return found | {"verify measured": ["verify", str(run), "--measure"]}  # which looks at digests and answers first


def finished(results: Path) -> list[dict[str, object]]:
    """Lines that were written whole."""
    text = results.read_text() if results.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def run_round(folder: Path, number: int, results: Path) -> None:
    """Every command of a round that has no line yet."""
    done = {each["command"] for each in finished(results) if each["round"] == number}
    run, first = Path("runs") / f"round-{number:03d}", Path("runs") / FIRST
    for name, arguments in commands(run, first).items():
        if name in done:
            continue
        started = time.monotonic()
        command = [sys.executable, "-m", "edgesmith", *arguments]
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
        said = [*ended.stdout.splitlines()[-_SAID:], *ended.stderr.splitlines()[-4:]] if ended.returncode else []
        line = {"round": number, "command": name, "code": ended.returncode, "said": said}
        with results.open("a") as stream:
            stream.write(json.dumps(line | {"seconds": round(time.monotonic() - started, 1)}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        if name == "compress" and ended.returncode not in (0, 3, 4):
            break  # nothing that could be judged; the line says so
    if number:
        shutil.rmtree(folder / run, ignore_errors=True)


def summary(found: list[dict[str, object]]) -> list[str]:
    """A table of commands and exit codes, and what was not green."""
    codes: dict[str, collections.Counter[object]] = collections.defaultdict(collections.Counter)
    for each in found:
        codes[str(each["command"])][each["code"]] += 1
    lines = ["| command | times | green | not green, by exit code |", "|---|---|---|---|"]
    for name, counts in codes.items():
        others = ", ".join(f"{code}: {count}" for code, count in sorted(counts.items(), key=str) if code != 0)
        lines.append(f"| {name} | {counts.total()} | {counts[0]} | {others} |")
    red = [each for each in found if each["code"] != 0]
    return [*lines, *(f"round {each['round']}, {each['command']}: {each['said']}" for each in red)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the rounds run and results.jsonl stands")
    parser.add_argument("--times", type=int, default=200, metavar="N", help="rounds after the first (default: 200)")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    task = importlib.import_module("tests.cli.conftest").TASK
    for name, text in (("task.py", task), ("recipe.toml", RECIPE)):
        if not (options.folder / name).exists():
            (options.folder / name).write_text(text)
    results = options.folder / "results.jsonl"
    if results.exists():  # a line that a kill cut off would join the next one
        results.write_text("".join(json.dumps(each) + "\n" for each in finished(results)))
    for number in range(options.times + 1):
        run_round(options.folder, number, results)
        print(f"round {number} of {options.times} done", file=sys.stderr)
    found = finished(results)
    print(*summary(found), sep="\n")
    return 0 if all(each["code"] == 0 for each in found) else 3


if __name__ == "__main__":
    sys.exit(main())
