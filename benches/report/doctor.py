"""What this machine can do: runtimes, processor, GPU, compiler, targets, and the command that brings what is missing.

Nothing heavy is imported here, and runtimes are tried in processes of their own: a broken one must not take this down.
"""

import ctypes
import dataclasses
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from ..timing import environment

State = Literal["ok", "missing", "broken"]
# Distributions beside the core's that edgesmith works with, and the extra of this package that brings each.
_OPTIONAL = {
    "transformers": "hf",
    "tensorrt": "tensorrt",
    "tensorrt-rtx-cu12": "tensorrt-rtx",
    "openvino": "openvino",
    "neural-compressor": "neural-compressor",
    "torchao": "qat",
    "captum": "audit",
}
# Where a version says nothing about whether the library loads: what to run, which prints details.
_TRIED = {
    "onnxruntime": "import onnxruntime; print(', '.join(onnxruntime.get_available_providers()))",
    "tensorrt": "import tensorrt",
    "tensorrt-rtx-cu12": "import tensorrt_rtx",
    "openvino": "from edgesmith.exporters.sessions.openvino_session import load_openvino; load_openvino()",
}
_LOAD_SECONDS = 60
_X86 = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_ARM = ("asimd", "asimddp", "i8mm", "bf16", "sve")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Package:
    """An installed, missing or broken package."""

    name: str
    required: bool
    state: State
    version: str = ""
    detail: str = ""  # what it offers, or why it does not load
    command: str = ""  # brings it


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetState:
    """What can be done for one target here."""

    name: str
    state: Literal["ready", "written, not measured", "missing"]
    reason: str = ""
    command: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Everything `edgesmith doctor` prints."""

    python: str
    system: str
    cpu: str
    cpu_features: tuple[str, ...]
    cpu_consequence: str  # what the instruction sets mean for INT8
    cores: int
    core_limit: float | None  # a container's share, in cores
    memory_bytes: int
    cuda_device: str | None
    cuda_reason: str  # why there is none
    torch_cuda: str | None  # CUDA version torch is built with
    compiler: str | None  # C++ compiler, which torch.compile needs
    packages: tuple[Package, ...]
    targets: tuple[TargetState, ...]

    @property
    def healthy(self) -> bool:
        """Every package that edgesmith cannot do without is there and loads."""
        return all(package.state == "ok" for package in self.packages if package.required)


def diagnose() -> Diagnosis:
    """Look at this machine; takes as long as the runtimes take to load."""
    packages = tuple(_package(name, True) for name in _required())
    packages += tuple(_package(name, False) for name in _OPTIONAL)
    device, reason = cuda_device()
    found = environment.features(_X86 + _ARM)
    healthy = all(package.state == "ok" for package in packages if package.required)
    return Diagnosis(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=environment.cpu_name(),
        cpu_features=tuple(found),
        cpu_consequence=consequence(platform.machine(), found),
        cores=environment.cores(),
        core_limit=environment.core_limit(),
        memory_bytes=environment.memory_bytes(),
        cuda_device=device,
        cuda_reason=reason,
        torch_cuda=torch_cuda(),
        compiler=compiler(),
        packages=packages,
        targets=_targets(packages) if healthy else (),
    )


def consequence(machine: str, found: list[str]) -> str:
    """What the instruction sets mean for INT8 on this processor, in one line."""
    if machine in ("x86_64", "AMD64"):
        if "amx_int8" in found:
            return "AMX and VNNI: INT8 products are added in 32 bits; 8-bit weights"
        if any("vnni" in feature for feature in found):
            return "VNNI: INT8 products are added in 32 bits; 8-bit weights"
        return "no VNNI: pairs of INT8 products are added in 16 bits and would saturate; weights get 7 bits"
    if machine in ("aarch64", "arm64"):
        if "i8mm" in found or "asimddp" in found:
            return "dot-product instructions: INT8 products are added in 32 bits; 8-bit weights"
        return "no dot-product instructions are reported: INT8 may bring little speed here"
    return f"nothing is known about INT8 on {machine}"


def cuda_device() -> tuple[str | None, str]:
    """Name of the first CUDA device, or None and why; asked of the driver, without torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None, "no driver library (libcuda.so.1): the NVIDIA driver is not installed"
    code, count = driver.cuInit(0), ctypes.c_int(0)
    if code != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return None, f"a driver without a device (cuInit says {code})"
    name, handle = ctypes.create_string_buffer(128), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(handle), 0)
    driver.cuDeviceGetName(name, len(name), handle)
    return name.value.decode(errors="replace"), ""


def torch_cuda() -> str | None:
    """The CUDA version that the installed torch is built with, read without importing it."""
    spec = util.find_spec("torch")
    path = Path(spec.origin).parent / "version.py" if spec is not None and spec.origin else Path()
    found = re.search(r"^cuda.*= *'([^']+)'", path.read_text(), re.MULTILINE) if path.is_file() else None
    return found[1] if found else None


def compiler() -> str | None:
    """First line of the C++ compiler's version, the one torch.compile would take: CXX, else g++, clang++."""
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++")):
        path = shutil.which(name)
        if path is not None:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False)
            return next(iter(said.stdout.splitlines()), path)
    return None


def _required() -> list[str]:
    """Names of what edgesmith's own metadata requires, extras left out."""
    lines = [line for line in metadata.requires("edgesmith") or () if "extra ==" not in line]
    return [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines]


def _package(name: str, required: bool) -> Package:
    command = f"pip install {name}" if required else f'pip install "edgesmith[{_OPTIONAL[name]}]"'
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Package(name=name, required=required, state="missing", command=command)
    detail, problem = _tried(_TRIED[name]) if name in _TRIED else ("", "")
    if problem:
        again = command.replace("install", "install --force-reinstall", 1)
        return Package(
            name=name,
            required=required,
            state="broken",
            version=version,
            detail=f"does not load: {problem}",
            command=again,
        )
    return Package(name=name, required=required, state="ok", version=version, detail=detail)


def _tried(code: str) -> tuple[str, str]:
    """What a fresh process prints, and what goes wrong in it."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_LOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "", f"took more than {_LOAD_SECONDS} s"
    if done.returncode == 0:
        return done.stdout.strip(), ""
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "")
    return "", last.strip() or f"the process ended with {done.returncode}"


def _targets(packages: tuple[Package, ...]) -> tuple[TargetState, ...]:
    from ...exporters.targets.targets import TARGETS  # needs onnx, which may be what is missing

    states = []
    for name, target in TARGETS.items():
        reason = target.unmeasurable()
        if reason is None:
            states.append(TargetState(name=name, state="ready"))
            continue
        wanted = [p for p in packages if not p.required and p.name.startswith(name)]  # tensorrt, tensorrt-rtx-cu12
        command = "" if any(p.state == "ok" for p in wanted) else next((p.command for p in wanted), "")
        reason, _, told = reason.partition(": pip install")
        command = command or (f"pip install{told}" if told else "")
        states.append(TargetState(name=name, state="written, not measured", reason=reason, command=command))
    return tuple(states)
