"""Metric values against scikit-learn, the error texts, and the intervals per kind."""

import re

import numpy as np
import pytest
from sklearn import metrics as reference

from edgesmith.benches.metrics import metrics
from edgesmith.benches.metrics.metrics import METRICS
from edgesmith.core.errors import DataError, RecipeError
from edgesmith.core.task import Metric

RNG = np.random.default_rng(5)
LABELS = RNG.integers(0, 9, 200)
LOGITS = RNG.standard_normal((200, 10)).astype(np.float32) + 1.5 * np.eye(10, dtype=np.float32)[LABELS]
TRUTH, ESTIMATE = RNG.standard_normal((2, 200, 3))


def measured(name: str, output: np.ndarray, labels: np.ndarray) -> float:
    return metrics.value(METRICS[name], metrics.scores_of(METRICS[name], {"output": output}, labels))


def test_classification_metrics_equal_scikit_learn() -> None:
    predicted = LOGITS.argmax(axis=1)
    assert measured("accuracy", LOGITS, LABELS) == reference.accuracy_score(LABELS, predicted)
    top5 = reference.top_k_accuracy_score(LABELS, LOGITS, k=5, labels=np.arange(10))
    assert measured("top5", LOGITS, LABELS) == top5
    f1 = reference.f1_score(LABELS, predicted, average="macro")  # class 9 is predicted, never true: it counts as 0
    assert measured("f1-macro", LOGITS, LABELS) == pytest.approx(f1, rel=1e-12)
    assert 9 in predicted
    assert 9 not in LABELS


def test_mean_overlap_equals_scikit_learn() -> None:
    """Over all positions of all samples; a class that occurs nowhere does not count."""
    rng = np.random.default_rng(5)
    logits, masks = rng.standard_normal((6, 4, 9, 7)), rng.integers(0, 3, (6, 9, 7))
    logits[:, 3] = -9.0
    expected = reference.jaccard_score(masks.ravel(), logits.argmax(1).ravel(), average="macro")
    assert measured("miou", logits, masks) == pytest.approx(expected, rel=1e-12)


def test_regression_metrics_equal_scikit_learn() -> None:
    assert measured("mae", ESTIMATE, TRUTH) == pytest.approx(reference.mean_absolute_error(TRUTH, ESTIMATE), rel=1e-12)
    assert measured("mse", ESTIMATE, TRUTH) == pytest.approx(reference.mean_squared_error(TRUTH, ESTIMATE), rel=1e-12)
    rmse = reference.root_mean_squared_error(TRUTH.reshape(-1), ESTIMATE.reshape(-1))
    assert measured("rmse", ESTIMATE, TRUTH) == pytest.approx(rmse, rel=1e-12)


def test_a_column_of_outputs_is_not_broadcast_against_a_row_of_labels() -> None:
    assert measured("mse", np.array([[1.0], [2.0]]), np.array([1.0, 4.0])) == 2.0


def test_a_constant_output_earns_no_top5() -> None:
    assert measured("top5", np.zeros((20, 10)), np.arange(20) % 10) == 0.0


