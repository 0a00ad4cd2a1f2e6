"""Imports run one way: cli -> compressor -> benches -> exporters -> calibration -> core; vendors where they are used."""

import ast
import graphlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgesmith

PACKAGE = Path(edgesmith.__file__).parent
ORDER = ("core", "calibration", "exporters", "benches", "compressor", "cli")  # each may import what stands before it
FACADE = ("__init__", "__main__")  # the public names and `python -m edgesmith`: they may reach everything
VENDORS = (
    "captum",
    "neural_compressor",
    "openvino",
    "optuna",
    "peft",
    "pynvml",
    "ray",
    "skl2onnx",
    "sklearn",
    "tensorrt",
    "tensorrt_rtx",
    "torchao",
    "transformers",
)
HEAVY = (
    "accelerate",
    "jinja2",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pydantic",
    "rich",
    "safetensors",
    "torch",
    "torch_pruning",
    *VENDORS,
)

NOT_INSTALLED = (("benches", "peers"), ("benches", "results"))  # run by hand, from the checkout


def parts_of(path: Path, package: Path = PACKAGE) -> tuple[str, ...]:
    """`benches/report/report.py` -> ("benches", "report")."""
    return path.relative_to(package).with_suffix("").parts


def sources(package: Path = PACKAGE) -> list[Path]:
    """Every module that is installed: the folders through their links, less benches/peers and the scripts in benches/results."""
    roots = [package / folder for folder in ORDER if (package / folder).is_dir()]
    found = [*package.glob("*.py"), *(path for root in roots for path in root.rglob("*.py"))]
    return sorted(path for path in found if parts_of(path, package)[:2] not in NOT_INSTALLED)


