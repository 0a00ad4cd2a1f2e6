"""The distillation losses against their definitions and the papers' claims, and the objective they are part of."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from edgesmith.compressor.learning.distillation import (
    DIST,
    DISTILLATIONS,
    DKD,
    KD,
    NKD,
    LogitMSE,
    as_rows,
    classes_of,
    measure_of,
    objective,
    pearson,
    soft_part,
)
from edgesmith.compressor.learning.losses import LOSSES
from edgesmith.core.errors import DataError, RecipeError, TaskError
from edgesmith.core.task import Task

CLASSES = torch.tensor([0, 1, 2, 3, 0, 1])


def logits() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6, 4, requires_grad=True), 2 * torch.randn(6, 4)


def gradient(loss: Any, student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    (found,) = torch.autograd.grad(loss(student, teacher, CLASSES[: len(student)], temperature), student)
    return found


# --- Hinton et al., 2015


def test_soft_part_is_the_divergence_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]])
    temperature = 2.0
    p = 1 / (1 + math.exp(-1.0))  # the teacher's first class at T = 2
    expected = temperature**2 * (p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p))
    assert float(KD()(student, teacher, CLASSES[:1], temperature)) == pytest.approx(expected, rel=1e-6)


def test_a_student_that_agrees_costs_nothing() -> None:
    teacher = torch.randn(5, 10)
    assert float(KD()(teacher, teacher + 3.0, CLASSES[:5], 4.0)) == pytest.approx(0.0, abs=1e-6)


def test_the_gradient_keeps_its_size_when_the_temperature_changes() -> None:
    """Section 2.1: at high T the gradient of T^2 * KL goes to (s - t) / N for centred logits."""
    student = torch.tensor([[0.3, -0.1, -0.2]], requires_grad=True)
    teacher = torch.tensor([[-0.2, 0.3, -0.1]])
    expected = (student.detach() - teacher) / 3
    torch.testing.assert_close(gradient(KD(), student, teacher, 1000.0), expected, rtol=1e-2, atol=1e-4)


# --- Zhao et al., CVPR 2022


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_is_kd_where_beta_is_what_the_teacher_leaves_the_others(temperature: float) -> None:
    """Equation 6: KD = TCKD + (1 - p) NCKD, row by row, with the teacher's probability p of the row's class."""
    student, teacher = logits()
    for row in range(6):
        s, t, own = student[row : row + 1], teacher[row : row + 1], CLASSES[row : row + 1]
        p = float(functional.softmax(t / temperature, 1)[0, own])
        whole, split = KD()(s, t, own, temperature), DKD(alpha=1.0, beta=1 - p)(s, t, own, temperature)
        torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-5)


def test_dkd_does_not_let_a_sure_teacher_silence_the_others() -> None:
    """The surer the teacher, the less KD learns of the other classes; DKD's part of them stays."""
    student, teacher = logits()
    unsure, sure = teacher.clone(), teacher.clone()
    sure[torch.arange(6), CLASSES] = 14.0
    unsure[torch.arange(6), CLASSES] = 0.0
    rest = torch.ones(6, 4, dtype=torch.bool).scatter_(1, CLASSES[:, None], False)
    only_others = DKD(alpha=0.0, beta=1.0)
    size = {
        (name, kind): float(gradient(loss, student, t, 1.0)[rest].norm())
        for name, loss in (("kd", KD()), ("dkd", only_others))
        for kind, t in (("sure", sure), ("unsure", unsure))
    }
    assert size["dkd", "sure"] == pytest.approx(size["dkd", "unsure"], rel=1e-5)
    assert gradient(only_others, student, sure, 1.0)[~rest].abs().max() < 1e-7
    differences = [gradient(KD(), student, t, 1.0) for t in (sure, sure.flip(0))]
    assert size["kd", "sure"] != pytest.approx(size["kd", "unsure"], rel=0.1)
    assert not torch.equal(*differences)


# --- Huang et al., NeurIPS 2022