@pytest.mark.parametrize(
    ("name", "output", "labels", "text"),
    [
        (
            "accuracy",
            np.zeros((3, 10)),
            np.array([1, 12, 3]),
            "metric 'accuracy': the model gives 10 outputs (classes 0 to 9), but there is a label 12; "
            "the labels or the model's last layer belong to another task",
        ),
        (
            "top5",
            np.zeros((2, 10)),
            np.array([1, -1]),
            "metric 'top5': the model gives 10 outputs (classes 0 to 9), but there is a label -1; "
            "the labels or the model's last layer belong to another task",
        ),
        (
            "accuracy",
            np.zeros((2, 10, 4, 4)),
            np.array([1, 1]),
            "metric 'accuracy': needs an output of shape (N, classes), got (2, 10, 4, 4); "
            "name the right output with Metric(output=...), or give the task a metric of its own",
        ),
        (
            "miou",
            np.zeros((2, 3, 4, 5)),
            np.zeros((2, 4, 4), np.int64),
            "metric 'miou': needs integer labels of shape (2, 4, 5), one class per position, got int64 of shape (2, 4, 4)",
        ),
        (
            "miou",
            np.zeros((2, 3)),
            np.zeros(2, np.int64),
            "metric 'miou': needs an output of shape (N, classes, ...), got (2, 3); "
            "name the right output with Metric(output=...), or give the task a metric of its own",
        ),
        (
            "f1-macro",
            np.zeros((2, 10)),
            np.array([0.5, 1.0]),
            "metric 'f1-macro': needs integer labels of shape (N,), got float64 of shape (2,)",
        ),
        (
            "mae",
            np.zeros((2, 3)),
            np.zeros((2, 4)),
            "metric 'mae': output of shape (2, 3) against labels of shape (2, 4); they must be the same",
        ),
        (
            "rmse",
            np.array([[np.inf], [1.0]]),
            np.zeros(2),
            "metric 'rmse': the model's output is NaN or infinite for 1 of 2 samples (first: sample 0); "
            "check the weights and the input preprocessing",
        ),
        ("mae", np.array(3.0), np.zeros(2), "metric 'mae': 0 outputs for 2 labels; they must be one to one"),
    ],
)
def test_outputs_that_do_not_fit_the_labels(name: str, output: np.ndarray, labels: np.ndarray, text: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(text)}$"):
        metrics.check_outputs(METRICS[name], output, labels)


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (
            Metric(name="own", scores=lambda output, labels: np.float64(0.9)),
            "metric 'own': scores of shape () for 4 samples; return one row per sample, (N,) or (N, K), "
            "not the mean over them",
        ),
        (
            Metric(name="own", scores=lambda output, labels: np.array([0, 1, np.nan, 1])),
            "metric 'own': the score of sample 2 is not a finite number",
        ),
        (
            Metric(name="own", scores=lambda output, labels: np.full(4, 0.5), kind="proportion"),
            "metric 'own': a proportion needs scores of 0 or 1; use kind='mean' for others",
        ),
        (
            Metric(name="own", scores=lambda output, labels: np.zeros((4, 2))),
            "metric 'own': scores of shape (4, 2) need a reduce=, a mean needs shape (N,)",
        ),
        (
            Metric(name="own", scores=lambda output, labels: np.zeros(4), output="boxes"),
            "metric 'own' reads output 'boxes', but the model has: logits",
        ),
    ],
)
def test_metrics_of_the_task_are_checked_too(metric: Metric, text: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(text)}$"):
        metrics.scores_of(metric, {"logits": np.zeros((4, 2))}, np.zeros(4, int))


def test_a_metric_reads_the_output_it_names() -> None:
    metric = Metric(name="own", scores=lambda output, labels: output, output="second")
    outputs = {"first": np.zeros(3), "second": np.array([1.0, 2.0, 6.0])}
    assert metrics.value(metric, metrics.scores_of(metric, outputs, np.zeros(3))) == 3.0


def test_labels_without_a_name_are_of_the_output_that_they_fit() -> None:
    """Features `(N, 64)` before the scores, numbers of the wrong shape, NaN; of none that fits nothing is said."""
    outputs = {"features": np.zeros((200, 64)), "scores": LOGITS, "map": np.zeros((200, 10, 2)), "one": np.zeros(200)}
    assert metrics.of_fitting_output(METRICS["accuracy"], outputs, LABELS).output == "scores"
    assert metrics.of_fitting_output(METRICS["mae"], outputs, RNG.standard_normal(200)).output == "one"
    broken = {"features": outputs["features"], "scores": np.full_like(LOGITS, np.nan)}
    assert metrics.of_fitting_output(METRICS["accuracy"], broken, LABELS).output == "features"
    assert metrics.of_fitting_output(METRICS["accuracy"], {"one": outputs["one"]}, LABELS) == METRICS["accuracy"]


def test_of_several_outputs_that_fit_labels_are_of_the_one_that_is_best() -> None:
    """Boxes `(N, 4)` are narrower than ten scores and fit labels of four classes; of errors the best is the smallest."""
    labels = np.arange(200) % 4
    outputs = {"boxes": RNG.random((200, 4)), "scores": np.eye(10)[labels], "wide": np.eye(64)[labels]}
    assert metrics.of_fitting_output(METRICS["accuracy"], outputs, labels).output == "scores"
    numbers = RNG.standard_normal(200)
    outputs = {"far": numbers + 5, "near": numbers + 0.1}
    assert metrics.of_fitting_output(METRICS["mae"], outputs, numbers).output == "near"


def test_one_sample_has_no_interval() -> None:
    with pytest.raises(DataError, match=r"^metric 'mae': 1 sample\(s\); an interval needs at least 2$"):
        metrics.interval(METRICS["mae"], np.ones(1), 0.95)


def test_bounds_stay_inside_what_the_metric_can_be() -> None:
    perfect = np.stack([LABELS, LABELS], axis=1)
    f1 = metrics.interval(METRICS["f1-macro"], perfect, 0.95)
    assert (f1.value, f1.high) == (1.0, 1.0)
    assert f1.low == pytest.approx(0.05 ** (1 / 200), rel=1e-9)  # all 200 right: at most 1.5 % of the unseen are wrong
    assert metrics.interval(METRICS["mae"], np.array([0.0, 0.0, 0.0, 9.0]), 0.95).low == 0.0


def test_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(
        RecipeError, match=r"^metrics\[0\]: unknown 'acuracy'; did you mean 'accuracy'\? known: accuracy, "
    ):
        metrics.resolve_metric("acuracy", "metrics[0]")
