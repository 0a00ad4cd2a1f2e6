"""The documents hold: links lead somewhere, and the commands they show exist. `make docs` runs this file."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_OURS = {"build", "dist", "runs", "node_modules"}


def documents(root: Path = ROOT) -> list[Path]:
    """Every Markdown page of the checkout."""
    found = (path.relative_to(root) for path in root.rglob("*.md"))
    return sorted(path for path in found if not any(part in NOT_OURS or part[0] == "." for part in path.parts))


def prose(text: str) -> str:
    """The text without code blocks and code spans, where brackets are not links."""
    return re.sub(r"`[^`\n]*`", "`code`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def code(text: str) -> Iterator[str]:
    """Lines of code blocks, and code spans."""
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        yield from block.splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(text: str) -> set[str]:
    """Anchors of the headings, as Git hosting sites make them: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(
        r"^#+ +(.+?) *$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, root: Path = ROOT) -> list[str]:
    """Relative links of `page` to a file or heading that is not there."""
    text = (root / page).read_text()
    problems = []
    targets = re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", prose(text))
    targets += re.findall(r"^\[[^\]]+\]: +(\S+)", prose(text), re.MULTILINE)
    for target in targets:
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (root / page).parent / name if name else root / page
        if not file.exists():
            problems.append(f"{page}: {target}: no such file")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text()):
            problems.append(f"{page}: {target}: no such heading")
    return problems


def commands(text: str) -> set[str]:
    """Sub-commands of `edgesmith` that the code of a page calls: a word right after it, so no option and no module."""
    calls = (
        re.match(r"(?:\$ +)?(?:\S*/)?(?:python3? -m )?edgesmith +([a-z][a-z-]*)(?![\w.])", line) for line in code(text)
    )
    return {call[1] for call in calls if call}


def make_targets(text: str) -> set[str]:
    """Goals of `make` that the code of a page calls."""
    calls = (re.match(r"(?:\$ +)?make +([a-z]+)\b", line) for line in code(text))
    return {call[1] for call in calls if call}


@pytest.mark.parametrize("page", documents(), ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_documented_commands_exist() -> None:
    shown = {name: page for page in documents() for name in commands((ROOT / page).read_text())}
    readme = commands((ROOT / "README.md").read_text()) | make_targets((ROOT / "README.md").read_text())
    assert {"compress", "demo", "test"} <= readme, "what a newcomer needs stands on the first page"
    for name, page in shown.items():
        done = subprocess.run(
            [sys.executable, "-m", "edgesmith", name, "--help"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{page} shows `edgesmith {name}`: {done.stderr}"


def test_documented_goals_of_make_exist() -> None:
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = {goal for page in documents() for goal in make_targets((ROOT / page).read_text())}
    assert shown <= rules
    assert {"setup", "demo", "test", "lint", "format", "bench", "docs"} <= rules


def test_the_pages_that_must_be_there() -> None:
    pages = {page.as_posix() for page in documents()}
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/architecture.md", "tests/data/README.md"} <= pages


def test_the_check_finds_what_is_broken(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "guide.md").write_text("# The guide\n\n## Where it's done\n\n```\n# not a heading\n```\n")
    (tmp_path / "README.md").write_text(
        "[a](docs/guide.md) [b](docs/gide.md) [c](docs/guide.md#where-its-done) [d](docs/guide.md#elsewhere)\n"
        "[e](https://example.org/x) `[f](code.md)` [g](#top) ![h](shot.png)\n\n[i]: docs/other.md\n\n# Top\n"
        "```\n[j](block.md)\n```\n[k](docs/guide.md#not-a-heading)\n"
    )
    assert documents(tmp_path) == [Path("README.md"), Path("docs/guide.md")]
    assert broken_links(Path("README.md"), tmp_path) == [
        "README.md: docs/gide.md: no such file",
        "README.md: docs/guide.md#elsewhere: no such heading",
        "README.md: shot.png: no such file",
        "README.md: docs/guide.md#not-a-heading: no such heading",
        "README.md: docs/other.md: no such file",
    ]


def test_commands_are_found_in_code_only() -> None:
    page = (
        "edgesmith makes models small. `edgesmith bench A.onnx B.onnx`, `edgesmith --help`, `edgesmith.core.task`\n"
        "```console\n$ .venv/bin/edgesmith compress recipe.toml\npython -m edgesmith plan\nmake demo\n"
        "edgesmith.toml\n```\n"
        "`make test`, `make`\n"
    )
    assert commands(page) == {"bench", "compress", "plan"}
    assert make_targets(page) == {"demo", "test"}
