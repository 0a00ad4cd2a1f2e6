"""`edgesmith bench A.onnx B.onnx`: files alone, on inputs made up from what they ask for."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...core.errors import ArtifactError, UsageError
from ...core.tables import did_you_mean
from ...core.values import Arrays, Session, TensorSpec
from ...exporters.sessions.ort_session import OnnxRuntimeSession
from .contender import Contender

_ROTATE = 4

Shapes = Mapping[str, tuple[int, ...]]


def contenders(
    files: Sequence[Path], batch_sizes: Sequence[int] = (1,), seed: int = 0, shapes: Shapes | None = None
) -> tuple[list[Contender], dict[int, list[Arrays]]]:
    """ONNX files for ONNX Runtime, the first of them the baseline, and what to feed them, for `side_by_side.measure`.

    Args:
        files: the baseline, then one or more others with the same inputs; labelled "1", "2", ...
        batch_sizes: each is measured by itself.
        seed: of the inputs.
        shapes: input name -> whole shape, for inputs with dynamic axes besides the batch; its first number gives way
            to the batch size where the model leaves the batch open.

    Raises:
        UsageError: fewer than two files, a batch or shape that the model does not take, a dynamic axis without one.
        ArtifactError: a file that cannot be loaded, or files whose inputs differ.
    """
    if len(files) < 2:
        raise UsageError(
            f"bench compares at least 2 files, got {len(files)}; or give the directory of a finished run alone"
        )
    specs = _input_specs(files[0])
    for path in files[1:]:
        specs = _common_specs(files[0], specs, path, _input_specs(path))
    found = [
        Contender(label=str(number), session="onnxruntime-cpu", path=path, file=path)
        for number, path in enumerate(files, 1)
    ]
    return found, {batch: random_feeds(specs, batch, seed, shapes or {}) for batch in batch_sizes}


def random_feeds(specs: Sequence[TensorSpec], batch: int, seed: int, shapes: Shapes) -> list[Arrays]:
    """Seeded inputs: floats from a standard normal, integers 0 or 1 (legal as tokens, masks and type ids), booleans.

    Returns:
        A few feeds that take turns, each input name -> array `(batch, ...)`.

    Raises:
        UsageError: see `contenders`.
    """
    unknown = sorted(set(shapes) - {spec.name for spec in specs})
    if unknown:
        names = [spec.name for spec in specs]
        hint = did_you_mean(unknown[0], names)
        raise UsageError(f"--shape {unknown[0]}: the model has no such input{hint}; its inputs: {', '.join(names)}")
    sizes = {spec.name: _shape(spec, batch, shapes.get(spec.name)) for spec in specs}
    rng = np.random.default_rng(seed)
    return [{spec.name: _values(rng, spec, sizes[spec.name]) for spec in specs} for _ in range(_ROTATE)]


def _input_specs(path: Path) -> tuple[TensorSpec, ...]:
    session: Session = OnnxRuntimeSession(path, threads=1)
    try:
        return session.inputs
    finally:
        session.close()


def _common_specs(
    first: Path, expected: Sequence[TensorSpec], path: Path, found: Sequence[TensorSpec]
) -> tuple[TensorSpec, ...]:
    """The inputs that both models take: an axis that one leaves open has the other's size."""
    by_name = {spec.name: spec for spec in found}
    common = []
    for spec in expected:
        other = by_name.pop(spec.name, None)
        if other is None:
            raise ArtifactError(
                f"{path}: has no input '{spec.name}', which {first} has; only alike models can be paired"
            )
        if other.dtype != spec.dtype or not _compatible(spec.shape, other.shape):
            raise ArtifactError(
                f"{path}: input '{spec.name}' is {_described(other)}, but {_described(spec)} in {first}; "
                "only models with the same inputs can be paired"
            )
        shape = tuple(b if isinstance(a, str) else a for a, b in zip(spec.shape, other.shape, strict=True))
        common.append(dataclasses.replace(spec, shape=shape))
    if by_name:
        raise ArtifactError(f"{path}: has an input '{next(iter(by_name))}', which {first} has not")
    return tuple(common)


def _compatible(a: tuple[int | str, ...], b: tuple[int | str, ...]) -> bool:
    return len(a) == len(b) and all(
        isinstance(x, str) or isinstance(y, str) or x == y for x, y in zip(a, b, strict=True)
    )


def _described(spec: TensorSpec) -> str:
    """Type and shape, a question mark for a dynamic axis."""
    return f"{spec.dtype} ({', '.join('?' if isinstance(size, str) else str(size) for size in spec.shape)})"


def _shape(spec: TensorSpec, batch: int, given: tuple[int, ...] | None) -> tuple[int, ...]:
    if not spec.shape:
        return ()
    if given is not None:
        _check_given(spec, given)
    first = spec.shape[0]
    if isinstance(first, int) and first != batch:
        raise UsageError(f"input '{spec.name}' has a fixed batch of {first}; use --batch {first} instead of {batch}")
    rest = spec.shape[1:] if given is None else given[1:]
    sizes = [size for size in rest if isinstance(size, int)]
    if len(sizes) != len(rest):
        example = ",".join(
            "1" if index == 0 else "48" if isinstance(size, str) else str(size) for index, size in enumerate(spec.shape)
        )
        raise UsageError(
            f"input '{spec.name}' has dynamic axes {_described(spec)}; give them a size: --shape {spec.name}={example}"
        )
    return (batch, *sizes)


def _check_given(spec: TensorSpec, given: tuple[int, ...]) -> None:
    fits = len(given) == len(spec.shape) and all(
        isinstance(size, str) or index == 0 or size == wanted
        for index, (size, wanted) in enumerate(zip(spec.shape, given, strict=False))
    )
    if not fits or min(given) < 1:
        wanted = ",".join(map(str, given))
        raise UsageError(f"--shape {spec.name}={wanted}: does not fit the input, which is {_described(spec)}")


def _values(rng: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)
