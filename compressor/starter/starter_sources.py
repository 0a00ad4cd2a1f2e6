"""The three kinds of model that `edgesmith init` starts from, each looked at by running it on the user's samples."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ...core.errors import ArtifactError, DataError, TaskError
from ...core.values import TensorSpec
from ...exporters.graph import onnx_file
from ...exporters.sessions.ort_session import OnnxRuntimeSession
from ..text import load_config, load_transformers
from . import starter_import, starter_probe, starter_weights
from .starter_data import Data
from .starter_import import Architecture
from .starter_probe import Input, Probed
from .starter_weights import Weights

Kind = Literal["torch", "huggingface", "onnx"]
Agreement = Literal["", "top answer", "closeness"]
_NOT_CLASSES = ("embed", "feature", "hidden", "pool")  # two axes, but no classes, going by the output's name
HF_FILES = ("config.json", "model.safetensors")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """The user's model, and what was found out about it."""

    kind: Kind
    reference: str
    name: str
    probed: Probed
    path: Path | None = None  # ONNX file or Hugging Face folder
    architecture: Architecture | None = None
    weights: Weights | None = None
    huggingface_class: str = ""
    agreement: Agreement = ""  # without labels, the original's own answers are the labels
    module: Any = None  # the trained torch module


def kind_of(reference: str) -> Kind:
    """What MODEL is.

    Raises:
        TaskError: none of the three kinds; says what to give instead.
    """
    path = Path(reference)
    if path.is_dir():
        missing = [name for name in HF_FILES if not (path / name).is_file()]
        if missing:
            raise TaskError(
                f"{path}: a Hugging Face folder holds {' and '.join(HF_FILES)}, not here: {', '.join(missing)}; "
                "save the model with model.save_pretrained(folder)"
            )
        return "huggingface"
    if path.suffix == ".onnx":
        return "onnx"
    if ":" in reference and not path.exists():
        return "torch"
    if path.suffix == ".py":
        inside = ", ".join(f"{path}:{name}" for name in starter_import.classes_in(path)[:5]) or f"{path}:Class"
        raise TaskError(f"{path}: name the class or function in it too: {inside}")
    if path.suffix in (".pt", ".pth", ".bin", ".safetensors", ".ckpt"):
        raise TaskError(
            f"{path}: weights alone are no model; name the class, and the file with --weights: "
            f"edgesmith init path/file.py:Class --weights {path}"
        )
    raise TaskError(
        f"{reference}: {'not a model that is known' if path.exists() else 'no such file'}; give package.module:Class, "
        "path/file.py:Class, a Hugging Face folder or an ONNX file"
    )


def open_source(reference: str, data: Data, weights: Path | None) -> Source:
    """Open and probe a model of any kind.

    Raises:
        UsageError: the model, its weights or the data cannot be used together; says how.
    """
    kind = kind_of(reference)
    if kind != "torch" and weights is not None:
        raise TaskError(f"--weights {weights}: {reference} has its weights with it; leave the option out")
    if kind == "torch":
        return _torch(reference, data, weights)
    return _huggingface(Path(reference), data) if kind == "huggingface" else _onnx(Path(reference), data)


def _torch(reference: str, data: Data, weights: Path | None) -> Source:
    architecture = starter_import.find(reference)
    module, found = starter_weights.fit(architecture.build, weights, reference)
    probed = starter_probe.probe(module, data, reference)
    name = reference.rpartition(":")[2].lower()
    return Source(
        kind="torch",
        reference=reference,
        name=name,
        probed=probed,
        architecture=architecture,
        weights=found,
        module=module,
    )


