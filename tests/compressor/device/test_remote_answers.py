"""What a device answers is a stranger's text: it gets nothing but the bundle's files, and breaks nothing here."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from edgesmith.benches.device.device_launcher import Refused, verified
from edgesmith.compressor.device.device_files import device_files
from edgesmith.compressor.device.remote_bench import missing_of
from edgesmith.compressor.device.ssh import _answer
from edgesmith.core.errors import MeasurementError

FILES = {"run.py": "0" * 64, "models/a/model.onnx": "1" * 64}


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "other", "", 3, None, ["run.py"]])
def test_nothing_but_the_bundles_files_is_sent(name: Any) -> None:
    with pytest.raises(MeasurementError) as caught:
        missing_of({"missing": ["run.py", name]}, FILES, "ssh://a")
    assert str(caught.value) == f"ssh://a: asks for {name!r}, which is no file of the bundle; nothing was sent"


def test_what_is_missing() -> None:
    assert missing_of({"missing": ["run.py"]}, FILES, "ssh://a") == ["run.py"]
    for answer in ({}, {"missing": "run.py"}, {"missing": {"run.py": 1}}):
        with pytest.raises(
            MeasurementError, match=r"^ssh://a: did not say which files it lacks; look at what answers there$"
        ):
            missing_of(answer, FILES, "ssh://a")


@pytest.mark.parametrize("text", ["", "[1]", "{", "null", "[" * 100_000])
def test_an_answer_that_is_none(text: str) -> None:
    with pytest.raises(MeasurementError) as caught:
        _answer(text, "ssh://a")
    assert str(caught.value) == (f"ssh://a: gave an answer that is none: {text[:80]!r}; look at what answers there")
    assert _answer('{"gone": true}', "ssh://a") == {"gone": True}


@pytest.mark.parametrize("needs", [None, [], {"a.b": "x"}, {"": "x"}, {"numpy": 3}, {"numpy": ""}])
def test_a_manifest_that_needs_what_is_no_module(needs: Any, tmp_path: Path) -> None:
    tree = {"schema": "edgesmith.bundle/1", "files": {}, "needs": needs}
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(Refused, match=r"manifest\.json: not the manifest of a bundle"):
        verified(tmp_path)


def test_the_runner_imports_a_module_that_goes_along() -> None:
    files = device_files()
    (module,) = re.findall(r'import_module\("([\w.]+)"\)', files["run.py"].read_text())
    assert f"lib/{module.replace('.', '/')}.py" in files