def imported_by(node: ast.AST, path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that one statement imports."""
    here = ("edgesmith", *parts_of(path, package))
    if isinstance(node, ast.Import):
        yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = [*here[: len(here) - node.level]] if node.level else []
        base += [node.module] if node.module else []
        yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)


def imported(path: Path, package: Path = PACKAGE) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything the file imports, inside functions and `if TYPE_CHECKING` too."""
    for node in ast.walk(ast.parse(path.read_text())):
        yield from imported_by(node, path, package)


def written_absolutely(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of imports that are written absolutely."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""


def at_module_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported: not those of functions, nor of `if TYPE_CHECKING`."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.stmt):
            yield node
        waiting.extend(ast.iter_child_nodes(node))


def upward(package: Path = PACKAGE) -> list[str]:
    """Imports of a folder that stands higher."""
    problems = []
    for path in sources(package):
        folder = parts_of(path, package)[0]
        if folder in FACADE:
            continue
        for line, name in imported(path, package):
            target = name.split(".")
            if target[0] != "edgesmith":
                continue
            # `import edgesmith` and `from edgesmith import compress` reach the facade, and through it everything.
            rank = ORDER.index(target[1]) if len(target) > 1 and target[1] in ORDER else len(ORDER)
            if rank > ORDER.index(folder) and folder != "cli":
                where = path.relative_to(package)
                problems.append(f"{where}:{line} imports {name}; imports run {' <- '.join(ORDER)}")
    return problems


def absolute(package: Path = PACKAGE) -> list[str]:
    """Imports of edgesmith by its own name, which the folders' relative imports make unnecessary."""
    return [
        f"{path.relative_to(package)}:{line} imports {name}; inside the folders write `from ..core import`"
        for path in sources(package)
        if parts_of(path, package)[0] not in ("cli", *FACADE)
        for line, name in written_absolutely(path)
        if name.split(".")[0] == "edgesmith"
    ]


def vendors_at_module_level(package: Path = PACKAGE) -> list[str]:
    """Vendor libraries imported with the module instead of where they are used."""
    problems = []
    for path in sources(package):
        for node in at_module_level(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            problems += [
                f"{path.relative_to(package)}:{node.lineno} imports {name} at module level; import it in the function"
                for name in names
                if name.split(".")[0] in VENDORS
            ]
    return problems


def torch_in_core(package: Path = PACKAGE) -> list[str]:
    """Imports of torch anywhere in core, in functions too."""
    return [
        f"{path.relative_to(package)}:{line} imports {name}; core knows no torch"
        for path in sources(package)
        if parts_of(path, package)[0] == "core"
        for line, name in imported(path, package)
        if name.split(".")[0] == "torch"
    ]


def test_every_folder_is_seen() -> None:
    folders = {parts_of(path)[0] for path in sources()}
    assert folders >= {*ORDER, "__init__"}, "a folder without modules would make this file pass without looking"


def test_imports_run_one_way() -> None:
    assert upward() == []


def test_the_folders_import_each_other_relatively() -> None:
    assert absolute() == []


def test_core_knows_no_torch() -> None:
    assert torch_in_core() == []


def test_vendors_are_imported_where_they_are_used() -> None:
    assert vendors_at_module_level() == []


def test_the_lint_finds_what_it_is_there_for(tmp_path: Path) -> None:
    """Each rule against a house that breaks it."""
    house = {
        "core/a.py": "def f():\n    import torch\n",
        "calibration/b.py": "from ..core import a\nfrom ..exporters import c\n",
        "exporters/c.py": "def f():\n    from ..benches.d import x\n",
        "benches/d.py": "import edgesmith.core.a\nfrom .. import compressor\n",
        "compressor/e.py": "try:\n    import tensorrt.tools\nexcept ImportError:\n    pass\n",
        "compressor/f.py": "from .. import compress\n",
        "compressor/g.py": "import typing\nif typing.TYPE_CHECKING:\n    import ray\ndef f():\n    import openvino\n",
        "benches/peers/h.py": "import openvino\nfrom ...compressor import e\n",
        "cli.py": "from edgesmith import compress\nfrom edgesmith.compressor import e\n",
        "__init__.py": "from .compressor import e\n",
    }
    for name, text in house.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    way = "; imports run core <- calibration <- exporters <- benches <- compressor <- cli"
    assert upward(tmp_path) == [
        f"benches/d.py:2 imports edgesmith.compressor{way}",
        f"calibration/b.py:2 imports edgesmith.exporters.c{way}",
        f"compressor/f.py:1 imports edgesmith.compress{way}",
        f"exporters/c.py:2 imports edgesmith.benches.d.x{way}",
    ]
    assert absolute(tmp_path) == [
        "benches/d.py:1 imports edgesmith.core.a; inside the folders write `from ..core import`"
    ]
    assert torch_in_core(tmp_path) == ["core/a.py:2 imports torch; core knows no torch"]
    assert vendors_at_module_level(tmp_path) == [
        "compressor/e.py:2 imports tensorrt.tools at module level; import it in the function"
    ]


def needs(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Module -> the modules of ours that are imported with it; what functions import comes later and is left out."""
    modules = {
        ".".join(("edgesmith", *parts_of(path, package))).removesuffix(".__init__"): path for path in sources(package)
    }
    return {
        name: {
            known
            for node in at_module_level(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for _, target in imported_by(node, path, package)
            for known in (target, target.rpartition(".")[0])
            if known in modules and known != name and not name.startswith(f"{known}.")
        }
        for name, path in modules.items()
    }


def test_imports_have_no_cycle(tmp_path: Path) -> None:
    """Then each module can be the first one of a process."""
    graphlib.TopologicalSorter(needs()).prepare()
    for name, text in {
        "a": "from . import b",
        "b": "def f():\n    from . import a\nfrom .c import x",
        "c": "from .a import y",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(graphlib.CycleError) as caught:
        graphlib.TopologicalSorter(needs(tmp_path)).prepare()
    assert set(caught.value.args[1]) == {"edgesmith.a", "edgesmith.b", "edgesmith.c"}


# `sys.modules[name] = None` is how the import system itself says that a module cannot be had.
BARE = """
import importlib, sys
for name in {vendors!r}:
    sys.modules[name] = None
for module in sys.argv[1:]:
    importlib.import_module(module)
"""


def test_every_module_imports_without_vendors() -> None:
    modules = [name for name in needs() if not name.endswith("__main__")]
    assert len(modules) > 250
    script = BARE.format(vendors=VENDORS)
    done = subprocess.run([sys.executable, "-c", script, *modules], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.parametrize("statement", ["import edgesmith", "import edgesmith.cli"])
def test_importing_the_command_line_loads_nothing_heavy(statement: str) -> None:
    script = f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}} & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr, done.returncode) == ([], "", 0)


def test_a_run_starts_without_what_only_some_recipes_need() -> None:
    """SciPy brings its own parts when one is used; a second of every start otherwise, of measuring processes too."""
    script = (
        "import edgesmith.compressor.run_contenders, sys\nprint({'scipy.optimize', 'scipy.stats'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("set()\n", "", 0)


def seconds(*arguments: str) -> float:
    """Wall time of one run of this Python, in seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, timeout=60)
    return time.perf_counter() - start


@pytest.mark.alone
def test_help_takes_less_than_three_tenths_of_a_second() -> None:
    """Each run against a bare interpreter right beside it: the machine that tests may be busy with something else."""
    extra = [seconds("-m", "edgesmith", "--help") - seconds("-c", "pass") for _ in range(9)]
    assert statistics.median(extra) < 0.3


def test_help_is_help() -> None:
    done = subprocess.run([sys.executable, "-m", "edgesmith", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert {"compress", "bench"} <= set(done.stdout.replace(",", " ").replace("{", " ").replace("}", " ").split())
    assert done.stderr == ""
