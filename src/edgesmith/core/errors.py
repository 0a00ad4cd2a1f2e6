"""What can go wrong, and the exit code each case ends with.

    EdgesmithError            1  the run failed
    ├── UsageError            2  what the user gave cannot be used
    │   ├── RecipeError          the recipe: a key, a value, a chain of stages
    │   ├── TaskError            the task: its function, its model, its data
    │   ├── DataError            arrays: NaN, shapes, labels, calibration hygiene
    │   ├── ArtifactError        a model file: truncated, not ONNX, pointing outside its folder
    │   └── RunDirectoryError    the output directory: not writable, in use, of another format
    ├── StorageError          1  the disk: full, read error
    ├── TrainingError         1  the loss or the weights stopped being finite
    ├── ExportError           1  the model cannot be exported, or the export differs from torch
    ├── QuantizationError     1  a graph that cannot be quantized
    ├── BuildError            1  TensorRT refuses a graph, or cannot build an engine from it
    ├── MeasurementError      1  a runtime or a timing process failed
    │   ├── LostConnectionError  to a device; what was done there stays
    │   └── VoidError         4  void, as on a GPU that is slowed down
    ├── UnreachableError      3  no network of the allowed kind is as fast as was asked
    └── ContractError         1  a stage broke its promise (a defect of the stage, not of the input)

A verdict is not an error: a missed limit (3) or an unproven one (4) is returned (`core.limits`). A measurement
that is refused as void ends with the code of an unproven one all the same, for a release build asks the same of both.
"""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """Exit codes of the command line. Stable: scripts and release builds read them."""

    PASS = 0
    FAILED = 1
    USAGE = 2
    LIMIT_MISSED = 3
    UNPROVEN = 4
    INTERRUPTED = 130


class EdgesmithError(Exception):
    """Base of every error raised on purpose. The message says what, which value, where, and what to do."""

    exit_code = ExitCode.FAILED


class UsageError(EdgesmithError):
    """What the user gave cannot be used; nothing was changed."""

    exit_code = ExitCode.USAGE


class RecipeError(UsageError):
    """A recipe key, value or chain that cannot be run."""


class TaskError(UsageError):
    """A task that cannot be loaded, or lacks what a stage needs."""


class DataError(UsageError):
    """Arrays that cannot be used: NaN, shapes that do not fit, labels out of range, bad calibration data."""


class ArtifactError(UsageError):
    """A model file that cannot be read safely."""


class RunDirectoryError(UsageError):
    """An output directory that cannot be written, is in use, or is not a run directory."""


class StorageError(EdgesmithError):
    """The disk refused: full, or an input/output error."""


class TrainingError(EdgesmithError):
    """Training left the finite numbers."""


class ExportError(EdgesmithError):
    """A model that cannot be exported, or whose export computes something else."""


class QuantizationError(EdgesmithError):
    """A graph or a set of ranges from which no usable INT8 file can be made."""


class BuildError(EdgesmithError):
    """TensorRT refused a graph, or could not build an engine from it."""


class MeasurementError(EdgesmithError):
    """A runtime or a measuring process failed."""


class LostConnectionError(MeasurementError):
    """The connection to a device broke, or could not be made; what was done there stays and is not done again."""


class VoidError(MeasurementError):
    """What was measured says nothing of the models, again and again; the message says what disturbs it."""

    exit_code = ExitCode.UNPROVEN


class UnreachableError(EdgesmithError):
    """What was asked is not to be had; the message says what is."""

    exit_code = ExitCode.LIMIT_MISSED


class ContractError(EdgesmithError):
    """A stage broke the contract every stage is held to."""
