"""What a stage is: one change to a model, described by a frozen dataclass whose fields are its recipe keys."""

import abc
import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..calibration.ranges import TensorRange
from ..core.limits import LimitResult
from ..core.task import Task
from ..core.values import QuantParams
from .int8.bounds import Bounds
from .measure_options import Measure
from .progress import Progress

if TYPE_CHECKING:  # torch is heavy, and a recipe is read without it
    from ..benches.gates.judge import Evidence
    from .candidate import Candidate


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """The ONNX-side value: a float graph, and the ranges it is quantized with once they are known."""

    path: Path
    digest: str
    params: Mapping[str, QuantParams] | None = None
    keep_float: Mapping[str, str] = dataclasses.field(default_factory=dict)  # node that cannot run in INT8 -> why
    ranges: tuple[TensorRange, ...] = ()  # what calibration says of the activations' ranges
    calibration: str = ""  # digest of the split that the ranges come from
    trained: Path | None = None  # the network as it was trained in INT8, with its pairs; files are held close to it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Where the work is done; never part of what is done."""

    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1  # of the measured runtime
    seed: int = 0


def _made_anew(key: Any, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="edgesmith-measured-") as folder:
        return make(Path(folder))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deployment:
    """How the recipe's result will run, for stages that measure it beforehand (see `Stage.measures`)."""

    int8: bool = False  # whether a later stage quantizes
    measure: Measure = dataclasses.field(default_factory=Measure)
    bounds: Bounds = dataclasses.field(default_factory=Bounds)  # that its form is chosen within, where it is INT8
    # (what it depends on, (work directory) -> JSON-able facts) -> these facts, kept for this machine
    once: Callable[[Any, Callable[[Path], dict[str, Any]]], dict[str, Any]] = _made_anew


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What a stage may use besides its input."""

    task: Task
    machine: Machine
    targets: tuple[str, ...]
    work: Path  # folder for unfinished work; survives a kill, is emptied when the stage is done
    progress: Progress
    named: Callable[[str], "Candidate | Graph"]  # "original", the id of an earlier stage, or a name in task.models
    where: str  # "stages[1] 'distill'", in front of errors
    deployment: Deployment = dataclasses.field(default_factory=Deployment)
    exported: "Callable[[], Graph] | None" = None  # the stage's input in ONNX, which the ledger has needed before it
    notes: list[str] = dataclasses.field(default_factory=list)  # what the ledger should say about this stage
    for_verdict: dict[str, Any] = dataclasses.field(default_factory=dict)  # JSON-able, for the stage's `after_verdict`

    def within(self, name: str) -> "Context":
        """The same with a work folder of its own inside, so that each training finds its own checkpoint."""
        work = self.work / name
        work.mkdir(exist_ok=True)
        return dataclasses.replace(self, work=work)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """Measured costs of what a stage gets, for the time estimate of a plan. Seconds per sample."""

    forward: float
    backward: float
    export: float  # seconds per export
    named: Callable[[str], float] = lambda name: 0.0  # a forward pass of another model (see `Context.named`)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage(abc.ABC):
    """Base of every stage. A stage never changes its input; the pipeline checks that it did not."""

    name: ClassVar[str]  # its name in the table
    accepts: ClassVar[Literal["candidate", "graph", "nothing"]]  # "nothing": a source, which names what it reads
    returns: ClassVar[Literal["candidate", "graph"]]
    quantizes: ClassVar[bool] = False  # what it returns has quantization parameters; no other stage may find them anew

    id: str

    def check(self, task: Task, where: str) -> None:  # noqa: B027  # nothing to check is a fine answer
        """Refuse, before any work, what cannot work with this task.

        Raises:
            RecipeError, TaskError: a choice that does not exist, data the task lacks.
        """

    def rehearse(self, value: Any, context: Context) -> "Candidate | Graph":
        """Try on untrained weights, before any work, what depends on the architecture alone.

        Asked of stages that take a candidate, and of sources.

        Args:
            value: what the stage will get, as far as can be told: the architecture before any pruning. A source reads
                what it names from `Context.named`; a file there has no path yet.

        Returns:
            What the next stage will get, in the same sense.

        Raises:
            RecipeError: a glob that matches nothing, a ratio that cannot be reached.
        """
        rehearsed: Candidate | Graph = value
        return rehearsed

    def takes(self) -> Literal["candidate", "graph", "nothing"]:
        """What it is given: `accepts`, unless one of its keys decides."""
        return self.accepts

    def needs(self) -> tuple[str, ...]:
        """Names of other models it reads (see `Context.named`); they must come before it."""
        return ()

    def measures(self) -> bool:
        """Whether its result depends on what it measures of the deployed network (`Context.deployment`)."""
        return False

    def estimate(self, task: Task, probe: Probe) -> float:
        """Seconds it will take, roughly."""
        return 1.0

    def time_left(self) -> float:
        """The share of a pass's time that is left after it, roughly; what `rehearse` does to the model not counted."""
        return 1.0

    def held(self, kept: Mapping[str, Any], evidence: "Evidence") -> tuple[list[str], list[LimitResult]]:
        """What the finished artefact is beside what this stage was asked for: for the ledger, and limits it has missed.

        Args:
            kept: what `run` left in `Context.for_verdict`.
            evidence: what the verdict rests on.
        """
        return [], []

    def after_verdict(self, value: Any, context: Context) -> list[str]:
        """What the ledger should say once nothing is left to choose: here alone a stage may read the test data.

        Args:
            value: what `run` returned.
            context: with what `run` left in `for_verdict`.
        """
        return []

    @abc.abstractmethod
    def run(self, value: Any, context: Context) -> "Candidate | Graph":
        """Do the work and return a new value."""