def test_dist_sees_relations_alone() -> None:
    """The distance does not change under scale and shift: d(m1 u + n1, m2 v + n2) = d(u, v) for positive m."""
    u, v = torch.rand(6, 4), torch.rand(6, 4)
    scale, shift = torch.rand(6, 1) + 0.5, torch.randn(6, 1)
    torch.testing.assert_close(pearson(scale * u + shift, v), pearson(u, v), rtol=1e-4, atol=1e-5)
    assert float(pearson(-u, v)[0]) == pytest.approx(-float(pearson(u, v)[0]), abs=1e-6)


def test_dist_lets_the_student_be_less_sure_than_its_teacher() -> None:
    """A student whose probabilities are the teacher's, half way to uniform, has nothing to learn; KD would move it."""
    _, teacher = logits()
    mixed = (0.5 * functional.softmax(teacher, 1) + 0.5 / 4).log().requires_grad_()
    assert float(DIST()(mixed.detach(), teacher, CLASSES, 1.0)) == pytest.approx(0.0, abs=1e-5)
    assert float(gradient(DIST(), mixed, teacher, 1.0).abs().max()) < 1e-4
    assert float(KD()(mixed.detach(), teacher, CLASSES, 1.0)) > 0.05


def test_dist_inter_is_over_classes_and_intra_over_samples() -> None:
    """By numpy's correlation of the rows, and of the columns, of the probabilities."""
    student, teacher = (z.detach() for z in logits())
    s, t = (functional.softmax(z / 2, 1).numpy() for z in (student, teacher))
    rows = np.mean([np.corrcoef(s[i], t[i])[0, 1] for i in range(6)])
    columns = np.mean([np.corrcoef(s[:, c], t[:, c])[0, 1] for c in range(4)])
    assert float(DIST(gamma=0.0)(student, teacher, CLASSES, 2.0)) == pytest.approx(4 * (1 - rows), rel=1e-4)
    assert float(DIST(beta=0.0)(student, teacher, CLASSES, 2.0)) == pytest.approx(4 * (1 - columns), rel=1e-4)


# --- Yang et al., ICCV 2023


def test_nkd_leaves_the_others_alone_once_their_shares_are_the_teachers() -> None:
    """Normalized, the others' part is least at the teacher's shares, however sure the student is."""
    _, teacher = logits()
    student = teacher.clone()
    student[torch.arange(6), CLASSES] += 2.5  # surer of its class; the others are as the teacher has them
    student.requires_grad_()
    own = gradient(NKD(gamma=0.0), student, teacher, 1.0)
    torch.testing.assert_close(gradient(NKD(gamma=1.5), student, teacher, 1.0), own, rtol=1e-4, atol=1e-6)
    rest = torch.ones(6, 4, dtype=torch.bool).scatter_(1, CLASSES[:, None], False)
    assert float(gradient(KD(), student, teacher, 1.0)[rest].abs().max()) > 1e-2  # KD would pull the others up again


def test_nkd_of_the_own_class_is_the_teachers_probability_times_the_log() -> None:
    student, teacher = logits()
    t, log_s = functional.softmax(teacher, 1), functional.log_softmax(student, 1)
    expected = -(t[torch.arange(6), CLASSES] * log_s[torch.arange(6), CLASSES]).mean()
    torch.testing.assert_close(NKD(gamma=0.0)(student, teacher, CLASSES, 4.0), expected)


# --- Kim et al., IJCAI 2021


def test_mse_is_twice_what_kd_becomes_at_high_temperature() -> None:
    """For centred logits; what is added to a whole row only MSE sees."""
    student, teacher = logits()
    centred = (student - student.mean(1, keepdim=True)).detach().requires_grad_()
    target = teacher - teacher.mean(1, keepdim=True)
    limit = gradient(KD(), centred, target, 3000.0)
    torch.testing.assert_close(gradient(LogitMSE(), centred, target, 1.0), 2 * limit, rtol=1e-2, atol=1e-4)
    assert float(LogitMSE()(target + 1.0, target, CLASSES, 1.0)) == pytest.approx(1.0)
    assert float(KD()(target + 1.0, target, CLASSES, 1.0)) == pytest.approx(0.0, abs=1e-6)


# --- rows, classes, the objective


