"""What a bundle carries to a device: whole in itself, numpy and the runtime only, and good for Python 3.8."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgesmith.compressor.device.device_files import PACKAGE, device_files

ROOT = Path(__file__).parents[2]
FILES = device_files()
VENDORS = {"numpy", "onnxruntime", "openvino"}  # TensorRT is imported by a name that a file says
NOT_ON_A_DEVICE = {"exporters/engines/engine_build"}  # the bundle builds its engines before a session is opened
BUILTIN_GENERICS = {"dict", "frozenset", "list", "set", "tuple", "type"}
MODULES = {name: path for name, path in FILES.items() if name.startswith("lib/")}


def annotations(tree: ast.AST) -> set[ast.AST]:
    """Every node of an annotation, which Python does not evaluate behind `from __future__ import annotations`."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            written = getattr(node, name, None)
            if written is not None:
                found.update(ast.walk(written))
    return found


def too_new(text: str) -> Iterator[str]:
    """Types written so that Python 3.8 fails when it gets there; what it cannot parse raises SyntaxError."""
    tree = ast.parse(text, feature_version=(3, 8))
    abstract = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "collections.abc"
        for alias in node.names
    }
    lazy = annotations(tree) if "from __future__ import annotations" in text else set()
    for node in ast.walk(tree):
        if node in lazy:
            continue
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.value, ast.Name)
            and node.value.id in BUILTIN_GENERICS | abstract
        ):
            yield f"line {node.lineno}: {ast.unparse(node)} is made when it runs"
        asks = isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass")
        if isinstance(node, ast.Call) and asks and isinstance(node.args[1], ast.BinOp):
            yield f"line {node.lineno}: {ast.unparse(node)}"


def defaults_in_front(text: str) -> Iterator[str]:
    """Fields behind one with a default that have none: without `kw_only` Python makes no such dataclass."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(each) for each in node.decorator_list):
            fields = [
                each
                for each in node.body
                if isinstance(each, ast.AnnAssign) and "ClassVar" not in ast.unparse(each.annotation)
            ]
            given = [each.value is not None for each in fields]
            if True in given and False in given[given.index(True) :]:
                yield f"line {node.lineno}: {node.name}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_fields_with_a_default_stand_last(name: str) -> None:
    """A bundle leaves `kw_only` out before Python 3.10."""
    assert not list(defaults_in_front(MODULES[name].read_text()))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Level and dotted name of everything a file imports, `if TYPE_CHECKING` and functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is None:
            yield from ((node.level, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, f"{node.module}/{','.join(alias.name for alias in node.names)}"


@pytest.mark.parametrize("name", FILES)
def test_python_3_8_takes_it(name: str) -> None:
    assert list(too_new(FILES[name].read_text())) == []


def test_nothing_in_it_came_after_python_3_8() -> None:
    """Functions, methods and keywords of the standard library. `kw_only` is taken care of by the package itself."""
    exclude = ("--exclude", "dataclasses.dataclass(kw_only)")
    command = [
        sys.executable,
        "-c",
        "from vermin import main; main()",
        "--target=3.8-",
        "--no-tips",
        "--violations",
        *exclude,
    ]
    done = subprocess.run(
        [*command, *map(str, FILES.values())], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_the_check_finds_what_is_too_new() -> None:
    old = "from collections.abc import Mapping\nA = Mapping[str, int]\ndef f(x: list[int]) -> bool:\n    return isinstance(x, int | str)\n"
    assert sorted(too_new(old)) == [
        "line 2: Mapping[str, int] is made when it runs",
        "line 3: list[int] is made when it runs",
        "line 4: isinstance(x, int | str)",
    ]
    assert (
        list(too_new("from __future__ import annotations\ndef f(x: list[int]) -> None:\n    y: dict[str, int] = {}\n"))
        == []
    )
    with pytest.raises(SyntaxError):
        list(too_new("match 1:\n    case 1:\n        pass\n"))


def test_the_package_is_whole_in_itself() -> None:
    known = {name.removeprefix(f"lib/{PACKAGE}/").removesuffix(".py") for name in MODULES}
    for name, path in MODULES.items():
        folder = name.removeprefix(f"lib/{PACKAGE}/").split("/")[:-1]
        for level, module in imports(path):
            first, _, names = module.partition("/")
            if level == 0:
                assert first.split(".")[0] in sys.stdlib_module_names | VENDORS, f"{name} imports {first}"
                continue
            wanted = "/".join(filter(None, [*folder[: len(folder) + 1 - level], first.replace(".", "/")]))
            found = wanted in known or all(f"{wanted}/{each}" in known for each in names.split(","))
            assert found or wanted in NOT_ON_A_DEVICE, f"{name} imports {wanted}, which no bundle holds"


def test_the_linter_knows_them_too() -> None:
    with (ROOT / "pyproject.toml").open("rb") as stream:
        listed = tomllib.load(stream)["tool"]["ruff"]["per-file-target-version"]
    ours = {path.resolve().relative_to(ROOT).as_posix() for path in FILES.values()}
    assert {name for name in ours if not name.endswith("__init__.py")} <= set(listed)
    assert all((ROOT / name).is_file() for name in listed)
