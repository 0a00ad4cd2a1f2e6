"""A bundle whose digests all fit, and whose manifest or reference data was made up: refused by name, never a traceback."""

import copy
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.benches.device import on_device
from edgesmith.benches.device.device_input import check_manifest, read_reference
from edgesmith.core.errors import ArtifactError, ExitCode

ENGINE: dict[str, Any] = {
    "problem": "",
    "parsed": "model.onnx",
    "profiles": {"x": [[1, 4], [8, 4], [32, 4]]},
    "quantized": True,
    "precision": "as-is",
    "workspace_mb": None,
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}],
    "outputs": [],
    "device_command": "trtexec",
    "device_note": "",
}
MANIFEST: dict[str, Any] = {
    "task": "small",
    "confidence": 0.95,
    "threads": 1,
    "measure": {"batch_sizes": [1, 8], "seconds": 2.0, "restarts": 5},
    "metric": {"name": "accuracy", "table": "accuracy", "output": None, "higher_is_better": True},
    "reference": "reference.npz",
    "original": {"path": "models/original/model.onnx", "engine": ENGINE},
    "models": [
        {"target": "onnxruntime-cpu", "dialect": "u8", "precision": "int8", "judged": True, "path": "models/a/model.onnx"},
        {
            "target": "tensorrt", "dialect": "s8", "precision": "int8", "judged": False, "path": "models/b/model.onnx",
            "engine": copy.deepcopy(ENGINE),
        },
    ],
    "files": {
        name: {} for name in
        ("reference.npz", "models/original/model.onnx", "models/a/model.onnx", "models/b/model.onnx")
    },
}  # fmt: skip


def changed(path: str, value: Any) -> dict[str, Any]:
    tree = copy.deepcopy(MANIFEST)
    *way, last = path.split(".")
    place: Any = tree
    for name in way:
        place = place[int(name) if name.isdigit() else name]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return tree


def test_a_sound_one_is_taken() -> None:
    check_manifest(MANIFEST)
    check_manifest(changed("models.1.engine", {"problem": "no sizes"}))  # said on the device, where it is built
    check_manifest(changed("metric.table", None))  # the task's own code


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("metric", KeyError, "no metric.name"),
        ("threads", KeyError, "no threads"),
        ("threads", "x", "threads: 'x', must be a whole number from 1 on"),
        ("threads", True, "threads: True, must be a whole number from 1 on"),
        ("confidence", 1, "confidence: 1, must be a number between 0 and 1"),
        ("measure.seconds", float("nan"), "measure.seconds: nan, must be a number above 0"),
        ("measure.restarts", 1, "measure.restarts: 1, must be a whole number from 2 on"),
        ("measure.batch_sizes", [1, 0], "measure.batch_sizes: [1, 0], must be whole numbers from 1 on"),
        ("metric.table", "top7", "metric.table: 'top7', must be a metric that this version has, or null"),
        ("reference", "../x", "reference: '../x', must be a file of the bundle"),
        ("original.path", "/etc/passwd", "original.path: '/etc/passwd', must be a file of the bundle"),
        ("models", {}, "models: {}, must be a list of models"),
        ("models", [], "models: 0 of them are judged, must be one"),
        ("models.1.judged", True, "models: 2 of them are judged, must be one"),
        ("models.0.target", KeyError, "no models[0].target"),
        ("models.0.path", ["x" * 99], "models[0].path: ['" + "x" * 58 + "..., must be a file of the bundle"),
        ("models.1.engine", KeyError, "no models[1].engine"),
        ("models.1.engine", None, "no models[1].engine.problem"),
        ("original.engine.parsed", "../a/model.onnx", "original.engine.parsed: '../a/model.onnx', must be a file beside "
         "models/original/model.onnx"),
        ("models.1.engine.profiles", {"x": [[1]]}, "models[1].engine.profiles: {'x': [[1]]}, must be three shapes for "
         "each input"),
        ("models.1.engine.inputs", [{"name": "x"}], "models[1].engine.inputs: [{'name': 'x'}], must be tensors"),
    ],
)  # fmt: skip
def test_what_a_manifest_must_say(path: str, value: Any, said: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        check_manifest(changed(path, value))
    assert str(caught.value) == f"manifest.json: {said}; bundle the run again"


def arrays(**other: Any) -> dict[str, Any]:
    outputs = np.zeros((4, 3), np.float32)
    found = {"inputs/x": np.zeros((4, 1)), "original/y": outputs, "final/y": outputs, "labels": np.arange(4)}
    return {name: array for name, array in {**found, **other}.items() if array is not None}


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 8] ^= 1  # within the first member's values
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda path: path.write_bytes(b""), "not a whole .npz file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-60]), "not a whole .npz file"),
        (damage, "not a whole .npz file (Bad CRC-32 for file 'inputs/x.npy')"),
        (
            lambda path: np.savez(path, **arrays(labels=np.array([{}] * 4, dtype=object))),
            "not a whole .npz file (Object arrays cannot be loaded when allow_pickle=False)",
        ),
        (lambda path: np.savez(path, **arrays(labels=None)), "nothing is called labels"),
        (lambda path: np.savez(path, **arrays(**{"final/y": None})), "nothing is called final/NAME"),
        (lambda path: np.savez(path, **arrays(labels=np.arange(3))), "'inputs/x' holds 4 sample(s), 'labels' 3"),
        (lambda path: np.savez(path, **arrays(labels=np.array(1))), "'inputs/x' holds 4 sample(s), 'labels' 0"),
    ],
)
def test_reference_data_that_is_none(made: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    np.savez(path, **arrays())
    assert set(read_reference(path)) == set(arrays())
    made(path)
    with pytest.raises(ArtifactError) as caught:
        read_reference(path)
    assert str(caught.value) == f"reference.npz: {said}; bundle the run again"


def test_a_member_that_is_no_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "reference.npz", **arrays(labels=None))
    with zipfile.ZipFile(tmp_path / "reference.npz", "a") as archive:
        archive.writestr("labels.npy", b"four")
    with pytest.raises(ArtifactError) as caught:
        read_reference(tmp_path / "reference.npz")
    assert str(caught.value) == "reference.npz: 'inputs/x' holds 4 sample(s), 'labels' 0; bundle the run again"


def test_run_py_ends_with_2_and_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = on_device.argparse.Namespace(threads=None, batch=None, seconds=None)
    assert on_device.main(tmp_path, changed("threads", "x"), "0" * 64, options) == ExitCode.USAGE
    assert capsys.readouterr().err == (
        "ArtifactError: manifest.json: threads: 'x', must be a whole number from 1 on; bundle the run again\n"
    )
