"""What TensorRT for RTX says of the graphs in `lint_cases`, against what the linter says.

``python -m tests.exporters.linting.lint_truth`` in the checkout prints the table of benches/results; with ``onnx`` behind it the counts
for the test graphs of ONNX's own operators, which are parsed only.
"""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx

from edgesmith.exporters.linting.lint import check, refusals
from edgesmith.exporters.linting.lint_tensorrt import RULES

from .lint_cases import CASES, FALSE_ACCEPTS, FALSE_REJECTS

CHILD = Path(__file__).parent / "rtx_labels.py"


def labels(models: Mapping[str, onnx.ModelProto], folder: Path, mode: str = "build") -> dict[str, str]:
    """Name -> where TensorRT for RTX ended: "parse", "build", "crash" or "engine", which is a file that it takes."""
    for name, model in models.items():
        onnx.save(model, folder / f"{name}.onnx")
    found: dict[str, str] = {}
    while len(found) < len(models):  # a graph that kills the process leaves those behind it for the next one
        before, files = len(found), [str(folder / f"{name}.onnx") for name in models if name not in found]
        command = [sys.executable, str(CHILD), mode, str(folder / "labels.jsonl"), *files]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        lines = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
        found = {line["file"]: line["step"] for line in lines}
        assert len(found) > before, f"the child came to no graph: {done.stderr}"
    return found


def refusing(model: onnx.ModelProto) -> tuple[str, ...]:
    """The rules that refuse a model, once each."""
    return tuple(sorted({finding.rule for finding in refusals(check(model, RULES))}))


def table(found: Mapping[str, str]) -> str:
    """The confusion table, and every difference with its reason, as Markdown."""
    counts = Counter((found[name] == "engine", bool(refusing(case.graph()))) for name, case in CASES.items())
    steps = Counter(found.values())
    lines = [
        f"{len(CASES)} graphs: {steps['engine']} built, {steps['parse']} refused by the parser, "
        f"{steps['build']} by the builder, {steps['crash']} crashed it.",
        "",
        "| | linter: legal | linter: refused |",
        "|---|---|---|",
        f"| TensorRT for RTX: builds | {counts[True, False]} | {counts[True, True]} |",
        f"| TensorRT for RTX: refuses | {counts[False, False]} | {counts[False, True]} |",
    ]
    for title, differences in (("Refused, and it builds", FALSE_REJECTS), ("Legal, and it does not", FALSE_ACCEPTS)):
        lines += ["", f"{title}:", ""]
        lines += [f"- {', '.join(f'`{case}`' for case in entry.cases)}: {entry.why}" for entry in differences]
    return "\n".join(lines)


def of_onnx() -> dict[str, onnx.ModelProto]:
    """The test graphs of ONNX's own operators."""
    from onnx.backend.test.case.node import collect_testcases

    return {case.name: case.model for case in collect_testcases(None) if case.model is not None}


def counts(models: Mapping[str, onnx.ModelProto], found: Mapping[str, str]) -> str:
    """How often the two agree, in one line, and the false rejects."""
    pairs = {name: (found[name] == "engine", bool(refusing(model))) for name, model in models.items()}
    number = Counter(pairs.values())
    rejects = sorted(name for name, pair in pairs.items() if pair == (True, True))
    return (
        f"{len(models)} graphs: taken by both {number[True, False]}, refused by both {number[False, True]}, "
        f"refused by the linter alone {number[True, True]}, by the parser alone {number[False, False]}\n{', '.join(rejects)}"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        if sys.argv[1:] == ["onnx"]:
            graphs = of_onnx()
            print(counts(graphs, labels(graphs, Path(place), "parse")))
        else:
            print(table(labels({name: case.graph() for name, case in CASES.items()}, Path(place))))
