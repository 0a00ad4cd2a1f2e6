"""What a run keeps of a user's own code is done again when that code changes."""

import importlib
from pathlib import Path

import pytest

from edgesmith.compressor import own_code


def test_a_name_stands_for_what_its_file_and_those_beside_it_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_stage_here.py").write_text("import own_helper_here\n\nclass Mine:\n    pass\n")
    (tmp_path / "own_helper_here.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = [
        "own_stage_here:Mine",
        {"importance": "taylor", "blocks": ["stage1.*", "none_such:thing", "a: b"], "n": 3},
    ]
    found = own_code.of_names(config)
    assert list(found) == ["own_stage_here:Mine"]
    assert own_code.of_names(config) == found
    (tmp_path / "own_helper_here.py").write_text("value = 2\n")
    changed = own_code.of_names(config)
    assert changed != found
    (tmp_path / "own_stage_here.py").write_text("class Mine:\n    name = 'other'\n")
    assert own_code.of_names(config) not in (found, changed)


@pytest.mark.parametrize(
    "text",
    [
        "import helper",
        "from helper import value",
        "from . import helper",
        "from .helper import value",
        "import package.helper",
        "from package import helper as other",
        "def model():\n    import helper",
        "import importlib\nhelper = importlib.import_module('helper')",
        "import between",
        "from nets.small import Net",
        "import nets.small",
        "from nets import small",
        "from . import nets",
        "import importlib\nimportlib.import_module('nets.small')",
        "import importlib\nNAME = 'hel' + 'per'\nimportlib.import_module(NAME)",
    ],
)
def test_a_file_that_is_imported_is_part_of_it(text: str, tmp_path: Path) -> None:
    """However it is imported, at whatever time, and whatever else the process has loaded."""
    (tmp_path / "mine.py").write_text(text)
    (tmp_path / "between.py").write_text("import helper, between")
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "__init__.py").write_text("from .small import Net")
    (tmp_path / "nets" / "small.py").write_text("from .. import helper")
    (tmp_path / "helper.py").write_text("value = 1")
    (tmp_path / "other.txt").write_text("value = 1")
    (tmp_path / "nets" / "other.py").write_text("value = 1")
    found = own_code._of_file(tmp_path / "mine.py")
    (tmp_path / "other.txt").write_text("value = 2")
    (tmp_path / "nets" / "other.py").write_text("value = 2")
    assert own_code._of_file(tmp_path / "mine.py") == found
    (tmp_path / "helper.py").write_text("value = 2")
    assert own_code._of_file(tmp_path / "mine.py") != found


@pytest.mark.parametrize(
    "text", ["x.import_module('nets/resnet')", "import_module()", "import_module('')", "import a.b"]
)
def test_what_names_no_file_is_no_part_of_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    before = own_code._of_file(tmp_path / "mine.py")
    assert own_code._of_file(tmp_path / "mine.py") == before


def test_what_a_package_says_of_itself_is_part_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from . import WIDTH")
    (tmp_path / "__init__.py").write_text("WIDTH = 1")
    before = own_code._of_file(tmp_path / "mine.py")
    (tmp_path / "__init__.py").write_text("WIDTH = 2")
    assert own_code._of_file(tmp_path / "mine.py") != before


def test_what_else_is_loaded_from_there_is_none_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that hands its task over loads more than `edgesmith verify` does, which reads the task's file alone."""
    (tmp_path / "task_alone_here.py").write_text("value = 1")
    (tmp_path / "script_alone_here.py").write_text("import task_alone_here")
    monkeypatch.syspath_prepend(tmp_path)
    before = own_code._of_file(tmp_path / "task_alone_here.py")
    importlib.import_module("script_alone_here")
    assert own_code._of_file(tmp_path / "task_alone_here.py") == before
    (tmp_path / "task_alone_here.py").write_text("value = ")
    assert own_code._of_file(tmp_path / "task_alone_here.py") != before


def test_what_is_in_a_table_has_no_code_of_its_own() -> None:
    assert own_code.of_names(["prune", {"importance": "taylor", "device": "cuda:0", "ids": ["a:b", ":", "x:"]}]) == {}
