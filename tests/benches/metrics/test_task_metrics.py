"""Metrics of boxes, embeddings, several labels, positions and entities, against the tools that define them."""

import re
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn import metrics as reference

from edgesmith.benches.metrics import metrics
from edgesmith.benches.metrics.entity_metrics import entity_f1
from edgesmith.benches.metrics.metrics import METRICS
from edgesmith.core.errors import DataError, TaskError
from edgesmith.core.task import Metric

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def measured(metric: Metric, output: np.ndarray, labels: np.ndarray) -> float:
    return metrics.value(metric, metrics.scores_of(metric, {"output": output}, labels))


def refusal(metric: Metric, output: np.ndarray, labels: np.ndarray) -> str:
    with pytest.raises(DataError) as caught:
        metrics.check_outputs(metric, output, labels)
    return str(caught.value)


def boxes(seed: int, images: int = 30, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Boxes near true ones and elsewhere, with equal scores among them, wrong classes and images without any."""
    rng = np.random.default_rng(seed)
    labels, output = np.full((images, 6, 5), -1.0), np.zeros((images, 12, 6))
    for image in range(images):
        count = rng.integers(0, 7)
        corner, size = rng.uniform(0, 80, (count, 2)), rng.uniform(8, 20, (count, 2))
        labels[image, :count] = np.concatenate([corner, corner + size, rng.integers(0, classes, (count, 1))], 1)
        for place in range(12):
            if count and rng.random() < 0.7:
                true = labels[image, rng.integers(count)]
                box = true[:4] + rng.normal(0, 2.0, 4)
                kind = true[4] if rng.random() < 0.9 else rng.integers(0, classes + 1)
            else:
                start = rng.uniform(0, 80, 2)
                box = np.concatenate([start, start + rng.uniform(8, 20, 2)])
                kind = rng.integers(0, classes + 1)
            output[image, place] = [*box, rng.integers(0, 20) / 20, kind]
    return output, labels


@pytest.mark.parametrize(
    ("seed", "whole", "half"),
    [
        (0, 0.14203363193747426, 0.39426983902529306),
        (1, 0.13854349298705387, 0.4237286160083271),
        (2, 0.1313543012399778, 0.36946652422627757),
        (3, 0.15091557353436516, 0.4220770223269513),
    ],
)
def test_average_precision_of_boxes_is_that_of_pycocotools(seed: int, whole: float, half: float) -> None:
    """The figures are `COCOeval`'s of pycocotools 2.0.11 on the same boxes."""
    output, labels = boxes(seed)
    assert measured(METRICS["box-map"], output, labels) == pytest.approx(whole, rel=1e-9)
    assert measured(METRICS["box-map50"], output, labels) == pytest.approx(half, rel=1e-9)


def test_a_second_box_on_the_same_object_is_wrong() -> None:
    labels = np.array([[[0, 0, 10, 10, 0.0]], [[0, 0, 10, 10, 0.0]]])
    one, two = [0, 0, 10, 10, 0.9, 0], [0, 0, 10, 10, 0.8, 0]
    missing = [[0.0] * 6, [0.0] * 6]
    once = measured(METRICS["box-map50"], np.array([[one, [0.0] * 6], missing]), labels)
    twice = measured(METRICS["box-map50"], np.array([[one, two], missing]), labels)
    assert once == twice == pytest.approx(51 / 101)  # half of the recalls are reached, at full precision
    three = measured(METRICS["box-map50"], np.array([[one, two], [[0, 0, 10, 10, 0.7, 0], [0.0] * 6]]), labels)
    assert three == pytest.approx((51 + 50 * 2 / 3) / 101)  # the doublet stands before the second object


def test_retrieval_asks_for_others() -> None:
    labels = np.array([0, 0, 1, 1, 1])
    output = np.array([[1, 0], [2, 0.1], [0, 1], [0.2, 1], [1, 0.05]])
    assert metrics.scores_of(METRICS["recall@1"], {"o": output}, labels).tolist() == [0, 0, 1, 1, 0]
    assert measured(METRICS["recall@5"], output, labels) == 1.0
    assert measured(METRICS["recall@1"], np.ones((5, 2)), labels) == 0.0  # nothing is nearer than anything else


def test_several_labels_equal_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, (150, 4))
    output = np.round(labels + rng.standard_normal((150, 4)) - 0.5, 1)  # some are equal
    said = output > 0
    assert measured(METRICS["label-accuracy"], output, labels) == pytest.approx(
        1 - reference.hamming_loss(labels, said)
    )
    assert measured(METRICS["label-f1"], output, labels) == pytest.approx(
        reference.f1_score(labels, said, average="micro"), rel=1e-12
    )
    assert measured(METRICS["label-map"], output, labels) == pytest.approx(
        reference.average_precision_score(labels, output, average="macro"), rel=1e-12
    )


