"""What every rule of FUSIONS has to keep: numpy and the ONNX nodes agree, and copies of a model give that model."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import scipy

from edgesmith.compressor.fusion.fusing import FUSIONS, Combination, Mean, Smoothing, log_loss, softmax
from edgesmith.compressor.fusion.label_by_label import EachLabel, EachLabelFused
from edgesmith.compressor.fusion.member_outputs import Logarithms, write_stack
from edgesmith.compressor.fusion.recalibrate import CALIBRATIONS, Calibration, Isotonic, Temperature, best_calibration
from edgesmith.exporters.graph.compose import Nodes

GUIDE = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()
LABELS = np.arange(60) % 4
# Behind members that give logits: small nodes are what a fused graph adds to its members.
NODES = {"mean": 6, "weighted": 7, "voting": 10, "log-mean": 7, "stacking": 8, "adaptive": 15, "gate": 16}


def stack(members: int = 3) -> np.ndarray:
    """Probabilities of 4 classes, right more often than not."""
    logits = np.random.default_rng(0).normal(size=(60, members, 4)) + 1.5 * np.eye(4)[LABELS][:, None]
    return softmax(logits).astype(np.float32).astype(np.float64)


def made(name: str, values: np.ndarray) -> Combination:
    rule = FUSIONS[name]
    if rule.make is not None:
        weights = np.arange(1, values.shape[1] + 1)
        return rule.make(weights / weights.sum())
    assert rule.fit is not None
    return rule.fit(values, LABELS, True)


def run(nodes: Nodes, output: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
    inputs = [onnx.helper.make_tensor_value_info(n, 1, ["batch", *array.shape[1:]]) for n, array in feeds.items()]
    outputs = [onnx.helper.make_tensor_value_info(output, 1, None)]
    graph = onnx.helper.make_graph(nodes.nodes, "fusion", inputs, outputs, nodes.constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {name: array.astype(np.float32) for name, array in feeds.items()})[0]
    return found


def in_onnx(combination: Calibration, values: np.ndarray) -> np.ndarray:
    nodes = Nodes()
    return run(nodes, combination.write(nodes, "x"), {"x": values})


def from_logits(combination: Combination, logits: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Operators of a whole fusion as the stage writes it, from members' logits to logarithms; and what it gives."""
    nodes, members = Nodes(), {f"m{index}": logits[:, index] for index in range(logits.shape[1])}
    fused = combination.write(nodes, write_stack(nodes, dict.fromkeys(members, "logits"), 4), 4)
    found = run(nodes, Logarithms().write(nodes, fused), members)
    return [node.op_type for node in nodes.nodes], found


@pytest.mark.parametrize(
    ("kinds", "nodes"),
    [
        (
            ("logits", "logits", "logits"),
            3,
        ),  # one softmax for all: small nodes are what a fused graph adds to its members
        (("logits", "probabilities", "logits"), 4),
        (("probabilities", "probabilities"), 2),
    ],
)
def test_members_become_one_stack(kinds: tuple[str, ...], nodes: int) -> None:
    logits = {f"m{index}": np.random.default_rng(index).normal(size=(5, 4)) for index in range(len(kinds))}
    shares = [softmax(each) for each in logits.values()]
    given = {n: s if k == "probabilities" else logits[n] for n, s, k in zip(logits, shares, kinds, strict=True)}
    made = Nodes()
    found = run(made, write_stack(made, dict(zip(logits, kinds, strict=True)), 4), given)
    assert len(made.nodes) == nodes
    np.testing.assert_allclose(found, np.stack(shares, axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.5, 1.0, 8.0])
def test_what_is_nearly_certain_of_labels_is_the_same_in_single_precision(value: float) -> None:
    """1 less a probability of 1 - 1e-7 is a rounding there, of which a temperature makes a share."""
    shares = scipy.special.expit(np.random.default_rng(0).normal(size=(2000, 2)) * 12)
    step = EachLabel(Temperature(value), 2)
    assert np.abs(in_onnx(step, shares) - step(shares)).max() < 1e-3
    alike = EachLabelFused(Mean(np.ones(1)))
    nodes = Nodes()
    found = run(nodes, alike.write(nodes, "x", 2), {"x": shares[:, None]})
    np.testing.assert_allclose(found, alike(shares[:, None]), atol=2e-7)


def test_numbers_may_come_without_a_column() -> None:
    made, given = Nodes(), {"a": np.arange(5.0), "b": np.arange(5.0)[:, None] + 10}
    found = run(made, write_stack(made, dict.fromkeys(given, "numbers"), 1, ["a"]), given)
    np.testing.assert_array_equal(found[:, :, 0], np.stack([np.arange(5), np.arange(5) + 10], axis=1))


