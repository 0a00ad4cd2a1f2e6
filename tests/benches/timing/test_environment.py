"""The description of the machine, without importing what it describes."""

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from edgesmith.benches.timing.environment import describe, devices, power_modes


def test_it_names_what_decides_a_measurement() -> None:
    found = describe(threads=2, seed=7)
    assert (found["threads"], found["seed"]) == (2, 7)
    assert found["python"] == platform.python_version()
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["onnxruntime"] == metadata.version("onnxruntime")
    assert found["torch_pruning"] == metadata.version("torch-pruning")
    assert found["cpu"] not in ("", "unknown")
    assert json.loads(json.dumps(found)) == found


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; from edgesmith.benches.timing.environment import describe; describe(1, 0);"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("says", "mode"),
    [
        ("echo 'NV Power Mode: 15W'; echo 2", "15W"),
        ("echo 'NV Fan Mode:quiet'; echo 'NV Power Mode: MODE_30W_ALL'; echo 3", "MODE_30W_ALL"),
        ("echo 'NVPM ERROR: Error opening /etc/nvpmodel.conf' >&2; exit 255", "not said: NVPM ERROR: Error opening /etc/nvpmodel.conf"),
        ("exit 1", "not said: no answer"),
    ],
)  # fmt: skip
def test_the_power_mode_of_a_jetson(says: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvpmodel"
    tool.write_text(f'#!/bin/sh\n[ "$1" = -q ] || exit 9\n{says}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "governor").write_text("schedutil\n")
    assert power_modes(tmp_path / "governor") == {"cpu_governor": "schedutil", "power_mode": mode}


def test_a_machine_without_power_modes_has_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert power_modes(tmp_path / "governor") == {}


@pytest.mark.parametrize(
    ("kernel_module", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n", "550.54.15"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.95.05  Release Build\nGCC 12.3.0\n",
            "580.95.05",
        ),
        ("NVRM\n", "not said"),
    ],
)
def test_what_measures_beside_the_processor(kernel_module: str, version: str, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    for place, said in (("0000:01:00.0", "Model: \t\t NVIDIA H200\nIRQ:   \t\t 63\n"), ("0000:02:00.0", "IRQ: 64\n")):
        folder = tmp_path / "nvidia" / "gpus" / place
        folder.mkdir(parents=True)
        (folder / "information").write_text(said)
    (tmp_path / "nvidia" / "version").write_text(kernel_module)
    assert devices(tmp_path / "model", tmp_path / "nvidia") == {
        "board": "NVIDIA Jetson AGX Orin Developer Kit", "gpus": ["NVIDIA H200", "unknown"], "nvidia_driver": version,
    }  # fmt: skip


def test_a_machine_without_a_board_or_gpu_has_no_key(tmp_path: Path) -> None:
    assert devices(tmp_path / "model", tmp_path / "nvidia") == {}
