"""The forms of a gate for a continuous integration."""

import dataclasses
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import xmlschema

from edgesmith.benches.gates.gate_check import Check, Gate
from edgesmith.benches.gates.gate_ci import annotations, junit, markdown


def check(group: Any, name: str, status: Any = "pass", **more: str) -> Check:
    return Check(group=group, name=name, status=status, promise=f"{name} at most 1 %", **{"found": "2 %", **more})


GREEN = Gate(
    task="digits",
    target="onnxruntime-cpu",
    confidence=0.95,
    baseline="last.json",
    status="pass",
    checks=(check("file", "openvino"), check("limit", "drop"), check("baseline", "drop")),
)
RED = dataclasses.replace(
    GREEN,
    task="a_b<c>",
    status="fail",
    checks=(
        check("limit", "file_ratio"),
        check("limit", "class_drop", "unproven", note="class 'a|b', the\nworst of 3"),
        check("baseline", "drop", "fail", note="the original\x00 has lost"),
    ),
)


def test_junit_parsed_back() -> None:
    root = ElementTree.fromstring(junit(RED).encode())
    assert (root.tag, root.attrib) == (
        "testsuites", {"name": "edgesmith gate a_b<c>", "tests": "3", "failures": "2", "errors": "0"},
    )  # fmt: skip
    suites = [(each.get("name"), each.get("tests"), each.get("failures")) for each in root]
    assert suites == [("Limits of the run", "2", "1"), ("Against the last release", "1", "1")]
    cases = {f"{case.get('classname')} {case.get('name')}": case for case in root.iter("testcase")}
    assert list(cases) == ["edgesmith.a_b<c>.limit file_ratio", "edgesmith.a_b<c>.limit class_drop",
                           "edgesmith.a_b<c>.baseline drop"]  # fmt: skip
    failures = {key: case.find("failure") for key, case in cases.items()}
    assert failures["edgesmith.a_b<c>.limit file_ratio"] is None
    failure = failures["edgesmith.a_b<c>.baseline drop"]
    assert failure is not None
    assert failure.attrib == {"type": "fail", "message": "drop at most 1 %: 2 % - the original? has lost"}
    assert failure.text == "promise: drop at most 1 %\nmeasured: 2 %\nthe original? has lost"
    green = ElementTree.fromstring(junit(GREEN).encode())
    assert (green.get("failures"), list(green.iter("failure"))) == ("0", [])


SCHEMA = xmlschema.XMLSchema(str(Path(__file__).with_name("junit.xsd")))
# Forbidden in XML even escaped, or with a meaning there: NUL and ESC, the end of a CDATA section, half of a pair.
HOSTILE = "\x00\x1b[31m\r]]><!--&amp;<a b='c\">\ud800\ufffe\t\n\U0001f600 %s {} "


def hostile() -> Gate:
    checks = tuple(
        check(group, HOSTILE, "fail", note=HOSTILE, found=HOSTILE) for group in ("file", "limit", "baseline")
    )
    return dataclasses.replace(RED, task=HOSTILE, target=HOSTILE, baseline=HOSTILE, checks=checks, ratchet=HOSTILE)


def test_junit_is_what_the_schema_says() -> None:
    for gate in (GREEN, RED, hostile(), dataclasses.replace(GREEN, task=" ", checks=(check("file", " "),))):
        text = junit(gate)
        SCHEMA.validate(text.encode())  # as it is written: a lone half of a pair has no bytes
        assert "\x1b" not in text and text.count("]]>") == 0


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ('name="drop"', "", "missing required attribute 'name'"),
        ('failures="2"', 'failures="two"', "failures='two'"),
        ("<system-out>", "<systemout/><system-out>", "Unexpected child with tag 'systemout'"),
        ('time="0"', 'time="-1"', "time='-1'"),
        ('name="class_drop"', 'name="file_ratio"', "duplicated value"),
    ],
)
def test_the_schema_refuses_what_is_no_junit(right: str, wrong: str, said: str) -> None:
    text = junit(RED)
    assert right in text
    with pytest.raises(xmlschema.XMLSchemaValidationError) as caught:
        SCHEMA.validate(text.replace(right, wrong).encode())
    assert said in str(caught.value)


def test_hostile_names_stay_text_in_every_form() -> None:
    gate = hostile()
    case = next(ElementTree.fromstring(junit(gate).encode()).iter("testcase"))
    assert case.get("name") == "??[31m?]]><!--&amp;<a b='c\">??\t\n\U0001f600 %s {} "
    lines = markdown(gate).encode().decode().splitlines()
    assert len(lines) == 11 and "<" not in "".join(lines), "one row a check, and no tag"
    assert all(line.count(" | ") == 4 for line in lines[6:9])


def test_markdown_is_one_screen_and_red_comes_first() -> None:
    lines = markdown(RED).splitlines()
    assert lines[0] == "### ❌ a\\_b&lt;c> on onnxruntime-cpu: fail"
    assert lines[2] == "1 of 3 checks failed (baseline: drop)."
    assert [line.split("|")[2].strip() for line in lines[6:]] == [
        "baseline: drop", "limit: class\\_drop", "limit: file\\_ratio",
    ]  # fmt: skip
    assert lines[7].endswith("| class 'a\\|b', the worst of 3 |"), "one row, five cells"
    many = dataclasses.replace(GREEN, checks=tuple(check("file", f"f{i}") for i in range(100)))
    assert len(markdown(many).splitlines()) <= 24
    assert "88 more checks pass." in markdown(many)


def test_annotations() -> None:
    assert annotations(RED) == [
        "::error title=fail%3A baseline%3A drop::drop at most 1 %25: 2 %25 - the original\x00 has lost",
        "::error title=unproven%3A limit%3A class_drop::class_drop at most 1 %25: 2 %25 - class 'a|b', the%0Aworst of 3",
    ]
    assert annotations(GREEN) == [
        "::notice title=edgesmith gate::digits: every limit is kept, and nothing is worse than the last release beyond "
        "its margin, proven at 95 %25 confidence"
    ]
