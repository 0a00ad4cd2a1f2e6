"""A built engine on the terminal."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from ...exporters.engines.engine_file import EngineInfo, beside
from . import words


def print_engine(info: EngineInfo, path: Path, console: Console) -> None:
    """Print what was built, what that proves, and how the same is built on the device."""
    weights = words.NOT_MEASURED if info.weights_bytes is None else words.size(info.weights_bytes)
    ranges = [
        f"{name} {' to '.join(_x(profile[side]) for side in ('min', 'max'))}, fastest at {_x(profile['opt'])}"
        for name, profile in info.profiles.items()
    ]
    lines = [
        f"{path}: {words.size(info.engine_bytes)}, {weights} of weights, built in {info.seconds:.1f} s "
        f"by {info.tool} {info.version}",
        f"  takes: {'; '.join(ranges) or 'the fixed shapes of the file'}",
        f"  {info.tool}: {info.proves}",
        f"  on the device, beside {info.onnx}: {info.device_command}",
        *([f"  {info.device_note}"] if info.device_note else []),
        f"  details: {beside(path)}",
    ]
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _x(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
