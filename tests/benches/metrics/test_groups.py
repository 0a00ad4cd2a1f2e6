"""Losses of classes and slices, flips, calibration error."""

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from edgesmith.benches.gates.judge import judge_groups
from edgesmith.benches.metrics import accuracy
from edgesmith.benches.metrics.flips import CalibrationError, Flips, calibration_error, flips, has_confidence
from edgesmith.benches.metrics.groups import GroupLoss, class_masks, losses
from edgesmith.benches.metrics.metrics import METRICS
from edgesmith.benches.report import report_words
from edgesmith.benches.report.html_report import render_html
from edgesmith.benches.report.report import from_json, to_json
from edgesmith.benches.report.terminal import print_report
from edgesmith.compressor import measuring
from edgesmith.core.values import Interval
from tests.benches.sample_report import make_report

ACCURACY = METRICS["accuracy"]


def test_classes_by_name_and_by_number() -> None:
    masks = class_masks(np.array([0, 2, 2, 3]), ("cat", "dog", "cow"))
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "cat": [True, False, False, False], "cow": [False, True, True, False], "3": [False, False, False, True],
    }  # fmt: skip
    assert class_masks(np.zeros((4, 2), int)) == class_masks(np.zeros(4)) == {}


def test_two_classes_of_one_name_are_two_groups() -> None:
    """ImageNet has two of "crane" and two of "maillot"; one took the other's place, whatever it had lost."""
    masks = class_masks(np.array([0, 2, 2, 1]), ("crane", "dog", "crane"))
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "crane (0)": [True, False, False, False], "dog": [False, False, False, True],
        "crane (2)": [False, True, True, False],
    }  # fmt: skip


def test_the_upper_bound_is_plain_and_the_lower_corrected() -> None:
    rng = np.random.default_rng(0)
    before, after = (rng.integers(0, 2, 400).astype(float) for _ in range(2))
    masks = {str(i): np.arange(400) % 5 == i for i in range(5)} | {"one": np.arange(400) == 7}
    found = losses(ACCURACY, before, after, masks, "slice", 0.95)
    assert found[-1] == GroupLoss(kind="slice", name="one", samples=1, original=None, final=None, drop=None)
    for group in found[:-1]:
        mask = masks[group.name]
        assert group.drop is not None
        assert group.drop.high == accuracy.paired_drop(ACCURACY, before[mask], after[mask], 0.95).high
        assert group.drop.low == accuracy.paired_drop(ACCURACY, before[mask], after[mask], 0.99).low


def test_unchanged_models_fail_no_more_often_than_the_confidence_says() -> None:
    """20 groups looked at, none of which has lost: without the correction two runs in three would be red."""
    rng, red, uncorrected = np.random.default_rng(1), 0, 0
    masks = {str(i): np.arange(2000) % 20 == i for i in range(20)}
    for _ in range(200):
        first, second = (rng.random(2000) < 0.8 for _ in range(2))
        before, after = first.astype(float), second.astype(float)
        found = losses(ACCURACY, before, after, masks, "class", 0.95)
        red += judge_groups("class_drop", 0.0, found).status == "fail"
        uncorrected += any(accuracy.paired_drop(ACCURACY, before[m], after[m], 0.95).low > 0 for m in masks.values())
    assert red <= 0.05 * 200 + 2 * np.sqrt(200 * 0.05 * 0.95)
    assert uncorrected > 0.5 * 200


def group(name: str, value: float, half: float, samples: int = 100) -> GroupLoss:
    drop = Interval(value=value, low=value - half, high=value + half)
    return GroupLoss(kind="class", name=name, samples=samples, original=0.9, final=0.9 - value, drop=drop)


def test_the_worst_group_is_named() -> None:
    kept, broken, close = group("a", 0.0, 0.01), group("b", 0.4, 0.1), group("c", 0.04, 0.05, 50)
    assert judge_groups("class_drop", 0.05, [kept]).note == "class 'a', the worst of 1; 100 test samples"
    found = judge_groups("class_drop", 0.05, [kept, broken, close, group("d", 0.3, 0.1)])
    assert (found.status, found.measured) == ("fail", 0.4)
    assert found.note == "class 'b', the worst of 4; 100 test samples; fail too: 'd'"
    found = judge_groups("class_drop", 0.05, [kept, close])
    assert (found.status, found.note) == (
        "unproven", "class 'c', the worst of 2; 50 test samples; about 1,250 of that class would settle it",
    )  # fmt: skip
    many = judge_groups("class_drop", 0.05, [group(str(i), 0.4 - i / 100, 0.1) for i in range(6)])
    assert many.note == "class '0', the worst of 6; 100 test samples; fail too: '1', '2', '3' and 2 more"
    few = GroupLoss(kind="class", name="e", samples=1, original=None, final=None, drop=None)
    assert judge_groups("class_drop", 0.05, [kept, few]).status == "unproven"


