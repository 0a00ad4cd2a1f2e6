"""The Dockerfile: no image is built here, so what can go wrong in it is held to the checkout instead."""

import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import edgesmith

ROOT = Path(__file__).parents[2]
ORDER = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENV", "USER", "ENTRYPOINT", "CMD"}


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, the rest) of every line; comments left out, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    found = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    assert all(len(each) == 2 for each in found), found
    return [(name, rest) for name, rest in found]


STEPS = instructions((ROOT / "Dockerfile").read_text())


def of(name: str) -> list[str]:
    return [rest for each, rest in STEPS if each == name]


def test_it_has_the_instructions_that_docker_knows_in_an_order_that_works() -> None:
    names = [name for name, _ in STEPS]
    assert set(names) <= ORDER and names[0] == "FROM" and names[-2:] == ["ENTRYPOINT", "CMD"]
    assert max(i for i, name in enumerate(names) if name == "COPY") < names.index("RUN") < names.index("USER")
    assert of("ENTRYPOINT") == ['["edgesmith"]'], "as an array: no shell between docker's signals and the program"
    assert of("USER") == ["nobody"]


def test_its_python_is_one_that_edgesmith_says_it_runs_on() -> None:
    (image,) = of("FROM")
    match = re.fullmatch(r"python:(3\.\d+)-slim", image)
    assert match is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Programming Language :: Python :: {match[1]}" in project["classifiers"]


def test_it_installs_as_make_does_and_extras_that_exist() -> None:
    (run,) = of("RUN")
    install, version = run.split(" && ")
    makefile = re.search(r"^INSTALL := \S+ (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert makefile is not None
    assert install == f'python {makefile[1]} --no-cache-dir ".[${{EXTRAS}}]"'
    assert version == "edgesmith --version"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (given,) = (each.removeprefix("EXTRAS=") for each in of("ARG") if each.startswith("EXTRAS="))
    assert set(given.split(",")) <= set(project["optional-dependencies"])
    page = (ROOT / "docs/release-builds.md").read_text()
    assert f"`{given}`" in page and "docker build" in page


def ignored(name: str) -> bool:
    """As .dockerignore says of a path in the checkout."""
    patterns = (ROOT / ".dockerignore").read_text().split()
    parts = Path(name).parts
    return any(
        any(fnmatch.fnmatch(part, pattern[3:]) for part in parts)
        if pattern.startswith("**/")
        else "/".join(parts[: pattern.count("/") + 1]) == pattern
        for pattern in patterns
    )


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the COPY lines put into the image."""
    folder = tmp_path_factory.mktemp("image")
    for rest in of("COPY"):
        *sources, goal = shlex.split(rest)
        for source in sources:
            assert (ROOT / source).exists(), f"COPY {source}: no such file in the checkout"
            if not (ROOT / source).is_dir():
                shutil.copy(ROOT / source, folder / goal)
                continue

            def leave_out(where: str, names: list[str]) -> set[str]:
                inside = Path(where).relative_to(ROOT)
                return {name for name in names if ignored(str(inside / name))}

            shutil.copytree(ROOT / source, folder / goal, symlinks=True, ignore=leave_out)
    return folder


def test_what_it_copies_is_all_that_the_program_needs(context: Path, tmp_path: Path) -> None:
    assert not list(context.rglob("__pycache__")) and not (context / "benches/results").exists()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*command, str(tmp_path / "site"), "."], cwd=context, check=True, capture_output=True, timeout=120)
    installed = [sys.executable, "-c", "import edgesmith.cli as c; print(c.__file__); c.main(['--version'])"]
    done = subprocess.run(
        installed, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True, timeout=60
    )
    where, version = done.stdout.splitlines()
    assert where.startswith(str(tmp_path / "site")) and version == f"edgesmith {edgesmith.__version__}"
    for name in ("benches/report/report.html", "compressor/starter/templates/recipe.toml.j2"):
        assert (tmp_path / "site/edgesmith" / name).is_file()
