"""One file linted for one target, and written anew without what can be fixed, with proof that it computes the same."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from ...core.errors import QuantizationError, UsageError
from ...core.files import atomic_path
from ...core.values import TensorSpec
from ..graph import onnx_file
from ..targets.targets import TARGETS
from .lint import Finding, check
from .lint_fix import fix

_BATCH, _SIZE = 4, 16  # sizes of dynamic axes in the made-up inputs: the first, and every other
_FEEDS = 3
_LONGEST = 200  # characters of what ONNX Runtime says
_FIXED_SUFFIX = ".fixed.onnx"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """What the fixed file gives against the original, in ONNX Runtime as written, without its own optimisations."""

    output: str  # the one that differs most
    largest: float  # absolute
    magnitude: float  # largest absolute value that the original gave there


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linted:
    """What was found in a file, and what became of it."""

    path: str
    target: str
    findings: tuple[Finding, ...]
    out: str | None = None  # the fixed file; None: none was asked for, or nothing could be fixed
    changes: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    left: tuple[Finding, ...] = ()  # what is found in the fixed file
    difference: Difference | None = None
    not_compared: str = ""  # why there is no difference to report


class _NotRun(Exception):
    """ONNX Runtime does not load a model, or fails while it runs."""


def lint_file(path: Path, target: str) -> Linted:
    """Lint a file.

    Raises:
        ArtifactError: it cannot be read, see `onnx_file.load`.
    """
    onnx_file.load(path, valid=False)
    return Linted(path=str(path), target=target, findings=TARGETS[target].lint(path))


def fix_file(path: Path, target: str, out: Path | None = None, seed: int = 0) -> Linted:
    """Lint a file, fix what can be fixed, write the result, lint it again and compare it with the original.

    Args:
        path: not changed.
        target: key in `TARGETS`.
        out: where the fixed file goes, complete or not at all; None: `NAME.fixed.onnx` beside the original.
        seed: of the inputs both files are run on.

    Raises:
        UsageError: `out` is the file itself.
        ArtifactError: it cannot be read; the result does not fit in one file.
        QuantizationError: ONNX Runtime runs the original and not the result, of which nothing is left then.
    """
    found = lint_file(path, target)
    out = out or path.with_name(f"{path.stem}{_FIXED_SUFFIX}")
    if out.resolve() == path.resolve():
        raise UsageError(f"--out {out}: is the file itself, which stays as it is; name another")
    model = onnx_file.load(path, valid=False)
    rules = TARGETS[target].rules()
    fixed = fix(model, lambda candidate: check(candidate, rules))
    if not fixed.changes:
        return dataclasses.replace(found, failures=fixed.failures, left=found.findings)
    with atomic_path(out) as partial:
        onnx_file.save(fixed.model, partial)
        onnx_file.load(partial)  # what would not be read again is not left behind
        left = TARGETS[target].lint(partial)
        difference, reason = compare(model, fixed.model, seed)
    return dataclasses.replace(
        found,
        out=str(out),
        changes=fixed.changes,
        failures=fixed.failures,
        left=left,
        difference=difference,
        not_compared=reason,
    )


def compare(original: onnx.ModelProto, fixed: onnx.ModelProto, seed: int) -> tuple[Difference | None, str]:
    """Run both on the same seeded inputs: the largest difference, or why they could not be compared.

    Raises:
        QuantizationError: the original runs and the fixed one does not.
    """
    feeds = _feeds(onnx_file.specs(original)[0], seed)
    try:
        expected = _run(original, feeds)
    except _NotRun as error:
        return None, f"ONNX Runtime cannot run the original: {error}"
    try:
        actual = _run(fixed, feeds)
    except _NotRun as error:
        raise QuantizationError(f"ONNX Runtime runs the original, but not what was made of it: {error}") from error
    if not all(bool(np.isfinite(value).all()) for outputs in (*expected, *actual) for value in outputs.values()):
        return None, "NaN or infinity comes out of made-up inputs"
    differences = [
        Difference(
            output=name,
            largest=max(
                _largest(old[name].astype(np.float64) - new[name]) for old, new in zip(expected, actual, strict=True)
            ),
            magnitude=max(_largest(old[name].astype(np.float64)) for old in expected),
        )
        for name in expected[0]
    ]
    return max(differences, key=lambda difference: difference.largest), ""


def _run(model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    options = onnxruntime.SessionOptions()
    # As written: what it fuses rounds differently from one form to another, and would hide or feign a difference.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what it fails on is said below
    try:
        session: Any = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [value.name for value in session.get_outputs()]
        return [dict(zip(names, session.run(names, feed), strict=True)) for feed in feeds]
    except Exception as error:  # its exceptions share no base class
        raise _NotRun(str(error).strip().splitlines()[0][:_LONGEST]) from error


def _feeds(specs: tuple[TensorSpec, ...], seed: int) -> list[dict[str, np.ndarray]]:
    """Floats from a normal distribution, wide enough that some values are clipped; integers 0 or 1."""
    rng = np.random.default_rng(seed)
    shapes = {spec.name: _sizes(spec) for spec in specs}
    return [{spec.name: _values(rng, spec, shapes[spec.name], 2.0**index) for spec in specs} for index in range(_FEEDS)]


def _sizes(spec: TensorSpec) -> tuple[int, ...]:
    dynamic = (_BATCH if axis == 0 else _SIZE for axis in range(len(spec.shape)))
    return tuple(size if isinstance(size, int) else other for size, other in zip(spec.shape, dynamic, strict=True))


def _values(rng: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...], scale: float) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape) * scale).astype(dtype)
    return np.asarray(rng.integers(0, 2, shape)).astype(dtype)


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max(initial=0.0))


def as_json(linted: Linted) -> Mapping[str, Any]:
    """Plain data; a finding has its one-line text beside its fields."""
    plain = dataclasses.asdict(linted)
    for field in ("findings", "left"):
        plain[field] = [{**dataclasses.asdict(finding), "text": finding.text} for finding in getattr(linted, field)]
    return plain
