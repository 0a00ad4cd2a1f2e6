"""The distillation objective against its definition."""

import math

import pytest
import torch
from torch.nn import functional

from edgesmith.compressor.losses import LOSSES, distillation, soft_cross_entropy


def test_soft_part_is_the_divergence_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]])
    temperature = 2.0
    p = 1 / (1 + math.exp(-1.0))  # the teacher's first class at T = 2
    expected = temperature**2 * (p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p))
    assert float(soft_cross_entropy(student, teacher, temperature)) == pytest.approx(expected, rel=1e-6)


def test_a_student_that_agrees_costs_nothing() -> None:
    logits = torch.randn(5, 10)
    assert float(soft_cross_entropy(logits, logits + 3.0, 4.0)) == pytest.approx(0.0, abs=1e-6)


def test_the_gradient_keeps_its_size_when_the_temperature_changes() -> None:
    """Hinton et al. 2015, section 2.1: at high T the gradient of T^2 * KL goes to (s - t) / N for centred logits."""
    student = torch.tensor([[0.3, -0.1, -0.2]], requires_grad=True)
    teacher = torch.tensor([[-0.2, 0.3, -0.1]])
    soft_cross_entropy(student, teacher, 1000.0).backward()
    expected = (student.detach() - teacher) / 3
    torch.testing.assert_close(student.grad, expected, rtol=1e-2, atol=1e-4)


def test_the_whole_objective() -> None:
    student, teacher, labels = torch.randn(6, 4), torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    loss = LOSSES["cross-entropy"]
    expected = functional.cross_entropy(student, labels) + 0.7 * soft_cross_entropy(student, teacher, 3.0)
    found = distillation(student, teacher, labels, 6, loss, weight=0.7, temperature=3.0)
    torch.testing.assert_close(found, expected)


def test_samples_without_labels_get_the_soft_part_alone() -> None:
    student, teacher, labels = torch.randn(6, 4), torch.randn(6, 4), torch.tensor([0, 1])
    loss = LOSSES["cross-entropy"]
    soft = soft_cross_entropy(student, teacher, 2.0)
    none = distillation(student, teacher, None, 0, loss, weight=1.0, temperature=2.0)
    some = distillation(student, teacher, labels, 2, loss, weight=1.0, temperature=2.0)
    torch.testing.assert_close(none, soft)
    torch.testing.assert_close(some, functional.cross_entropy(student[:2], labels) * 2 / 6 + soft)


@pytest.mark.parametrize("name", ["mse", "l1", "huber"])
def test_for_regression_the_teacher_is_a_label(name: str) -> None:
    student, teacher, labels = torch.randn(6, 1), torch.randn(6, 1), torch.randn(6, 1)
    loss = LOSSES[name]
    found = distillation(student, teacher, labels, 6, loss, weight=0.5, temperature=4.0)
    torch.testing.assert_close(found, loss.hard(student, labels) + 0.5 * loss.hard(student, teacher))