def test_every_position_is_a_row() -> None:
    output = torch.randn(2, 3, 4, 5)
    rows = as_rows(output)
    assert rows.shape == (40, 3)
    torch.testing.assert_close(rows[20 + 1 * 5 + 2], output[1, :, 1, 2])


def test_the_class_of_a_row_is_its_label_or_the_teachers_first() -> None:
    teacher = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.0, 1.0, 5.0]])
    assert classes_of(teacher, None).tolist() == [1, 0, 2]
    assert classes_of(teacher, torch.tensor([2, 2])).tolist() == [2, 2, 2]
    dense = torch.tensor([[[0.0, 2.0], [1.0, 0.0]]])  # (1, 2 classes, 2 positions)
    assert classes_of(dense, torch.tensor([[1, -100]])).tolist() == [1, 0]


def test_the_whole_objective() -> None:
    student, teacher, labels = torch.randn(6, 4), torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    loss = LOSSES["cross-entropy"]
    soft = 0.7 * soft_part(KD(), student, teacher, labels, loss, 3.0)
    expected = functional.cross_entropy(student, labels) + 0.7 * KD()(student, teacher, labels, 3.0)
    torch.testing.assert_close(objective(student, soft, labels, 6, loss), expected)


def test_samples_without_labels_get_the_soft_part_alone() -> None:
    student, teacher, labels = torch.randn(6, 4), torch.randn(6, 4), torch.tensor([0, 1])
    loss = LOSSES["cross-entropy"]
    soft = soft_part(KD(), student, teacher, labels, loss, 2.0)
    torch.testing.assert_close(objective(student, soft, None, 0, loss), soft)
    some = objective(student, soft, labels, 2, loss)
    torch.testing.assert_close(some, functional.cross_entropy(student[:2], labels) * 2 / 6 + soft)


@pytest.mark.parametrize("name", ["mse", "l1", "huber"])
def test_for_regression_the_teacher_is_a_label(name: str, task: Task) -> None:
    student, teacher = torch.randn(6, 1), torch.randn(6, 1)
    regression = dataclasses.replace(task, loss=name)
    measure = measure_of(None, {}, regression, "w")
    found = soft_part(measure, student, teacher, None, LOSSES[name], 4.0)
    torch.testing.assert_close(found, LOSSES[name].hard(student, teacher))
    with pytest.raises(RecipeError) as caught:
        measure_of("dkd", {}, regression, "w")
    assert str(caught.value) == (
        f"w.loss: '{name}' has no classes; the teacher's output is a label to it: leave loss out"
    )


def plain_mse(student: torch.Tensor, teacher: torch.Tensor, classes: torch.Tensor, temperature: float) -> torch.Tensor:
    return functional.mse_loss(student, teacher)


def test_for_several_labels_the_teacher_gives_probabilities(task: Task) -> None:
    """Its logits in a label's place would pull without bound; where the student agrees the gradient is nought."""
    measure = measure_of(None, {}, dataclasses.replace(task, loss="binary-cross-entropy"), "w")
    teacher = torch.tensor([[4.0, -3.0], [0.5, 6.0]])
    student = teacher.clone().requires_grad_()
    found = soft_part(measure, student, teacher, None, LOSSES["binary-cross-entropy"], 4.0)
    (gradient,) = torch.autograd.grad(found, student)
    torch.testing.assert_close(gradient, torch.zeros(2, 2))
    labels = torch.tensor([[1, 0], [1, 1]])
    expected = -torch.where(labels > 0, torch.sigmoid(teacher), torch.sigmoid(-teacher)).log().mean()
    torch.testing.assert_close(LOSSES["binary-cross-entropy"].hard(teacher, labels), expected)


