"""`edgesmith bundle`: the archive, and what its run.py does where there is no edgesmith, torch or onnx."""

import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.benches.device.device_launcher import Refused, verified
from edgesmith.cli import main
from edgesmith.compressor.data import sample_indices
from edgesmith.core import digest
from edgesmith.core.errors import ExitCode
from edgesmith.core.task import ArraySplit

from .bare import bare_python, run_there, unpack

RUN = Path("runs/small")
FINAL = "models/onnxruntime-cpu/model.onnx"


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with numpy and ONNX Runtime only."""
    return bare_python(tmp_path_factory.mktemp("device") / "python")


@pytest.fixture(scope="module")
def archive(finished_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("archive") / "small.tar.gz"
    assert main(["bundle", str(finished_once / RUN), "--out", str(out)]) == ExitCode.PASS
    return out


@pytest.fixture
def there(archive: Path, tmp_path: Path) -> Path:
    """The bundle unpacked into an empty folder."""
    return unpack(archive, tmp_path / "a device")


def expected_accuracy(project: Path, side: str) -> float:
    """Of the bundled samples, from what the run kept."""
    with np.load(project / RUN / "predictions.npz", allow_pickle=False) as stored:
        labels, logits = stored["labels"], stored[f"{side}/logits"]
    chosen = sample_indices(ArraySplit({"x": labels}), 256)
    return float((logits[chosen].argmax(1) == labels[chosen]).mean())


@pytest.mark.slow
def test_it_measures_itself_without_edgesmith(there: Path, device: Path, finished_once: Path) -> None:
    tried = run_there(device, "-c", "import onnxruntime, numpy\nimport edgesmith", cwd=there)
    assert tried.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'edgesmith'"
    for name in ("torch", "onnx"):
        assert f"No module named '{name}'" in run_there(device, "-c", f"import {name}", cwd=there).stderr
    before = {path for path in there.rglob("*") if path.is_file()}

    done = run_there(device, "run.py", "--seconds", "1", cwd=there)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads((there / "result.json").read_text())
    final, tensorrt = result["models"]
    assert (tensorrt["target"], tensorrt["measured"], tensorrt["reason"]) == ("tensorrt", False, "no CUDA device")
    assert "tensorrt: not measured: no CUDA device" in done.stdout.splitlines()
    assert (final["target"], final["measured"], final["judged"]) == ("onnxruntime-cpu", True, True)
    for side in ("original", "final"):
        assert final["accuracy"][side]["value"] == expected_accuracy(finished_once, side)
        assert final["accuracy"]["reference"][side] == expected_accuracy(finished_once, side)
    drop = expected_accuracy(finished_once, "original") - expected_accuracy(finished_once, "final")
    assert final["accuracy"]["drop"]["value"] == pytest.approx(drop, abs=1e-12)
    # The same runtime and machine as the run's.
    assert final["agreement"] == {"original": 1.0, "final": 1.0}
    assert [(each["side"], each["max_abs"]) for each in final["parity"]] == [("original", 0.0), ("final", 0.0)]
    assert [each["batch"] for each in final["latency"]] == [1, 8]
    for each in final["latency"]:
        assert 0 < each["final"]["p50"] <= each["final"]["p99"] < 1000
        assert each["speedup"]["low"] <= each["speedup"]["value"] <= each["speedup"]["high"]
    assert (result["samples"], result["metric"], result["settings"]["restarts"]) == (256, "accuracy", 5)
    assert {name: result["device"][name] for name in ("numpy", "onnxruntime")} == {
        name: metadata.version(name) for name in ("numpy", "onnxruntime")
    }
    made = {path for path in there.rglob("*") if path.is_file()} - before
    assert {path.relative_to(there).parts[0] for path in made} == {"work", "result.json"}

    again = run_there(device, "run.py", "--seconds", "1", cwd=there)
    for step in ("answers", "latency"):
        assert f"  {step}-onnxruntime-cpu: measured before" in again.stdout.splitlines()
    assert json.loads((there / "result.json").read_text()) == result


def test_a_model_that_answers_otherwise_there(there: Path, device: Path) -> None:
    """The references are another model's: what the device computes is held against them."""
    with np.load(there / "reference.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    arrays["final/logits"] = np.roll(arrays["final/logits"], 1, axis=1)
    np.savez(there / "reference.npz", **arrays)
    relist(there, "reference.npz")
    done = run_there(device, "run.py", "--seconds", "0.1", "--batch", "2", cwd=there)
    assert done.returncode == 0, done.stderr
    final = json.loads((there / "result.json").read_text())["models"][0]
    assert [each["batch"] for each in final["latency"]] == [2]
    assert final["agreement"]["original"] == 1.0
    assert final["agreement"]["final"] < 0.2
    parity = {each["side"]: each for each in final["parity"]}
    assert parity["original"]["snr_db"] is None  # equal
    assert parity["final"]["snr_db"] < 10
    assert final["accuracy"]["reference"]["final"] < 0.2 < final["accuracy"]["final"]["value"]


def relist(folder: Path, name: str) -> None:
    """Let the manifest speak of a file as it now is."""
    manifest = json.loads((folder / "manifest.json").read_text())
    path = folder / name
    manifest["files"][name] = {"sha256": digest.of_file(path), "bytes": path.stat().st_size}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_runtime_that_cannot_load_a_file_is_said_in_its_row(there: Path, device: Path) -> None:
    (there / FINAL).write_bytes(b"no model")
    relist(there, FINAL)
    done = run_there(device, "run.py", "--seconds", "0.1", "--batch", "1", cwd=there)
    assert done.returncode == ExitCode.UNPROVEN
    final = json.loads((there / "result.json").read_text())["models"][0]
    assert not final["measured"]
    assert "ONNX Runtime cannot load it" in final["reason"]


def test_a_whole_bundle_is_taken_and_its_manifest_says_what_it_is(there: Path) -> None:
    manifest = verified(there, digest.of_file(there / "manifest.json"))
    assert manifest["schema"] == "edgesmith.bundle/1"
    assert manifest["needs"] == {"numpy": "numpy", "onnxruntime": "onnxruntime"}
    assert manifest["metric"] == {"name": "accuracy", "table": "accuracy", "output": None, "higher_is_better": True}
    assert (manifest["samples"], manifest["test_samples"], manifest["threads"]) == (256, 497, 1)
    assert [model["target"] for model in manifest["models"]] == ["onnxruntime-cpu", "tensorrt"]
    engine = manifest["models"][1]["engine"]
    assert engine["profiles"] == {"image": [[1, 1, 8, 8], [4, 1, 8, 8], [8, 1, 8, 8]]}
    assert (engine["quantized"], engine["parsed"], engine["precision"]) == (True, "model.onnx", "as-is")
    assert engine["device_command"].startswith("trtexec --onnx=model.onnx --saveEngine=model.engine")
    with np.load(there / "reference.npz", allow_pickle=False) as stored:
        assert {name: stored[name].shape for name in stored.files} == {
            "inputs/image": (256, 1, 8, 8), "labels": (256,), "original/logits": (256, 10), "final/logits": (256, 10),
        }  # fmt: skip


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def replace_by_link(path: Path) -> None:
    path.rename(path.parents[2] / "elsewhere")
    path.symlink_to(path.parents[2] / "elsewhere")


def link_folder(folder: Path) -> None:
    (folder / "models").rename(folder.parent / "models")
    (folder / "models").symlink_to(folder.parent / "models")


def rename_in_manifest(folder: Path, name: str) -> None:
    edit(folder, lambda manifest: manifest["files"].update({name: manifest["files"].pop("run.py")}))


AGAIN = "unpack the archive again"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed byte": (
        lambda folder: flip(folder / FINAL), f"{FINAL}: not the file that was bundled (SHA-256 differs); {AGAIN}"
    ),
    "a truncated file": (
        lambda folder: (folder / "reference.npz").write_bytes(b"PK"), f"reference.npz: 2 bytes, not SIZE; {AGAIN}"
    ),
    "a file missing": (lambda folder: (folder / FINAL).unlink(), f"{FINAL}: missing; unpack the whole archive"),
    "a module that would shadow numpy": (
        lambda folder: (folder / "lib" / "numpy.py").write_text("1 / 0"),
        "lib/numpy.py: not a file of this bundle; remove it, or unpack the archive into an empty folder",
    ),
    "a link to a file": (
        lambda folder: replace_by_link(folder / FINAL), f"{FINAL}: a link; a bundle holds none, {AGAIN}"
    ),
    "a folder that is a link": (
        link_folder, "models/onnxruntime-cpu/model.onnx: a link; a bundle holds none, unpack the archive again"
    ),
    "a link more": (
        lambda folder: (folder / "lib" / "more").symlink_to("/etc"),
        "lib/more: not a file of this bundle; remove it, or unpack the archive into an empty folder",
    ),
    "a way out": (
        lambda folder: rename_in_manifest(folder, "../../etc/passwd"),
        "manifest.json: '../../etc/passwd' is no name of a file in a bundle",
    ),
    "an absolute name": (
        lambda folder: rename_in_manifest(folder, "/etc/passwd"),
        "manifest.json: '/etc/passwd' is no name of a file in a bundle",
    ),
    "another manifest": (
        lambda folder: (folder / "manifest.json").write_text("[]"),
        "FOLDER/manifest.json: not the manifest of a bundle (TypeError('list indices must be integers or slices, not str'))",
    ),
    "no manifest": (
        lambda folder: (folder / "manifest.json").unlink(),
        "FOLDER/manifest.json: no such file; unpack the whole archive",
    ),
    "a later schema": (
        lambda folder: edit(folder, lambda manifest: manifest.update(schema="edgesmith.bundle/2")),
        "FOLDER/manifest.json: schema is 'edgesmith.bundle/2', this run.py reads 'edgesmith.bundle/1'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_or_hostile_bundle_is_refused(damage: Callable[[Path], object], said: str, there: Path) -> None:
    size = (there / "reference.npz").stat().st_size
    damage(there)
    with pytest.raises(Refused) as refused:
        verified(there)
    assert str(refused.value) == said.replace("FOLDER", str(there)).replace("SIZE", str(size))


def test_run_py_refuses_before_it_imports_anything(there: Path, device: Path) -> None:
    (there / "lib" / "edgesmith_device" / "__init__.py").write_text("print('imported')")
    done = run_there(device, there / "run.py", cwd=there.parent)
    size = (there / "lib/edgesmith_device/__init__.py").stat().st_size
    assert done.returncode == ExitCode.USAGE
    assert done.stdout == ""
    assert done.stderr.startswith(f"refused: lib/edgesmith_device/__init__.py: {size} bytes, not ")
    done = run_there(device, there / "run.py", "--manifest", "0" * 64, cwd=there.parent)
    assert done.stderr == f"refused: {there}/manifest.json: not the one that was sent; unpack the archive again\n"


def test_what_is_not_installed_is_named_with_its_command(there: Path, tmp_path: Path) -> None:
    python = bare_python(tmp_path / "empty", has=())
    done = run_there(python, "run.py", cwd=there)
    assert done.returncode == ExitCode.USAGE
    assert done.stderr == (
        f"refused: numpy, onnxruntime: not installed here; {python} -m pip install numpy onnxruntime\n"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--batch", "x"), "UsageError: --batch x: write sizes as 1,8\n"),
        (("--threads", "0"), "UsageError: --threads, --batch and --seconds must be greater than 0\n"),
        (("--seconds", "nan"), "UsageError: --threads, --batch and --seconds must be greater than 0\n"),
    ],
)
def test_wrong_options_of_run_py(options: tuple[str, str], said: str, there: Path, device: Path) -> None:
    done = run_there(device, "run.py", *options, cwd=there)
    assert (done.returncode, done.stderr) == (ExitCode.USAGE, said)


