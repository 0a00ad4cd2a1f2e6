"""The original of a run as torch runs it, for `benches`: eagerly, and through torch.compile.

A measuring process is told `edgesmith.compressor.torch_run:open_eager` as the kind of its session and the run directory
as the file. The module is built by the task's own code and gets the weights the run has kept; nothing is unpickled.
"""

import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..benches.timing import fresh_probe
from ..exporters.sessions.torch_session import TorchSession

if TYPE_CHECKING:
    from ..core.task import Task

EAGER, COMPILED = f"{__name__}:open_eager", f"{__name__}:open_compiled"
ORIGINAL = "stages/00-original/model.safetensors"
_SHAPES = 64  # torch.compile's own limit is 8 input shapes, after which it runs eagerly and says nothing


# The task's data and imports, and the code that finds them: bytes, and seconds (none where they were there before).
Foreign = tuple[int, float]


class OriginalSession(TorchSession):
    """The original, and what had to be loaded for it that is not its own."""

    def __init__(self, module: nn.Module, task: "Task", foreign: Foreign) -> None:
        super().__init__(module, task.input_specs(), task.outputs)
        self.foreign_bytes, self.foreign_seconds = foreign


def open_eager(run: str, threads: int) -> OriginalSession:
    """The original of the run directory `run`, in eval mode, on the CPU.

    Raises:
        UsageError: the task or the stored weights cannot be loaded.
    """
    torch.set_num_threads(threads)
    task, foreign = _task(run)
    module = _module(task, Path(run))
    return OriginalSession(module, task, foreign)


def open_compiled(run: str, threads: int) -> OriginalSession:
    """The same through torch.compile with its default settings, compiled for every input shape by itself.

    Raises:
        UsageError: see `open_eager`.
    """
    import torch._dynamo
    import torch._inductor.config

    torch._dynamo.config.recompile_limit = _SHAPES
    torch._inductor.config.compile_threads = 1  # else a pool of processes stays beside the measurement
    torch.set_num_threads(threads)
    task, foreign = _task(run)
    module = _module(task, Path(run))
    module.compile(dynamic=False)
    return OriginalSession(module, task, foreign)


def cannot_compile() -> str:
    """Why torch.compile cannot run here, or an empty string."""
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return "torch.compile needs a C++ compiler; install g++ or clang, or name one with CXX"
    return ""


@functools.cache
def _task(run: str) -> tuple["Task", Foreign]:
    """The run's task, and what it took to load it."""
    begun, before = time.perf_counter(), fresh_probe.resident_bytes()
    # Loaded here so that what they take can be told from what torch and the model take.
    from . import recipe as recipes, task_file

    recipe = recipes.load(Path(run) / "recipe.toml")
    task = task_file.load_task(recipe.task, recipe.folder)
    foreign = fresh_probe.resident_bytes() - before
    fresh_probe.forget_peak()
    return task, (foreign, time.perf_counter() - begun)


def _module(task: "Task", run: Path) -> nn.Module:
    import safetensors.torch

    assert callable(task.model)  # `run_contenders` asks for torch only then
    module: nn.Module = task.model()
    module.load_state_dict(safetensors.torch.load_file(run / ORIGINAL))
    return module
