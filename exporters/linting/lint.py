"""What a linter of ONNX files has found, and the tables its rules stand in."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import onnx

from ...core.errors import ArtifactError
from ..graph import onnx_file
from ..graph.graph_view import GraphView, views

Severity = Literal["refused", "risky", "slow"]
_MOST_SAID = 5
_EXPLAINS_INVALID = ("opset", "scale-type")  # say better than ONNX's checker what it stumbles over


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One broken rule at one node.

    Severity:
        `refused`  the runtime refuses the file, or computes something else than the file says.
        `risky`    it loads here, but is known to fail in another version or to be wrong.
        `slow`     it computes the right thing on a path that is known to be slow.
    """

    rule: str  # key in the target's table of rules
    problem: str
    remedy: str
    node: str = ""  # empty, as the operator: the file as a whole
    operator: str = ""
    severity: Severity = "refused"
    fixable: bool = False  # `fix` rewrites it, and says so where that can change what is clipped

    @property
    def text(self) -> str:
        """In one line."""
        where = f"{self.operator} '{self.node}': " if self.operator else ""
        return f"{where}{self.problem}; {self.remedy} [{self.rule}]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule and where it comes from."""

    check: Callable[[GraphView], Iterator[Finding]]  # called for the main graph and for every graph inside it
    document: str


def at(
    node: onnx.NodeProto,
    rule: str,
    problem: str,
    remedy: str,
    severity: Severity = "refused",
    fixable: bool = False,
) -> Finding:
    """A finding at a node."""
    return Finding(
        rule=rule,
        node=node.name,
        operator=node.op_type,
        problem=problem,
        remedy=remedy,
        severity=severity,
        fixable=fixable,
    )


def check_file(path: Path, rules: Mapping[str, Rule]) -> tuple[Finding, ...]:
    """What `check` finds in a file, and what else ONNX itself has against it."""
    try:
        model = onnx_file.load(path, valid=False)
    except ArtifactError as error:
        return (Finding(rule="unreadable", problem=str(error), remedy="nothing in it was checked"),)
    found, problem = check(model, rules), onnx_file.invalid(model)
    if problem and not any(finding.rule in _EXPLAINS_INVALID for finding in found):
        found += (Finding(rule="invalid", problem=f"{path}: {problem}", remedy="export it again"),)
    return found


def check(model: onnx.ModelProto, rules: Mapping[str, Rule]) -> tuple[Finding, ...]:
    """Every finding of every rule, in the order of the nodes; subgraphs and local functions are looked into too."""
    found: list[Finding] = []
    for view in views(model):
        order = {id(node): index for index, node in enumerate(view.nodes)}
        names = {(node.op_type, node.name): order[id(node)] for node in reversed(view.nodes)}
        here = [finding for rule in rules.values() for finding in rule.check(view)]
        found += sorted(here, key=lambda finding: names.get((finding.operator, finding.node), -1))
    return tuple(found)


def refusals(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Those because of which the file cannot be used."""
    return tuple(finding for finding in findings if finding.severity == "refused")


def summary(findings: Sequence[Finding]) -> str:
    """The first few in one line, and how many more there are."""
    said = [finding.text for finding in findings[:_MOST_SAID]]
    more = len(findings) - len(said)
    return "; ".join([*said, *([f"and {more} more"] if more else [])])