def test_a_loss_by_name(task: Task) -> None:
    assert measure_of(None, {}, task, "w") == KD()
    assert measure_of("dkd", {"beta": 2.0}, task, "w") == DKD(beta=2.0)
    own = measure_of(f"{__name__}:plain_mse", {}, task, "w")
    assert own is not None
    rows, classes = torch.tensor([[1.0, 3.0]]), torch.tensor([0])
    assert float(own(rows, 0 * rows, classes, 4.0)) == float(plain_mse(rows, 0 * rows, classes, 4.0)) == 5.0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dkdd", {}, "w.loss: unknown 'dkdd'; did you mean 'dkd'? known: dist, dkd, kd, mse, nkd"),
        ("dkd", {"bet": 1.0}, "w.loss_options: unknown key 'bet'; did you mean 'beta'? known: alpha, beta"),
        ("dkd", {"beta": -1.0}, "w.loss_options.beta: input should be greater than or equal to 0, got -1.0"),
        (None, {"beta": 1.0}, "w.loss_options: 'kd' has no options"),
        (f"{__name__}:plain_mse", {"a": 1.0}, f"w.loss_options: '{__name__}:plain_mse' has no options"),
    ],
)  # fmt: skip
def test_a_loss_that_is_not_there(name: str | None, options: dict[str, float], message: str, task: Task) -> None:
    with pytest.raises(RecipeError) as caught:
        measure_of(name, options, task, "w")
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["kd", "dkd", "nkd"])
def test_a_class_that_both_rule_out_is_none(name: str) -> None:
    """A model may mask classes with -inf: by definition 0 log 0 is 0, with the gradient of the loss without the class."""
    student, teacher = logits()
    ruled_out = torch.full((6, 1), -torch.inf)
    loss = DISTILLATIONS[name]()
    plain = loss(student, teacher, CLASSES, 2.0)
    masked = loss(torch.cat([student, ruled_out], 1), torch.cat([teacher, ruled_out], 1), CLASSES, 2.0)
    torch.testing.assert_close(masked, plain)
    torch.testing.assert_close(torch.autograd.grad(masked, student), torch.autograd.grad(plain, student))


@pytest.mark.parametrize("name", sorted(DISTILLATIONS))
def test_a_loss_stays_finite(name: str) -> None:
    """Equal rows, a teacher that is sure beyond float's reach, a single sample."""
    for student, teacher in (
        (torch.zeros(3, 4), torch.zeros(3, 4)),
        (torch.randn(3, 4), torch.eye(4)[:3] * 1e4),
        (torch.randn(1, 4), torch.randn(1, 4)),
    ):
        student = student.requires_grad_()
        loss = DISTILLATIONS[name]()(student, teacher, CLASSES[: len(student)], 4.0)
        (slope,) = torch.autograd.grad(loss, student)
        assert bool(torch.isfinite(loss)) and bool(torch.isfinite(slope).all())


@pytest.mark.parametrize("name", ["mse", "l1", "huber", "binary-cross-entropy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_labels_without_a_column_are_those_of_one(name: str, dtype: torch.dtype) -> None:
    """Torch would compare each sample's output with all labels, whose mean is then the best that can be learnt."""
    outputs, labels = torch.tensor([[0.3], [-1.5], [2.0]], requires_grad=True), torch.tensor([0, 1, 1]).to(dtype)
    loss = LOSSES[name].hard
    found = loss(outputs, labels)
    found.backward()
    assert found.item() == pytest.approx(loss(outputs[:, 0], labels[:, None]).item())
    assert found.item() == pytest.approx(loss(outputs, labels.float()[:, None]).item())
    if name == "mse":
        assert found.item() == pytest.approx((0.09 + 6.25 + 1.0) / 3)
    with pytest.raises(DataError) as caught:
        loss(torch.zeros(3, 2), labels)
    assert str(caught.value) == "labels (3,) are not those of an output (3, 2)"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("math:sin", "math.sin() takes exactly one argument (4 given)"),
        ("builtins:print", "returned NoneType; return a tensor of one number, such as the mean over samples"),
    ],
)
def test_a_loss_of_ones_own_is_named_where_it_fails(name: str, said: str, task: Task) -> None:
    measure = measure_of(name, {}, task, "stages[0] 'distill'")
    assert measure is not None
    rows = torch.zeros(2, 3)
    with pytest.raises(TaskError) as caught:
        measure(rows, rows, torch.zeros(2, dtype=torch.long), 4.0)
    assert str(caught.value).startswith(f"stages[0] 'distill'.loss: '{name}'")
    assert said in str(caught.value)
