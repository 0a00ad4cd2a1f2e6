"""The torch-side value: architecture, replayable edits and weights. The module is derived from them.

A pruned model is therefore a file without pickle: one safetensors file with the edits in its header. Opening it builds
the original class, replays the edits through the dependency graph, and loads the weights.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from ..core import digest
from ..core.errors import ArtifactError, DataError, EdgesmithError
from ..core.files import write_atomic
from .edit import Edit, from_plain
from .replay import apply

_FORMAT = "edgesmith.candidate/1"
_DTYPES = {
    str(dtype): dtype
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool)
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A model that can be saved, resumed, digested and changed further."""

    factory: Callable[[], nn.Module]
    example: Mapping[str, torch.Tensor]  # a small real batch by input name; the dependency graph is traced with it
    edits: tuple[Edit, ...]
    weights: Mapping[str, torch.Tensor]  # state dict, on the CPU

    @classmethod
    def of(cls, module: nn.Module, like: "Candidate", edits: Sequence[Edit] | None = None) -> "Candidate":
        """The candidate whose module is `module`, an edited or trained copy of `like`'s."""
        return dataclasses.replace(like, edits=like.edits if edits is None else tuple(edits), weights=state_of(module))

    def module(self) -> nn.Module:
        """A fresh module on the CPU, in eval mode; changing it does not change the candidate."""
        module = self.factory()
        apply(module, self.example, self.edits)
        _check_fits(module.state_dict(), self.weights)
        module.load_state_dict({name: tensor.clone() for name, tensor in self.weights.items()})
        return module.eval()

    def digest(self) -> str:
        """Of edits and weights: equal digest, equal outputs (given the same class)."""
        arrays = {name: tensor.flatten().view(torch.uint8).numpy() for name, tensor in self.weights.items()}
        shapes = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in self.weights.items()}
        return digest.of_json([digest.of_arrays(arrays), shapes, [dataclasses.asdict(edit) for edit in self.edits]])

    def parameters(self) -> int:
        """Trainable numbers, without buffers."""
        return sum(parameter.numel() for parameter in self.module().parameters())

    def save(self, path: Path) -> None:
        """Write one safetensors file with the edits, and what is fed to the model, in its header."""
        example = [[name, str(tensor.dtype), list(tensor.shape)] for name, tensor in self.example.items()]
        edits = [dataclasses.asdict(edit) for edit in self.edits]
        header = {"format": _FORMAT, "edits": json.dumps(edits), "example": json.dumps(example)}
        write_atomic(path, safetensors.torch.save(dict(self.weights), metadata=header))

    @classmethod
    def load(
        cls, path: Path, factory: Callable[[], nn.Module], example: Mapping[str, torch.Tensor] | None = None
    ) -> "Candidate":
        """Open a file that `save` wrote.

        Args:
            factory: gives the architecture that the edits were made to.
            example: what the dependency graph is traced with; None: zeros of the shapes that the file names.

        Raises:
            ArtifactError: not such a file, or truncated.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as stream:
                header: dict[str, str] = stream.metadata() or {}
                weights = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  # not a dict
            if header.get("format") != _FORMAT:
                raise ArtifactError(
                    f"{path}: not a candidate file: format is {header.get('format')!r}, expected {_FORMAT!r}"
                )
            edits = tuple(from_plain(edit) for edit in json.loads(header["edits"]))
            if example is None:
                example = {
                    name: torch.zeros(shape, dtype=_DTYPES[dtype])
                    for name, dtype, shape in json.loads(header["example"])
                }
        except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ArtifactError(f"{path}: cannot read the candidate: {error}") from error
        return cls(factory=factory, example=example, edits=edits, weights=weights)


def load_model(path: str | Path, model: Callable[[], nn.Module]) -> nn.Module:
    """Open a model that edgesmith pruned or trained: the weights of a stage in a run directory.

    Args:
        path: `runs/NAME/stages/01-prune/model.safetensors`. Nothing in it is unpickled.
        model: the function or class that the task names as its model; the edits are made to what it returns.

    Returns:
        The module on the CPU, in eval mode: the same outputs to the bit; it can be trained and pruned on.

    Raises:
        ArtifactError: not such a file, truncated, or of another architecture.
    """
    candidate = Candidate.load(Path(path), model)
    try:
        return candidate.module()
    except EdgesmithError:
        raise
    except Exception as error:  # a foreign forward pass may raise anything
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArtifactError(
            f"{path}: the architecture does not run on what the file was made with: {line}; was the class changed?"
        ) from error


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict as independent, contiguous CPU tensors."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in module.state_dict().items()}


def _check_fits(wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> None:
    shapes = [{name: tuple(tensor.shape) for name, tensor in weights.items()} for weights in (wanted, given)]
    other = [name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name)]
    if other:
        has, needs = (each.get(other[0], "no such tensor") for each in reversed(shapes))
        raise ArtifactError(
            f"the weights do not fit the architecture in {len(other)} tensors, first '{other[0]}': the file has {has}, "
            f"the architecture {needs}; is it another class, or was it changed?"
        )


def check_finite(weights: Mapping[str, Any], what: str) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        DataError: names the tensor.
    """
    for name, tensor in _floating(weights):
        if not bool(torch.isfinite(tensor).all()):
            raise DataError(f"{what}: weight '{name}' holds NaN or infinity; train or load the model again")


def _floating(weights: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, tensor) for name, tensor in weights.items() if tensor.is_floating_point())
