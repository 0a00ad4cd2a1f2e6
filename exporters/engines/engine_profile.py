"""Optimization profiles for dynamic axes, and the command that builds the same engine on the device."""

import dataclasses
import shlex
from collections.abc import Iterable, Mapping, Sequence

from ...core.errors import UsageError
from ...core.tables import did_you_mean
from ...core.values import TensorSpec
from .engine_options import DEFAULT_BATCH, Build


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """Shapes of one input that the engine takes: all from `min` to `max`; it is tuned for `opt`."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


def profiles(inputs: Sequence[TensorSpec], build: Build) -> dict[str, Profile]:
    """One profile for every input that has a dynamic axis; without one TensorRT refuses the network.

    Raises:
        UsageError: a dynamic axis without sizes, sizes that fit no input, three shapes that are not in order.
    """
    check(inputs, build)
    dynamic = [spec for spec in inputs if _dynamic_axes(spec)]
    return {spec.name: _profile(spec, build) for spec in dynamic}


def trtexec(onnx_name: str, found: Mapping[str, Profile], build: Build) -> str:
    """The command that builds on a machine with TensorRT, run in the folder of the ONNX file.

    The options are those of `trtexec` in TensorRT 10 and 11 (NVIDIA's "trtexec" reference and its migration guide).
    """
    stem = onnx_name.removesuffix(".onnx")
    words = ["trtexec", f"--onnx={onnx_name}", f"--saveEngine={stem}.engine"]
    for side in ("min", "opt", "max"):
        shapes = ",".join(f"{name}:{_x(getattr(profile, side))}" for name, profile in found.items())
        words += [f"--{side}Shapes={shapes}"] if shapes else []
    if build.workspace_mb is not None:
        words.append(f"--memPoolSize=workspace:{build.workspace_mb}")
    if build.timing_cache is not None:
        words.append("--timingCacheFile=timing.cache")
    return " ".join(shlex.quote(word) for word in [*words, "--stronglyTyped"])


def trtexec_note(quantized: bool, half: bool) -> str:
    """What to change in the command where TensorRT is older; empty: nothing."""
    if not quantized:
        return ""
    flags = "--int8 --fp16" if half else "--int8"
    return f"TensorRT 10.0 to 10.11 needs {flags} in place of --stronglyTyped"


def _profile(spec: TensorSpec, build: Build) -> Profile:
    if spec.name in build.shapes:
        return _given(spec, build.shapes[spec.name])
    if _dynamic_axes(spec) != [0]:
        axis = next(axis for axis in _dynamic_axes(spec) if axis != 0)
        example = ":".join(
            _x(size if index == 0 and isinstance(old, str) else old for index, old in enumerate(_letters(spec)))
            for size in build.batch
        )
        raise UsageError(
            f"input '{spec.name}' ({_listed(spec.shape)}): axis {axis} '{spec.shape[axis]}' is dynamic and has no "
            f"sizes; give smallest, usual and largest: --shape {spec.name}={example} with numbers for N, "
            f"or build.shapes in the recipe"
        )
    low, usual, high = ((size, *(int(old) for old in spec.shape[1:])) for size in build.batch)
    return Profile(min=low, opt=usual, max=high)


def _given(spec: TensorSpec, shapes: tuple[tuple[int, ...], ...]) -> Profile:
    for shape in shapes:
        fits = len(shape) == len(spec.shape) and all(
            isinstance(old, str) or old == new for old, new in zip(spec.shape, shape, strict=True)
        )
        if not fits:
            raise UsageError(f"build.shapes: '{spec.name}' is ({_listed(spec.shape)}), {_x(shape)} does not fit")
    low, usual, high = shapes
    if not all(a <= b <= c for a, b, c in zip(low, usual, high, strict=True)):
        raise UsageError(
            f"build.shapes: '{spec.name}': {_x(low)}:{_x(usual)}:{_x(high)} must not fall from smallest to largest"
        )
    return Profile(min=low, opt=usual, max=high)


def check(inputs: Sequence[TensorSpec], build: Build) -> None:
    """Refuse sizes that speak of no input, or fall from smallest to largest.

    Raises:
        UsageError: says which.
    """
    names = [spec.name for spec in inputs]
    for name in build.shapes:
        if name not in names:
            raise UsageError(f"build.shapes: no input '{name}'{did_you_mean(name, names)}; inputs: {', '.join(names)}")
    if not build.batch[0] <= build.batch[1] <= build.batch[2]:
        raise UsageError(f"build.batch: {_listed(build.batch)} must not fall from smallest to largest")
    free = [spec for spec in inputs if 0 in _dynamic_axes(spec) and spec.name not in build.shapes]
    if build.batch != DEFAULT_BATCH and not free:
        raise UsageError(
            f"build.batch: {_listed(build.batch)} applies to no input: each has a fixed first axis or build.shapes"
        )


def _dynamic_axes(spec: TensorSpec) -> list[int]:
    return [axis for axis, size in enumerate(spec.shape) if isinstance(size, str)]


def _letters(spec: TensorSpec) -> list[int | str]:
    return ["N" if isinstance(size, str) else size for size in spec.shape]


def _x(shape: Iterable[int | str]) -> str:
    return "x".join(map(str, shape))


def _listed(shape: Sequence[int | str]) -> str:
    return ", ".join(map(str, shape))
