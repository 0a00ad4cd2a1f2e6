"""What a run keeps of a user's own code is done again when that code changes."""

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


def test_what_is_in_a_table_has_no_code_of_its_own() -> None:
    assert own_code.of_names(["prune", {"importance": "taylor", "device": "cuda:0", "ids": ["a:b", ":", "x:"]}]) == {}
