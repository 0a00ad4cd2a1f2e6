"""What an engine is built with: a recipe's `[build]`, the options of `edgesmith build`, and the tool that does it."""

import dataclasses
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

Size = Annotated[int, Field(ge=1)]
Shape = tuple[Size, ...]
DEFAULT_BATCH = (1, 8, 32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tool:
    """One of NVIDIA's builders, and what its engine proves."""

    module: str
    title: str
    extra: str  # of this package, that installs it
    proves: str


TOOLS: dict[str, Tool] = {
    "tensorrt": Tool(
        module="tensorrt",
        title="TensorRT",
        extra="tensorrt",
        proves="an engine for the GPU it was built on and for this version of TensorRT; a build proves no speed",
    ),
    "tensorrt-rtx": Tool(
        module="tensorrt_rtx",
        title="TensorRT for RTX",
        extra="tensorrt-rtx",
        proves=(
            "it proves that NVIDIA's parser accepts the graph and that it builds; "
            "it is not an engine for a Jetson and it proves no speed"
        ),
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Build:
    """`[build]`: how an engine is built. Sizes are (smallest, the one to be fastest at, largest)."""

    tool: Literal["auto", "tensorrt", "tensorrt-rtx"] = "auto"  # auto: the first of the two that is installed
    batch: tuple[Size, Size, Size] = DEFAULT_BATCH  # of inputs whose first axis is dynamic
    shapes: Mapping[str, tuple[Shape, Shape, Shape]] = dataclasses.field(default_factory=dict)  # input -> three shapes
    precision: Literal["as-is", "float16"] = "as-is"  # float16: the graph's floats are cast first, see `half`
    workspace_mb: Size | None = None  # scratch memory a kernel may use, in MiB; None: the tool's own limit
    # GPUs to build for, "8.6"; empty: the GPU at hand, or (TensorRT for RTX) every one the tool knows.
    compute_capabilities: tuple[Annotated[str, Field(pattern=r"^\d{1,2}\.\d$")], ...] = ()
    timing_cache: str | None = None  # a file: read where it is there, written where the tool has something to keep


def tool_problem(tool: str) -> str | None:
    """Why nothing can be built with `tool` here and the command that brings it, or None."""
    wanted = tuple(TOOLS) if tool == "auto" else (tool,)
    if any(_installed(name) for name in wanted):
        return None
    missing = " nor ".join(TOOLS[name].module for name in wanted)
    missing = f"neither {missing} is installed" if len(wanted) > 1 else f"{missing} is not installed"
    return f'{missing}: pip install "edgesmith[{TOOLS[wanted[-1]].extra}]"'


def chosen_tool(tool: str) -> str:
    """The key in `TOOLS` that "auto" stands for here; call it where `tool_problem` found none."""
    return next(name for name in TOOLS if _installed(name)) if tool == "auto" else tool


def tool_version(tool: str) -> str:
    """The tool that `tool` stands for here with the version of its package, told without loading it."""
    name = chosen_tool(tool)
    packages = importlib.metadata.packages_distributions().get(TOOLS[name].module, [])
    return f"{name} {', '.join(sorted({importlib.metadata.version(package) for package in packages}))}"


def _installed(name: str) -> bool:
    return importlib.util.find_spec(TOOLS[name].module) is not None
