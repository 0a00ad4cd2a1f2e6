"""What NVIDIA's parser and builder say, as one error with the node, the reason and a remedy."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from ...core.errors import BuildError
from .engine_options import TOOLS

_MOST_NODES = 5
# Said in every build without a GPU, whether or not it succeeds.
_NO_DRIVER = ("catchCudaError", "CUDA driver version is insufficient", "Unable to determine GPU memory")
_TARGET = "write the file with target 'tensorrt'"
# What the text holds -> what to do. The first that fits is said.
_REMEDIES: tuple[tuple[str, str], ...] = (
    (r"type Int32 but must have type", f"an INT32 bias is not accepted: {_TARGET}, which keeps biases in float"),
    (r"zero.?point|shift|symmetric", f"only INT8 with a zero point of 0 is accepted: {_TARGET}"),
    (r"[Pp]lugin not found", "there is no such operator in TensorRT: express it with standard ONNX operators"),
    (r"no optimization profile|optimization profile.*(missing|defined)", "give sizes to every dynamic axis: --shape"),
    (r"memory|workspace", "give it more room: --workspace-mb"),
    (r"dynamic|shape", "fix the shape where the graph computes it, or narrow the sizes with --batch and --shape"),
)
_UNSUPPORTED = "TensorRT has no such operator, or not with these attributes: replace it in the model and export again"


def refused(path: Path, tool: str, facts: Mapping[str, Any], model: onnx.ModelProto) -> BuildError:
    """The error for a step that failed; `facts` is what the child reported."""
    title = f"{TOOLS[tool].title} {facts.get('version', '')}".strip()
    step = facts["step"]
    if step == "import":
        module, extra = TOOLS[tool].module, TOOLS[tool].extra
        return BuildError(
            f'{module} is installed but cannot be imported ({facts["message"]}); pip install "edgesmith[{extra}]"'
        )
    if step == "builder":
        return BuildError(
            f"{path}: {title} cannot start its builder: {_said(facts['log']) or facts['message']}; "
            "it needs a CUDA device; without one build with --tool tensorrt-rtx"
        )
    if step == "parse":
        return BuildError(f"{path}: {_parse_text(title, facts, model)}")
    if step == "compute capability":
        return BuildError(_capability_text(title, facts))
    if step == "timing cache":
        return BuildError(f"{facts['path']}: not a timing cache of this tool and version; remove it to start a new one")
    said = _said(facts["log"]) or "it gave no reason"
    return BuildError(f"{path}: {title} cannot build it: {said}; {_remedy(said)}")


def died(path: Path, tool: str, code: int, stderr: str) -> BuildError:
    """The error for a child that left no result."""
    title, tail = TOOLS[tool].title, "".join(f"\n  {line}" for line in stderr.strip().splitlines()[-5:])
    if code < 0:
        return BuildError(
            f"{path}: {title} crashed: its process was ended by signal {-code}; nothing was written. "
            f"Signal 9 most likely means too little memory: --workspace-mb limits it{tail}"
        )
    return BuildError(f"{path}: {title}: the building process ended with code {code}{tail}")


def weights_bytes(log: Sequence[Sequence[str]]) -> int | None:
    """The size of the weights that the tool logged; the size of the file says nothing of them."""
    found = [int(match[1]) for _, line in log if (match := re.search(r"Total Weights Memory: (\d+) bytes", line))]
    return found[-1] if found else None


def _parse_text(title: str, facts: Mapping[str, Any], model: onnx.ModelProto) -> str:
    errors = facts["errors"]
    if not errors:
        return f"{title} refuses the graph: {_said(facts['log']) or 'it gave no reason'}{_share(facts, model)}"
    error = errors[0]
    operator = f" ({error['operator']})" if error["operator"] else ""
    where = f"node '{error['node']}'{operator}" if error["node"] else f"the graph{operator}"
    description = _reason(error["description"].splitlines())
    described = f": {description}" if description else ""
    remedy = _UNSUPPORTED if error["code"].startswith("UNSUPPORTED") else _remedy(description)
    return f"{title} refuses {where}, {error['code']}{described}; {remedy}{_share(facts, model)}"


def _share(facts: Mapping[str, Any], model: onnx.ModelProto) -> str:
    """How much of the graph the parser takes, and which nodes it does not."""
    accepted = facts.get("accepted")
    if accepted is None:
        return ""
    nodes = list(model.graph.node)
    others = [node for index, node in enumerate(nodes) if index not in set(accepted)]
    named = ", ".join(f"'{node.name}' ({node.op_type})" for node in others[:_MOST_NODES])
    more = f" and {len(others) - _MOST_NODES} more" if len(others) > _MOST_NODES else ""
    text = f"; its own check passes {len(nodes) - len(others)} of {len(nodes)} nodes"
    return f"{text}, not {named}{more}" if others else text


def _capability_text(title: str, facts: Mapping[str, Any]) -> str:
    wanted = ", ".join(facts["unknown"])
    if not facts["known"]:
        return f"compute capability {wanted}: {title} builds for the GPU at hand only; leave compute capabilities out"
    return f"compute capability {wanted}: {title} does not build for it; known: {', '.join(facts['known'])}"


def _said(log: Sequence[Sequence[str]]) -> str:
    return _reason([line for severity, line in log if severity in ("ERROR", "INTERNAL_ERROR")])


def _reason(lines: Sequence[str]) -> str:
    """The line that says why: not the one about the missing driver, nor the one that repeats the node's name."""
    useful = [
        line.strip()
        for line in lines
        if line.strip() not in ("", "false")
        and not any(noise in line for noise in _NO_DRIVER)
        and not line.startswith("Invalid Node - ")
    ]
    return re.sub(r"\s*In \w+ at \S+:\d+", "", " ".join(useful[0].split())).rstrip(". ") if useful else ""


def _remedy(text: str) -> str:
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, text):
            return remedy
    return "change that part of the model and export it again"
