"""Every entry of METRICS keeps the promises that pairing, intervals and verdicts rest on."""

import numpy as np
import pytest

from edgesmith.benches.metrics import accuracy, metrics
from edgesmith.benches.metrics.metrics import METRICS
from edgesmith.core.errors import DataError
from edgesmith.core.values import Interval

SAMPLES, BOXES = 300, 100
NAMES = sorted(METRICS)
CLASSES = {"accuracy", "top5", "f1-macro"}
POSITIONS = {"miou", "position-accuracy"}


def case(name: str, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and labels of a model that is right up to `noise`."""
    rng = np.random.default_rng(seed)
    labels = np.random.default_rng(99).integers(0, 12, SAMPLES)
    noisy = np.random.default_rng(seed + 1)
    if name.startswith("label-"):
        several = np.random.default_rng(98).integers(0, 2, (SAMPLES, 5))
        return 2.0 * several - 1 + noise * noisy.standard_normal((SAMPLES, 5)), several
    if name.startswith("box-"):  # two boxes in each image; fewer of them, for a mean average precision takes its time
        labels = labels[:BOXES]
        corner = np.random.default_rng(97).uniform(0, 50, (BOXES, 2, 2))
        true = np.concatenate([corner, corner + 20, np.stack([labels, labels[::-1]], 1)[..., None] % 3], axis=2)
        found = np.concatenate(
            [true[..., :4] + 5 * noise * noisy.standard_normal((BOXES, 2, 4)), true[..., :1]], axis=2
        )
        found[..., 4] = noisy.uniform(0.1, 0.9, (BOXES, 2))
        return np.concatenate([found, true[..., 4:]], axis=2), true
    if name.startswith("recall"):
        return np.eye(12)[labels] + noise * noisy.standard_normal((SAMPLES, 12)), labels
    if name in POSITIONS:  # a row of three positions for each sample
        labels = np.stack([labels, labels[::-1], np.roll(labels, 7)], axis=1)
        return np.eye(12)[labels].transpose(0, 2, 1) + noise * rng.standard_normal((SAMPLES, 12, 3)), labels
    if name in CLASSES:
        return np.eye(12)[labels] + noise * rng.standard_normal((SAMPLES, 12)), labels
    return (labels + noise * rng.standard_normal(SAMPLES))[:, None].astype(np.float32), labels.astype(np.float32)


def scores(name: str, noise: float, seed: int = 0) -> np.ndarray:
    output, labels = case(name, noise, seed)
    return metrics.scores_of(METRICS[name], {"output": output}, labels)


@pytest.mark.parametrize("name", NAMES)
def test_key_is_the_name_and_only_statistics_have_a_reduce(name: str) -> None:
    metric = METRICS[name]
    assert metric.name == name
    assert (metric.reduce is not None) == (metric.kind == "statistic")


@pytest.mark.parametrize("name", NAMES)
def test_one_row_per_sample_that_follows_its_sample(name: str) -> None:
    metric, (output, labels) = METRICS[name], case(name, 0.5)
    order = np.random.default_rng(1).permutation(len(labels))
    straight = metrics.scores_of(metric, {"output": output}, labels)
    shuffled = metrics.scores_of(metric, {"output": output[order]}, labels[order])
    assert len(straight) == len(labels)
    np.testing.assert_array_equal(straight[order], shuffled)
    assert metrics.value(metric, straight) == pytest.approx(metrics.value(metric, shuffled), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_alone_has_the_score_that_it_has_among_others(name: str) -> None:
    """Where the table says so: outputs are then scored run by run, and not held."""
    metric, (output, labels) = METRICS[name], case(name, 0.5)
    assert metric.samplewise == (not name.startswith(("box-", "recall")))
    if metric.samplewise:
        alone = [metric.scores(output[i : i + 1], labels[i : i + 1]) for i in range(len(labels))]
        np.testing.assert_array_equal(np.concatenate(alone), metric.scores(output, labels))


@pytest.mark.parametrize("name", NAMES)
def test_a_better_model_is_better(name: str) -> None:
    metric = METRICS[name]
    good, bad = (metrics.value(metric, scores(name, noise)) for noise in (0.05, 3.0))
    assert (good > bad) == metric.higher_is_better
    assert good == pytest.approx(1.0 if metric.higher_is_better else 0.0, abs=0.07)


@pytest.mark.parametrize("name", NAMES)
def test_interval_holds_the_value_and_narrows_with_less_confidence(name: str) -> None:
    wide, narrow = (metrics.interval(METRICS[name], scores(name, 0.6), confidence) for confidence in (0.99, 0.8))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    assert wide.value == metrics.value(METRICS[name], scores(name, 0.6))


@pytest.mark.parametrize("name", NAMES)
def test_drop_is_positive_when_final_is_worse_and_turns_its_sign(name: str) -> None:
    metric, good, bad = METRICS[name], scores(name, 0.3, 1), scores(name, 0.9, 2)
    worse, better = accuracy.paired_drop(metric, good, bad, 0.95), accuracy.paired_drop(metric, bad, good, 0.95)
    difference = metrics.value(metric, good) - metrics.value(metric, bad)
    assert worse.value == pytest.approx(difference if metric.higher_is_better else -difference, rel=1e-9)
    assert worse.value > 0
    assert worse.low > 0, "three times the noise on 300 samples is beyond doubt"
    assert (better.value, better.low, better.high) == pytest.approx((-worse.value, -worse.high, -worse.low), rel=0.05)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_identical_predictions_do_not_prove_certainty(name: str, noise: float) -> None:
    same = scores(name, noise)
    drop = accuracy.paired_drop(METRICS[name], same, same.copy(), 0.95)
    if noise == 0.0 and not METRICS[name].higher_is_better:
        assert drop == Interval(value=0.0, low=0.0, high=0.0)  # no error at all leaves no scale to bound one by
        return
    assert drop.value == 0.0
    assert drop.low < 0 < drop.high


@pytest.mark.parametrize("name", NAMES)
def test_nan_and_length_are_refused(name: str) -> None:
    output, labels = case(name, 0.1)
    with pytest.raises(
        DataError, match=f"metric '{name}': {len(output)} outputs for {len(output) - 1} labels; they must be one to one"
    ):
        metrics.scores_of(METRICS[name], {"output": output}, labels[1:])
    output[7] = np.nan
    with pytest.raises(DataError, match=rf"NaN or infinite for 1 of {len(output)} samples \(first: sample 7\)"):
        metrics.scores_of(METRICS[name], {"output": output}, labels)