def test_the_same_run_gives_the_same_bytes_and_a_zip_the_same_files(
    archive: Path, finished_once: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again.tgz"
    assert main(["bundle", str(finished_once / RUN), "--out", str(again)]) == ExitCode.PASS
    assert again.read_bytes() == archive.read_bytes()
    packed = tmp_path / "small.zip"
    capsys.readouterr()
    assert main(["bundle", str(finished_once / RUN), "--out", str(packed), "--json"]) == ExitCode.PASS
    said = json.loads(capsys.readouterr().out)
    assert said["targets"] == ["onnxruntime-cpu", "tensorrt"]
    assert said["file_bytes"] == packed.stat().st_size
    with zipfile.ZipFile(packed) as zipped, tarfile.open(archive) as tar:
        assert sorted(zipped.namelist()) == sorted(tar.getnames())
        assert digest.of_bytes(zipped.read("edgesmith-bundle/manifest.json")) == said["digest"]
        zipped.extractall(tmp_path)
    verified(tmp_path / "edgesmith-bundle", said["digest"])


def test_fewer_samples(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", str(RUN), "--samples", "20"]) == ExitCode.PASS
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("wrote runs/small/bundle.tar.gz (")
    assert first.endswith("): onnxruntime-cpu, tensorrt")
    assert second.startswith("20 of 497 test samples; manifest SHA-256 ")
    assert third == "on the device: tar xzf bundle.tar.gz && python3 edgesmith-bundle/run.py"
    root = unpack(RUN / "bundle.tar.gz", tmp_path / "unpacked")
    with np.load(root / "reference.npz", allow_pickle=False) as stored:
        assert {len(stored[name]) for name in stored.files} == {20}


def bundle(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    code = main(["bundle", str(RUN), *options])
    return code, capsys.readouterr().err.strip()


def test_what_cannot_be_bundled(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bundle(capsys, "--out", "x.tar") == (
        ExitCode.USAGE, "UsageError: --out x.tar: the name must end with .tar.gz, .tgz or .zip",
    )  # fmt: skip
    shutil.copy(RUN / "artifacts/onnxruntime-cpu/model.onnx", "kept.onnx")
    flip(RUN / "artifacts/onnxruntime-cpu/model.onnx")
    code, said = bundle(capsys)
    assert code == ExitCode.USAGE
    assert said.startswith(
        "ArtifactError: runs/small/artifacts/onnxruntime-cpu/model.onnx: not the file that was judged: SHA-256 "
    )
    os.replace("kept.onnx", RUN / "artifacts/onnxruntime-cpu/model.onnx")
    os.rename(RUN / "predictions.npz", "predictions.npz")
    assert bundle(capsys) == (
        ExitCode.USAGE,
        "RunDirectoryError: runs/small: predictions.npz is missing, which holds the reference outputs; "
        "run `edgesmith compress` again",
    )
    os.rename("predictions.npz", RUN / "predictions.npz")
    task = Path("task.py")
    task.write_text(task.read_text().replace("part(1300, 1797)", "part(1301, 1797)"))
    assert bundle(capsys) == (
        ExitCode.USAGE,
        "RunDirectoryError: runs/small: the task's code or data have changed since this run; "
        "run `edgesmith compress` into runs/small again",
    )
    (RUN / "report.json").unlink()
    assert bundle(capsys) == (
        ExitCode.USAGE,
        "RunDirectoryError: runs/small: not a finished run (no report.json); give the directory that "
        "`edgesmith compress` wrote",
    )
    assert not (RUN / "bundle.tar.gz").exists()