def test_positions_without_a_label_count_nowhere() -> None:
    rng = np.random.default_rng(4)
    logits, labels = rng.standard_normal((6, 3, 20)), rng.integers(0, 3, (6, 20))
    labels[:, 12:] = -100
    for name in ("miou", "position-accuracy"):
        assert measured(METRICS[name], logits, labels) == measured(METRICS[name], logits[..., :12], labels[:, :12])
    expected = reference.accuracy_score(labels[:, :12].ravel(), logits[..., :12].argmax(1).ravel())
    assert measured(METRICS["position-accuracy"], logits, labels) == pytest.approx(expected)


def test_entities_equal_seqeval() -> None:
    """The figure is seqeval 1.2.2's `f1_score` of the same tags, of which many begin with an `I-`."""
    rng = np.random.default_rng(3)
    true = rng.integers(0, 5, (40, 9))
    said = np.where(rng.random((40, 9)) < 0.8, true, rng.integers(0, 5, (40, 9)))
    assert measured(entity_f1(TAGS), np.eye(5)[said].transpose(0, 2, 1), true) == pytest.approx(0.8278867102396514)


def test_an_entity_is_right_only_as_a_whole() -> None:
    def f1(said: Sequence[int], true: Sequence[int]) -> float:
        pair = np.array([said, said]), np.array([true, true])
        return measured(entity_f1(TAGS), np.eye(5)[pair[0]].transpose(0, 2, 1), pair[1])

    assert f1([1, 2, 0, 3], [1, 2, 0, 3]) == 1.0
    assert f1([1, 0, 0, 3], [1, 2, 0, 3]) == 0.5
    assert f1([1, 4, 0, 3], [1, -100, 0, 3]) == 1.0  # what follows in the same word is not asked
    assert f1([0, 0, 0, 0], [0, 0, 0, 0]) == 0.0


@pytest.mark.parametrize(
    ("name", "output", "labels", "text"),
    [
        ("box-map", np.zeros((2, 3, 5)), np.zeros((2, 3, 5)), "metric 'box-map': needs an output of shape (N, boxes, 6): x1, y1, x2, y2, score, class; got (2, 3, 5)"),
        ("box-map", np.zeros((2, 3, 6)), np.zeros((2, 3)), "metric 'box-map': needs labels of shape (N, boxes, 5): x1, y1, x2, y2, class (-1: no box); got (2, 3)"),
        ("box-map50", np.zeros((2, 3, 6)), np.full((2, 3, 5), -1.0), "metric 'box-map50': there is no box in the labels"),
        ("box-map", np.zeros((1, 1, 6)), np.array([[[5, 5, 3, 3, 0.0]]]), "metric 'box-map': a box in the labels has x1 > x2 or y1 > y2; give two corners, not a corner and a size"),
        ("recall@1", np.zeros((3, 4)), np.array([1, 1, 2]), "metric 'recall@1': only one sample has the label 2: there is no other for it to find"),
        ("recall@5", np.zeros((3, 4, 2)), np.array([1, 1, 1]), "metric 'recall@5': needs embeddings of shape (N, D), got (3, 4, 2)"),
        ("label-map", np.zeros((3, 4)), np.zeros(3), "metric 'label-map': needs an output and labels of one shape (N, labels), got (3, 4) and (3,)"),
        ("label-f1", np.zeros((3, 2)), np.array([[0, 1], [1, 1], [2, 0]]), "metric 'label-f1': labels must be 0 or 1, one column for each label"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(name: str, output: np.ndarray, labels: np.ndarray, text: str) -> None:
    assert refusal(METRICS[name], output, labels) == text


def test_tags_and_axes_that_do_not_fit_are_said() -> None:
    more, labels = np.zeros((2, 9, 4)), np.zeros((2, 4), np.int64)
    more[:, 7] = 1  # of which there is no tag
    assert refusal(entity_f1(TAGS), more, labels) == (
        "metric 'entity-f1': the model gives 9 outputs for each position, and 5 tags are named; name one for each"
    )
    for name in ("miou", "position-accuracy"):
        assert refusal(METRICS[name], np.zeros((2, 4, 5)), labels) == (
            f"metric '{name}': needs the classes of (2, 4, 5) on axis 1, they are on the last: logits.movedim(-1, 1)"
        )
    assert measured(entity_f1(TAGS), np.zeros((2, 5, 4)), np.full((2, 4), -100)) == 0.0


def test_a_word_that_is_no_tag_is_refused() -> None:
    with pytest.raises(TaskError, match=re.escape("entity_f1: 'PER' is not a tag; use O, B-KIND and I-KIND")):
        entity_f1(["O", "PER"])
