"""What is installed: sdist -> wheel from that sdist -> an environment of its own. No network."""

import configparser
import email
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import edgesmith

ROOT = Path(__file__).parents[2]
FOLDERS = ("compressor", "benches", "exporters", "calibration")  # at the top level here, edgesmith.* when installed
MUST_HAVE = {
    "edgesmith/__init__.py",
    "edgesmith/__main__.py",
    "edgesmith/benches/__init__.py",
    "edgesmith/benches/report/report.html",
    "edgesmith/benches/report/report_parts.html",
    "edgesmith/benches/report/report_style.html",
    "edgesmith/calibration/__init__.py",
    "edgesmith/cli.py",
    "edgesmith/compressor/__init__.py",
    "edgesmith/compressor/starter/templates/recipe.toml.j2",
    "edgesmith/compressor/starter/templates/splits.py.j2",
    "edgesmith/compressor/starter/templates/task_onnx.py.j2",
    "edgesmith/compressor/starter/templates/task_torch.py.j2",
    "edgesmith/core/__init__.py",
    "edgesmith/core/errors.py",
    "edgesmith/exporters/__init__.py",
    "edgesmith/py.typed",
}
NOT_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "runs", "*.egg-info")


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed."""
    # This checkout must not be found through the environment: what was built has to stand on its own.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the sdist and the wheel made from it; built from a copy, in a path with a space."""
    place = tmp_path_factory.mktemp("a place")
    shutil.copytree(ROOT, place / "source", symlinks=True, ignore=NOT_SOURCE)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", place / "dist", place / "source", cwd=place)
    return place / "dist"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> zipfile.ZipFile:
    (path,) = dist.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of an environment that holds the wheel, and sees this environment's dependencies but not its edgesmith."""
    home = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=dist)
    (path,) = dist.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--python", home / "bin" / "python", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", path, cwd=dist)
    (site,) = home.glob("lib/python*/site-packages")
    # A plain path: the .pth files found there, the editable install's among them, are not followed.
    (site / "dependencies.pth").write_text(next(entry for entry in sys.path if entry.endswith("site-packages")) + "\n")
    return home / "bin"


def source_files() -> set[str]:
    """What the source folders hold, by the names it is installed under; the links in src/ are not asked."""
    found = {path: path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*")}
    own = ROOT / "src" / "edgesmith"
    found |= {path: path.relative_to(own) for path in (*own.glob("*"), *(own / "core").rglob("*"))}
    names = {name.as_posix() for path, name in found.items() if path.is_file() and "__pycache__" not in name.parts}
    return {f"edgesmith/{name}" for name in names if not name.startswith(("benches/peers/", "benches/results/"))}


def metadata_files(names: set[str]) -> set[str]:
    return {name for name in names if name.split("/")[0].endswith(".dist-info")}


def test_the_wheel_holds_the_source_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert names - metadata_files(names) == source_files()


def test_the_wheel_holds_what_it_must(wheel: zipfile.ZipFile) -> None:
    """Apart from the comparison above, which two empty sets would pass."""
    assert set(wheel.namelist()) >= MUST_HAVE
    folders = {"/".join(name.split("/")[:2]) for name in wheel.namelist() if name.count("/") > 1}
    assert folders - metadata_files(folders) == {f"edgesmith/{folder}" for folder in (*FOLDERS, "core")}


def test_a_file_is_what_it_is_in_the_checkout(wheel: zipfile.ZipFile) -> None:
    assert wheel.read("edgesmith/cli.py") == (ROOT / "cli.py").read_bytes()
    assert (
        wheel.read("edgesmith/benches/report/report.html") == (ROOT / "benches" / "report" / "report.html").read_bytes()
    )


def test_the_sdist_holds_files_where_the_checkout_has_links(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        members = {"/".join(member.name.split("/")[1:]): member for member in archive.getmembers()}
    assert not [name for name, member in members.items() if member.issym() or member.islnk()]
    assert {f"src/{name}" for name in source_files()} <= set(members)
    assert {"LICENSE", "README.md", "pyproject.toml"} <= set(members)
    assert not [name for name in members if "benches/peers" in name or "benches/results" in name]


def test_the_metadata(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = email.message_from_bytes(wheel.read(name))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["Version"] == edgesmith.__version__ == project["version"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    (licence,) = [name for name in wheel.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
    assert wheel.read(licence).decode().split() == (ROOT / "LICENSE").read_text().split()


def test_every_range_has_its_pin() -> None:
    """`make setup` and `make lint` install nothing whose version constraints.txt leaves open."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(line.count("==") == 1 and "+" not in line and "/" not in line for line in pins)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in pins}
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["test"], *extras["examples"], *extras["dev"]]
    named = {requirement.split(">=")[0].split("[")[0].lower() for requirement in wanted}
    assert named - {"edgesmith"} <= pinned


def test_the_console_script(wheel: zipfile.ZipFile, installed: Path, tmp_path: Path) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    entries = configparser.ConfigParser()
    entries.read_string(wheel.read(name).decode())
    assert dict(entries["console_scripts"]) == {"edgesmith": "edgesmith.cli:main"}
    text = run(installed / "edgesmith", "--help", cwd=tmp_path)
    assert "compress" in text
    assert text == run(installed / "python", "-m", "edgesmith", "--help", cwd=tmp_path)


def test_what_runs_is_what_was_installed(installed: Path, tmp_path: Path) -> None:
    where = run(installed / "python", "-c", "import edgesmith; print(edgesmith.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(installed.parent)
    script = (
        "import edgesmith.benches.report.html_report, edgesmith.compressor.pipeline, edgesmith.exporters.targets.targets;"
        "print(*sorted(edgesmith.exporters.targets.targets.TARGETS))"
    )
    assert run(installed / "python", "-c", script, cwd=tmp_path).split() == [
        "onnxruntime-arm", "onnxruntime-cpu", "onnxruntime-cuda", "onnxruntime-openvino", "onnxruntime-tensorrt", "onnxruntime-x86", "openvino",
        "tensorrt",
    ]  # fmt: skip


def test_a_users_own_modules_shadow_nothing(installed: Path, tmp_path: Path) -> None:
    for name in ("calibration", "cli", "benches", "exporters", "compressor", "core"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the user\\'s own')\n")
    script = "import edgesmith.cli, edgesmith.compressor, edgesmith.core.errors, edgesmith.calibration; print('own')"
    assert run(installed / "python", "-c", script, cwd=tmp_path) == "own\n"
    assert run(installed / "python", "-m", "edgesmith", "--help", cwd=tmp_path)
