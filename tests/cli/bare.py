"""A device: a Python that has numpy and ONNX Runtime and nothing else; and a bundle unpacked there."""

import importlib.util
import os
import subprocess
import sys
import tarfile
from pathlib import Path

DEVICE_HAS = ("numpy", "numpy.libs", "numpy-*.dist-info", "onnxruntime", "onnxruntime-*.dist-info")


def bare_python(home: Path, has: tuple[str, ...] = DEVICE_HAS) -> Path:
    """The interpreter of a new environment without pip, into which these patterns are linked from this one's site-packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=60)
    (site,) = home.glob("lib/python*/site-packages")
    spec = importlib.util.find_spec("numpy")
    assert spec is not None
    assert spec.origin is not None
    for name in has:
        for source in Path(spec.origin).parents[1].glob(name):
            (site / source.name).symlink_to(source)
    return home / "bin" / "python"


def run_there(python: Path, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run something with that Python, without this environment's own variables."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(python.parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(python), *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


def unpack(archive: Path, folder: Path) -> Path:
    """As a user does; the folder that everything stands in."""
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root