@pytest.mark.parametrize("name", sorted(FUSIONS))
class TestFusion:
    def test_the_nodes_compute_the_same(self, name: str) -> None:
        combination, nodes = made(name, stack()), Nodes()
        found = run(nodes, combination.write(nodes, "x", 4), {"x": stack()})
        np.testing.assert_allclose(found, combination(stack()), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("scale", [1.0, 20.0])
    def test_a_whole_fusion_computes_the_same_in_few_nodes(self, name: str, scale: float) -> None:
        """With equal weights, and where members are so sure that the least probability bounds them."""
        logits = scale * np.log(stack())
        shares, rule = softmax(logits), FUSIONS[name]
        combination = made(name, shares) if rule.make is None else rule.make(np.full(3, 1 / 3))
        operators, found = from_logits(combination, logits)
        assert len(operators) == NODES[name]
        np.testing.assert_allclose(found, Logarithms()(combination(shares)), rtol=1e-4, atol=1e-4)

    def test_it_gives_probabilities(self, name: str) -> None:
        fused = made(name, stack())(stack())
        assert fused.shape == (60, 4)
        np.testing.assert_allclose(fused.sum(1), 1, rtol=1e-6)
        assert fused.min() >= 0

    def test_copies_of_a_model_agree_with_it(self, name: str) -> None:
        copies = np.repeat(stack(1), 3, axis=1)
        if name == "stacking":
            return  # it learns what is behind what they say
        assert np.array_equal(made(name, copies)(copies).argmax(1), copies[:, 0].argmax(1))

    def test_it_is_in_the_guide(self, name: str) -> None:
        assert f"`{name}`" in GUIDE


def test_smoothing_is_the_same_as_nodes() -> None:
    values = stack(1)[:, 0]
    np.testing.assert_allclose(in_onnx(Smoothing(0.2), values), Smoothing(0.2)(values), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(CALIBRATIONS))
class TestCalibration:
    """Of predictions that are three times too sure in their logits."""

    def drawn(self, count: int = 900) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(1)
        logits = rng.normal(size=(count, 4))
        return softmax(3 * logits), np.array([rng.choice(4, p=row) for row in softmax(logits)])

    def test_the_nodes_compute_the_same(self, name: str) -> None:
        fitted, (values, _) = CALIBRATIONS[name].fit(*self.drawn()), self.drawn()
        np.testing.assert_allclose(in_onnx(fitted, values), fitted(values), rtol=1e-3, atol=1e-5)

    def test_it_gives_probabilities_closer_to_the_truth_on_other_samples(self, name: str) -> None:
        shares, labels = self.drawn()
        found = CALIBRATIONS[name].fit(shares[:600], labels[:600])(shares[600:])
        np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
        assert found.min() > 0
        truth = log_loss(softmax(np.log(shares[600:]) / 3), labels[600:])
        before = log_loss(shares[600:], labels[600:])
        assert log_loss(found, labels[600:]) - truth < 0.2 * (before - truth)

    def test_it_is_seldom_taken_where_nothing_is_to_be_gained(self, name: str) -> None:
        """Probabilities that are right as they are, and few samples to learn more from: twenty draws."""
        parts, taken = [np.arange(start, 80, 4) for start in range(4)], 0
        for seed in range(20):
            rng = np.random.default_rng(seed)
            shares = softmax(rng.normal(size=(80, 4)))
            labels = np.array([rng.choice(4, p=row) for row in shares])
            best, found, losses = best_calibration([name], shares, labels, parts, lambda made, truth: 0.0)
            assert losses["none"] == log_loss(shares, labels)
            assert (found is None) == (best == "none") == (losses[name] >= losses["none"])
            taken += best == name
        assert taken <= 4

    def test_it_is_not_taken_where_it_costs_some_of_the_metric(self, name: str) -> None:
        shares, labels = self.drawn()
        parts = [np.arange(start, 900, 5) for start in range(5)]
        assert best_calibration([name], shares, labels, parts, lambda made, truth: 0.0)[0] == name
        best = best_calibration([name], shares, labels, parts, lambda made, truth: -float(abs(made - shares).sum()))
        assert best[:2] == ("none", None)

    def test_it_is_in_the_guide(self, name: str) -> None:
        assert f"`{name}`" in GUIDE


def test_isotonic_rises_and_is_the_mean_of_what_it_pools() -> None:
    """One class against another: 0.2 and 0.4 contradict each other and share the mean of their targets."""
    shares = np.repeat([0.1, 0.2, 0.4, 0.9], 10)
    labels = np.repeat([0, 1, 0, 1], 10)
    x, y = Isotonic.fit(np.stack([1 - shares, shares], 1), labels).tables[1]
    low, high = 1 / 22, 21 / 22
    np.testing.assert_allclose(x, [0.1, 0.2, 0.4, 0.9])
    np.testing.assert_allclose(y, [low, 0.5, 0.5, high])


def test_the_gate_follows_who_is_right() -> None:
    """Two members, each sure on its own half of the inputs and right there: better than any fixed weights."""
    rng, labels = np.random.default_rng(3), np.arange(400) % 3
    strong = np.arange(400) % 2
    logits = rng.normal(size=(400, 2, 3))
    logits[np.arange(400), strong] += 4 * np.eye(3)[labels]
    values = softmax(logits)
    gate, weighted = (FUSIONS[name].fit(values, labels, True) for name in ("gate", "weighted"))  # type: ignore[misc]
    assert log_loss(gate(values), labels) < 0.8 * log_loss(weighted(values), labels)


def test_the_temperature_that_made_a_prediction_too_sure_is_found() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(4000, 3))
    labels = np.array([rng.choice(3, p=row) for row in softmax(logits)])
    assert Temperature.fit(softmax(3 * logits), labels).value == pytest.approx(3.0, rel=0.15)


def test_the_best_weights_are_those_of_the_grid() -> None:
    """Two members, one number: the least squared error over a fine grid of the simplex."""
    rng = np.random.default_rng(2)
    labels = rng.normal(size=(200, 1))
    members = np.stack([labels + rng.normal(size=(200, 1)), labels + 2 * rng.normal(size=(200, 1))], axis=1)
    fit = FUSIONS["weighted"].fit
    assert fit is not None
    found = fit(members, labels, False)
    grid = np.linspace(0, 1, 1001)
    losses = [((weight * members[:, 0] + (1 - weight) * members[:, 1] - labels) ** 2).mean() for weight in grid]
    assert found.weights[0] == pytest.approx(grid[int(np.argmin(losses))], abs=2e-3)  # type: ignore[attr-defined]