def test_flips() -> None:
    before, after = np.array([1.0, 1, 0, 0, 1]), np.array([0.0, 1, 1, 0, 0])
    assert flips(before, after, True) == Flips(lost=2, won=1, lost_examples=(0, 4), won_examples=(2,))
    assert flips(before, after, False) == Flips(lost=1, won=2, lost_examples=(2,), won_examples=(0, 4))
    assert len(flips(np.ones(99), np.zeros(99), True).lost_examples) == 10


def test_calibration_error_by_hand() -> None:
    """Two bins of ten: 0.95 sure and half right, 0.65 sure and always right."""
    output = np.array([[0.95, 0.05], [0.95, 0.05], [0.65, 0.35], [0.65, 0.35]], np.float32)
    labels = np.array([0, 1, 0, 0])
    assert calibration_error(output, labels, bins=10) == pytest.approx((0.45 + 0.35) / 2, abs=1e-6)
    assert calibration_error(np.log(output), labels, bins=10) == pytest.approx(0.4, abs=1e-6)  # logits of the same
    assert has_confidence(output, labels)
    assert not has_confidence(output, labels + 1)
    assert not has_confidence(output[:, :1], labels * 0)
    assert CalibrationError(original=0.1, final=0.2).bins == 15


def test_calibration_error_of_answers_that_mean_what_they_say() -> None:
    rng = np.random.default_rng(2)
    output = rng.dirichlet(np.ones(4), 40_000)
    labels = (rng.random((40_000, 1)) > output.cumsum(1)).sum(1).clip(0, 3)
    assert calibration_error(output, labels) < 0.01
    assert calibration_error(output**3, labels) > 0.05


def test_rounded_probabilities_are_no_logits() -> None:
    """An INT8 softmax gives steps of 1/255, whose sums are off by more than a float model's; both are read alike."""
    rng = np.random.default_rng(4)
    output = rng.dirichlet(np.full(100, 0.05), 2_000).astype(np.float32)
    labels = (rng.random((2_000, 1)) > output.cumsum(1)).sum(1).clip(0, 99)
    rounded = (np.round(255 * output) / 255).astype(np.float32)
    outputs = {"original": {"p": output}, "final": {"p": rounded}}
    found = measuring._calibration_error(outputs, labels, ACCURACY)
    assert found is not None
    assert found.original == pytest.approx(0.03, abs=0.01)
    assert found.final == pytest.approx(found.original, abs=0.003)  # it was 0.31: a softmax of probabilities


def test_all_of_it_in_every_form_of_the_report() -> None:
    report = dataclasses.replace(
        make_report(),
        groups=(group("cat", 0.01, 0.02), group("<dog>", 0.4, 0.05, 1200)),
        flips=Flips(lost=12, won=0, lost_examples=tuple(range(10)), won_examples=()),
        calibration_error=CalibrationError(original=0.0123, final=0.2),
    )
    assert from_json(to_json(report)) == report
    said = (
        "flips: right to wrong 12 (samples 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...), wrong to right 0",
        "calibration error (ECE, 15 bins): 1.23 % original, 20.00 % compressed",
    )
    assert (report_words.flips_sentence(report), report_words.calibration_sentence(report)) == said
    console = Console(width=200, file=io.StringIO())
    print_report(report, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO, see above
    for line in (
        "lost most of 2 groups: class <dog> 40.00 points (35.00 to 45.00); class cat 1.00 points (-1.00 to 3.00)",
        *said,
    ):
        assert f"\n{line}\n" in printed
    html = render_html(report)
    assert (
        '<th role="rowheader" scope="row">class &lt;dog&gt;</th><td role="cell" data-label="test samples">1,200</td>'
        in html
    )
    assert html.index("class &lt;dog&gt;") < html.index("class cat"), "what lost most stands first"
    assert f"<p>F{said[0][1:]}.</p>" in html
    assert "Classes, slices and changed answers" not in render_html(make_report())
