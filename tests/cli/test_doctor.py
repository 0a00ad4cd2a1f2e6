"""`edgesmith doctor`: what is here, what is missing, and the command that brings it."""

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from edgesmith.benches.report import doctor
from edgesmith.benches.report.doctor_text import lines
from edgesmith.benches.timing import environment
from edgesmith.cli import main
from edgesmith.core.errors import ExitCode
from edgesmith.exporters.targets.targets import TARGETS


@pytest.fixture(scope="module")
def diagnosis() -> doctor.Diagnosis:
    return doctor.diagnose()


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets a distribution look uninstalled; nothing is tried out."""

    def hide(name: str) -> None:
        version = metadata.version

        def missing(asked: str) -> str:
            if asked == name:
                raise metadata.PackageNotFoundError(name)
            return version(asked)

        monkeypatch.setattr(metadata, "version", missing)
        monkeypatch.setattr(doctor, "_TRIED", {})

    return hide


def test_this_machine(diagnosis: doctor.Diagnosis) -> None:
    packages = {package.name: package for package in diagnosis.packages}
    assert packages["onnxruntime"].version == metadata.version("onnxruntime")
    assert "CPUExecutionProvider" in packages["onnxruntime"].detail
    assert packages["tensorrt-rtx-cu12"].state == "ok"
    assert {package.name for package in diagnosis.packages if package.required} == {
        "accelerate", "jinja2", "numpy", "onnx", "onnxruntime", "onnxscript", "pydantic", "rich", "safetensors", "scipy",
        "torch", "torch-pruning",
    }  # fmt: skip
    assert diagnosis.healthy
    assert {target.name: target.state for target in diagnosis.targets}["onnxruntime-cpu"] == "ready"
    assert len(diagnosis.targets) == len(TARGETS)
    assert (diagnosis.cores, diagnosis.cpu) == (environment.cores(), environment.cpu_name())


def test_printed_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == ExitCode.PASS
    found = json.loads(capsys.readouterr().out)
    assert found["targets"][0] == {"name": "onnxruntime-cpu", "state": "ready", "reason": "", "command": ""}
    assert main(["doctor"]) == ExitCode.PASS
    out = capsys.readouterr().out
    assert out.startswith(f"Python {found['python']} on ")
    assert "\x1b" not in out


def test_a_missing_extra_is_told_with_its_command(without: Callable[[str], None]) -> None:
    without("transformers")
    text = list(lines(doctor.diagnose()))
    assert '  transformers       missing; pip install "edgesmith[hf]"' in text


def test_a_missing_requirement_fails(without: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    without("onnxscript")
    assert main(["doctor"]) == ExitCode.FAILED
    out = capsys.readouterr().out
    assert "  onnxscript     missing; pip install onnxscript\n" in out
    assert out.endswith("Targets: not looked at while something needed is missing\n")


def test_a_runtime_that_does_not_load_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_TRIED", {"onnxruntime": "raise ImportError('libfoo.so: no such file')"})
    found = doctor.diagnose()
    package = next(package for package in found.packages if package.name == "onnxruntime")
    assert (package.state, package.detail, package.command) == (
        "broken",
        "does not load: ImportError: libfoo.so: no such file",
        "pip install --force-reinstall onnxruntime",
    )
    assert not found.healthy


def test_a_runtime_that_crashes_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor, "_TRIED", {"tensorrt-rtx-cu12": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"}
    )
    package = next(p for p in doctor.diagnose().packages if p.name == "tensorrt-rtx-cu12")
    assert (package.state, package.detail) == ("broken", "does not load: the process ended with -9")


@pytest.mark.parametrize(
    ("machine", "features", "words"),
    [
        (
            "x86_64",
            ["avx2"],
            "no VNNI: pairs of INT8 products are added in 16 bits and would saturate; weights get 7 bits",
        ),
        ("x86_64", ["avx2", "avx_vnni"], "VNNI: INT8 products are added in 32 bits; 8-bit weights"),
        ("x86_64", ["avx512_vnni", "amx_int8"], "AMX and VNNI: INT8 products are added in 32 bits; 8-bit weights"),
        ("aarch64", ["asimd"], "no dot-product instructions are reported: INT8 may bring little speed here"),
        ("aarch64", ["asimddp"], "dot-product instructions: INT8 products are added in 32 bits; 8-bit weights"),
        ("riscv64", [], "nothing is known about INT8 on riscv64"),
    ],
)
def test_what_instruction_sets_mean(machine: str, features: list[str], words: str) -> None:
    assert doctor.consequence(machine, features) == words


def test_limits_of_a_container(tmp_path: Path) -> None:
    assert environment.core_limit(tmp_path) is None
    machine = environment.memory_bytes(tmp_path)
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("1048576\n")
    assert environment.core_limit(tmp_path) == 1.5
    assert environment.memory_bytes(tmp_path) == 1 << 20
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert environment.core_limit(tmp_path) is None
    assert environment.memory_bytes(tmp_path) == machine


def test_limits_of_an_older_container(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert environment.core_limit(tmp_path) == 0.5
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert environment.core_limit(tmp_path) is None


def test_the_compiler_is_the_one_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own-compiler"
    own.write_text("#!/bin/sh\necho own 1.2\necho more\n")
    own.chmod(0o755)
    monkeypatch.setenv("CXX", str(own))
    assert doctor.compiler() == "own 1.2"
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.compiler() is None