def _huggingface(folder: Path, data: Data) -> Source:
    transformers = load_transformers("a Hugging Face folder")
    try:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    except (ValueError, AttributeError) as error:
        raise TaskError(f"{folder / 'config.json'}: not a model's configuration: {error}") from error
    cls = getattr(transformers, str(names[0]), None) if names[0] else None
    if cls is None:
        raise TaskError(
            f"{folder / 'config.json'}: architectures is {names}, which is no class of transformers "
            f"{transformers.__version__}; code that comes with a model is not run"
        )

    def build() -> Any:
        return cls(load_config(folder))

    module, weights = starter_weights.fit(build, folder / "model.safetensors", str(names[0]))
    probed = starter_probe.probe(module, data, str(names[0]))
    judged = probed.outputs[0]
    if probed.problem != "numbers" and _no_classes(judged):  # as wide as the network, it would fit any labels
        raise TaskError(
            f"{folder}: {names[0]} has no head: '{judged}' is no row of scores; give a model that was trained on these "
            "labels, or for texts write a task with edgesmith.TextEncoder, which puts a head on it and trains it"
        )
    return Source(
        kind="huggingface",
        reference=str(folder),
        name=folder.resolve().name.lower(),
        probed=probed,
        path=folder,
        weights=weights,
        huggingface_class=str(names[0]),
        module=module,
    )


def _onnx(path: Path, data: Data) -> Source:
    model = onnx_file.load(path)
    inputs = _onnx_inputs(path, onnx_file.specs(model)[0], data)
    session = OnnxRuntimeSession(path)
    try:
        feed = {i.name: data.inputs[i.key][:4].astype(i.cast or data.inputs[i.key].dtype) for i in inputs}
        answers = session.run(feed)
    finally:
        session.close()
    names = tuple(answers)
    if data.labels is not None:
        agreement: Agreement = ""
        probed = _labelled(path, data, inputs, answers)
    else:
        agreement = _agreement(names[0], answers[names[0]])
        probed = Probed(inputs=inputs, outputs=names, problem="classes" if agreement == "top answer" else "numbers")
    return Source(
        kind="onnx", reference=str(path), name=path.stem.lower(), probed=probed, path=path, agreement=agreement
    )


def _onnx_inputs(path: Path, specs: tuple[TensorSpec, ...], data: Data) -> tuple[Input, ...]:
    """Which array feeds which input; a single one needs no name in common."""
    for spec in specs:
        if spec.shape and isinstance(spec.shape[0], int):
            raise ArtifactError(
                f"{path}: input '{spec.name}' takes batches of {spec.shape[0]} only; "
                "export it with a dynamic batch axis"
            )
    keys = list(data.inputs)
    names = [spec.name for spec in specs]
    if len(names) == len(keys) == 1:
        pairs = [(specs[0], keys[0])]
    elif set(names) == set(keys):
        pairs = [(spec, spec.name) for spec in specs]
    else:
        raise DataError(f"{data.path}: has the inputs {', '.join(keys)}, but {path} takes {', '.join(names)}")
    return tuple(
        Input(name=spec.name, key=key, cast=starter_probe.cast_for(data.inputs[key], spec.dtype)) for spec, key in pairs
    )


def _labelled(path: Path, data: Data, inputs: tuple[Input, ...], answers: dict[str, np.ndarray]) -> Probed:
    kind = data.label_kind()
    assert kind != "none"
    tensors = {name: torch.tensor(array) for name, array in answers.items()}
    chosen = starter_probe.judged(tensors, data, kind, str(path))
    others = tuple(name for name in answers if name != chosen)
    # The runtime hands its outputs out in the file's order: one that is not the first has to be asked for by name.
    pick = "" if chosen == next(iter(answers)) else chosen
    label_shape = starter_probe.reshaped(data, answers[chosen].shape)
    return Probed(inputs=inputs, outputs=(chosen, *others), problem=kind, pick=pick, label_shape=label_shape)


def _agreement(name: str, output: np.ndarray) -> Agreement:
    classes = output.ndim == 2 and output.shape[1] > 1 and output.dtype.kind == "f"
    return "top answer" if classes and not _no_classes(name) else "closeness"


def _no_classes(name: str) -> bool:
    return any(word in name.lower() for word in _NOT_CLASSES)
