"""An audit as a value, as JSON, judged, on one screen, and in the report."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgesmith.benches.audits import audit_text
from edgesmith.benches.audits.attribution import Agreement
from edgesmith.benches.audits.audit import AUDIT, NOT_ASKED, Audit, from_json, judged, kept, of_limits, to_json
from edgesmith.benches.audits.disparity import Disparity
from edgesmith.benches.audits.perturbation import FlipRate
from edgesmith.benches.gates.judge import Evidence, SideEvidence
from edgesmith.benches.metrics.groups import GroupLoss
from edgesmith.benches.report.html_report import render_html
from edgesmith.core.errors import ArtifactError
from edgesmith.core.limits import Limits
from edgesmith.core.values import Interval
from tests.benches.sample_report import make_report

REPORT = make_report()
FINAL = REPORT.artifacts[0].digest
CLEAN = Interval(value=0.0, low=-0.01, high=0.01)


def interval(value: float, half: float) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


def loss(name: str, value: float, half: float = 0.02, kind: Any = "corruption") -> GroupLoss:
    return GroupLoss(kind=kind, name=name, samples=360, original=0.95, final=0.95 - value, drop=interval(value, half))


def make_audit(**changes: Any) -> Audit:
    found = Audit(
        task="digits",
        target="onnxruntime-cpu",
        against="original",
        confidence=0.95,
        main_metric="accuracy",
        original_digest="aa" * 32,
        final_digest=FINAL,
        test_digest=REPORT.test_digest,
        groups=(loss("<3>", 0.05, kind="class"), loss("4", 0.0, kind="class")),
        disparities=(
            Disparity(
                kind="class", groups=2, samples=36, original=0.02, final=0.07, growth=interval(0.05, 0.08), best="4",
                worst="<3>",
            ),
        ),
        severities=(1, 3),
        corruptions=(loss("contrast 1", 0.0), loss("contrast 3", 0.01), loss("brightness 1", 0.02), loss("brightness 3", 0.4)),
        perturbation=FlipRate(noise=0.01, draws=5, samples=360, original=0.001, final=0.012, more=interval(0.011, 0.002)),
        attribution=Agreement(
            samples=31, left_out=1, features=64, top=6, correlation=interval(0.91, 0.02), overlap=interval(0.8, 0.05),
            worst_sample=17, worst_correlation=0.42,
        ),
        not_measured={},
        limits=(),
        environment=REPORT.environment,
    )  # fmt: skip
    return dataclasses.replace(found, **changes)


def test_there_and_back() -> None:
    audit = judged(make_audit(), Limits(corruption_drop=0.05), CLEAN, True)
    text = to_json(audit)
    assert text.startswith('{\n  "schema": "edgesmith.audit/1",')
    assert from_json(text) == audit
    for bad, said in (
        ("{", "the file: Invalid JSON: "),
        (text.replace("audit/1", "audit/2"), "schema: Input should be 'edgesmith.audit/1'"),
        (text.replace('"draws": 5', '"draws": "5"'), "perturbation.draws: Input should be a valid integer"),
    ):
        with pytest.raises(ArtifactError) as caught:
            from_json(bad, "runs/a/audit.json")
        assert str(caught.value).startswith(f"runs/a/audit.json: not an audit of schema 'edgesmith.audit/1': {said}")


def test_the_corruption_that_breaks_the_limit_is_named() -> None:
    audit = judged(make_audit(), Limits(drop=0.01, corruption_drop=0.05), CLEAN, True)
    (result,) = audit.limits  # `drop` is not judged here
    assert (result.name, result.status, result.measured, audit.verdict.exit_code) == ("corruption_drop", "fail", 0.4, 3)
    assert result.note == "corruption 'brightness 3', the worst of 4; 360 test samples"
    few = make_audit(corruptions=(loss("contrast 1", 0.04),))
    (result,) = judged(few, Limits(corruption_drop=0.05), CLEAN, True).limits
    assert (result.status, result.note) == (
        "unproven", "corruption 'contrast 1', the worst of 1; 360 test samples; about 1,440 test samples would settle it",
    )  # fmt: skip
    same = make_audit(corruptions=tuple(loss(name, 0.0, 0.005) for name in ("contrast 1", "contrast 3")))
    (result,) = judged(same, Limits(corruption_drop=0.01), CLEAN, True).limits
    assert (result.status, result.measured) == ("pass", 0.0)


def test_every_limit_on_what_the_mean_hides() -> None:
    limits = Limits(class_drop=0.1, corruption_drop=0.5, disparity=0.2)
    audit = judged(make_audit(), limits, CLEAN, True)
    assert [(each.name, each.status) for each in audit.limits] == [
        ("class_drop", "pass"), ("corruption_drop", "pass"), ("disparity", "pass"),
    ]  # fmt: skip
    assert judged(make_audit(), Limits(drop=0.1), CLEAN, True).limits == ()


def test_what_was_not_measured_is_unproven_with_its_reason() -> None:
    nothing = make_audit(
        corruptions=(), disparities=(), not_measured={"corruptions": "no images", "disparities": "one class"}
    )
    audit = judged(nothing, Limits(corruption_drop=0.1, disparity=0.1), CLEAN, True)
    assert [(each.status, each.note) for each in audit.limits] == [
        ("unproven", "not measured: no images"), ("unproven", "not measured: one class"),
    ]  # fmt: skip
    audit = judged(make_audit(), Limits(corruption_drop=0.1), CLEAN, True, "no CUDA device")
    assert audit.limits[0].note == "not measured: no CUDA device"


def test_an_audit_of_other_files_is_not_kept(tmp_path: Path) -> None:
    assert kept(tmp_path, REPORT) is None
    (tmp_path / AUDIT).write_text(to_json(make_audit()))
    assert kept(tmp_path, REPORT) == make_audit()
    for other in (
        {"final_digest": "bb" * 32},
        {"confidence": 0.9},
        {"test_digest": "dd" * 32},
        {"against": "prune"},
        {"target": "openvino"},
    ):
        (tmp_path / AUDIT).write_text(to_json(make_audit(**other)))
        assert kept(tmp_path, REPORT) is None
    (tmp_path / AUDIT).write_text("{")
    assert kept(tmp_path, REPORT) is None


def test_a_run_measures_what_its_limits_ask_for_and_keeps_the_rest() -> None:
    evidence = Evidence(original=SideEvidence(), final=SideEvidence(), corruptions=(loss("contrast 1", 0.0),))
    fresh = of_limits(REPORT, evidence, "aa" * 32, None)
    assert fresh.corruptions == evidence.corruptions and fresh.perturbation is None
    assert fresh.not_measured == dict.fromkeys(("disparities", "perturbation", "attribution"), NOT_ASKED)
    before = make_audit(attribution=None, not_measured={"attribution": "captum is not installed"})
    both = of_limits(REPORT, evidence, "aa" * 32, before)
    assert (both.corruptions, both.perturbation) == (evidence.corruptions, before.perturbation)
    assert both.not_measured == {"attribution": "captum is not installed"}
    elsewhere = dataclasses.replace(REPORT, unmeasured_reason="no CUDA device")
    nothing = of_limits(elsewhere, dataclasses.replace(evidence, corruptions=()), "aa" * 32, None)
    assert nothing.not_measured["corruptions"] == "no CUDA device"
    assert of_limits(REPORT, evidence, "cc" * 32, before) == dataclasses.replace(fresh, original_digest="cc" * 32)


SAID = (
    "gap in accuracy between the best ('4') and the worst ('<3>') of 2 classes: 2.00 points original, 7.00 points "
    "compressed; grew by 5.00 points (-3.00 to 13.00)",
    "small noise (1 % of the range, 5 draws) flips 0.10 % of the answers original, 1.20 % compressed; 1.10 points more "
    "(0.90 to 1.30)",
    "where the models look (occlusion of 64 features, 31 samples): rank correlation 0.91 (0.89 to 0.93), the 6 that "
    "matter most agree in 80.00 %; least in sample 17 (0.42)",
)


def test_one_screen() -> None:
    audit = judged(make_audit(not_measured={"attribution": "why"}), Limits(corruption_drop=0.05), CLEAN, True)
    assert tuple(audit_text.sentences(audit, REPORT)) == (*SAID, "where the models look: not measured: why")
    console = Console(width=200, file=io.StringIO())
    audit_text.print_audit(audit, REPORT, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO, see above
    lines = [line.rstrip() for line in printed.splitlines()]
    assert len(lines) <= 40
    assert lines[0] == "digits: accuracy on corrupted test data, severity 1/3"
    row = next(line for line in lines if line.startswith("│ brightness"))
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells == ["brightness", "95.0/95.0", "93.0/55.0", "40.0 (38.0 to 42.0)", "3"]
    assert "lost most of 2 groups: class <3> 5.00 points (3.00 to 7.00); class 4 0.00 points (-2.00 to 2.00)" in lines
    assert lines[-1] == "AUDIT: fail - 1 of 1 limits missed (corruption_drop)"
    assert "loss of accuracy under every corruption at most 5 points" in printed
    console = Console(width=200, file=io.StringIO())
    audit_text.print_audit(make_audit(corruptions=()), REPORT, console)
    assert console.file.getvalue().splitlines()[-1] == "AUDIT: no limit is set on any of this"  # type: ignore[attr-defined]


def test_the_section_of_the_report() -> None:
    audit = judged(make_audit(), Limits(corruption_drop=0.05), CLEAN, True)
    html = render_html(REPORT, audit)
    assert "<h2>Audit: what the mean hides</h2>" in html
    assert "<p>G" + SAID[0][1:].replace("'", "&#39;").replace("<", "&lt;").replace(">", "&gt;") + ".</p>" in html
    assert (
        '<th role="rowheader" scope="row">brightness 3</th><td role="cell" data-label="test samples">360</td>' in html
    )
    assert html.count("loss of accuracy under every corruption at most 5 points") >= 1
    own = dataclasses.replace(REPORT, limits=audit.limits)
    assert render_html(own, audit).count("under every corruption at most 5 points</th>") == 1, (
        "said once, among the limits"
    )
    assert "Audit: what the mean hides" not in render_html(REPORT)
