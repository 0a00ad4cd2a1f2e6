"""A torch module as a session, and exact words for what a module may not return."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from edgesmith.core.errors import DataError, TaskError
from edgesmith.core.values import TensorSpec
from edgesmith.exporters.sessions.torch_session import TorchSession, forward, to_tensors

ONE, TWO = torch.ones(2, 3), torch.zeros(2)


class Returns(nn.Module):
    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.result


class Pair(NamedTuple):
    logits: torch.Tensor
    mask: torch.Tensor


@pytest.mark.parametrize(
    ("result", "names", "expected"),
    [
        (ONE, ["y"], {"y": ONE}),
        ((ONE, TWO), ["a", "b"], {"a": ONE, "b": TWO}),
        ([TWO, ONE], ["a", "b"], {"a": TWO, "b": ONE}),
        (Pair(ONE, TWO), ["a", "b"], {"a": ONE, "b": TWO}),
        ({"b": TWO, "a": ONE, "loss": None}, ["a", "b"], {"a": ONE, "b": TWO}),
    ],
)
def test_what_a_module_may_return(result: Any, names: list[str], expected: dict[str, torch.Tensor]) -> None:
    found = forward(Returns(result), {}, names)
    assert list(found) == list(expected)
    assert all(found[name] is expected[name] for name in expected)


@pytest.mark.parametrize(
    ("result", "names", "text"),
    [
        (
            {"a": ONE, "b": TWO},
            ["a", "c", "d"],
            "the model returns ['a', 'b'], but the task's outputs also name ['c', 'd']",
        ),
        ({"a": None}, ["a"], "the model returns a NoneType as its output 'a'; an output is a tensor"),
        ((ONE, TWO), ["y"], "the model returns 2 value(s) (Tensor, Tensor), but the task names the outputs ['y']"),
        (ONE, ["a", "b"], "the model returns 1 value(s) (Tensor), but the task names the outputs ['a', 'b']"),
        (
            (ONE, None),
            ["a", "b"],
            "the model returns 2 value(s) (Tensor, NoneType), but the task names the outputs ['a', 'b']",
        ),
        (None, ["y"], "the model returns 1 value(s) (NoneType), but the task names the outputs ['y']"),
        ((), ["y"], "the model returns 0 value(s) (), but the task names the outputs ['y']"),
    ],
)
def test_what_it_may_not(result: Any, names: list[str], text: str) -> None:
    with pytest.raises(TaskError) as raised:
        forward(Returns(result), {}, names)
    assert str(raised.value) == text


class Difference(nn.Module):
    """Not symmetric in its inputs; random in training mode; changes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.9)
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        result = self.drop(a - b) * self.factor
        a.zero_()
        return result.to(torch.bfloat16), (a == 0).sum(1)


SPECS = tuple(TensorSpec(name=name, dtype="float32", shape=("batch", 3)) for name in ("a", "b"))


def test_inputs_go_in_the_tasks_order_and_data_stays() -> None:
    session = TorchSession(Difference().train(), SPECS, ("y", "zeros"))
    a, b = np.full((2, 3), 5, np.float32), np.full((2, 3), 1, np.float32)
    a.flags.writeable = False
    outputs = session.run({"b": b, "a": a, "unused": b})
    assert outputs["y"].dtype == np.float32 and outputs["zeros"].dtype == np.int64
    np.testing.assert_array_equal(outputs["y"], np.full((2, 3), 2))
    np.testing.assert_array_equal(outputs["zeros"], [3, 3])
    assert (a == 5).all()
    assert session.inputs == SPECS
    assert [spec.name for spec in session.outputs] == ["y", "zeros"]


def test_missing_input() -> None:
    session = TorchSession(Difference(), SPECS, ("y", "zeros"))
    with pytest.raises(DataError) as raised:
        session.run({"a": np.zeros((2, 3), np.float32)})
    assert str(raised.value) == "the model's input 'b' is missing; given: a"


def test_a_session_leaves_no_gradients() -> None:
    module = nn.Linear(3, 2)
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 3))
    TorchSession(module, (spec,), ("y",)).run({"x": np.ones((2, 3), np.float32)})
    assert module.weight.grad is None
    module(torch.ones(2, 3)).sum().backward()
    assert module.weight.grad is not None


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "int32", "uint8", "bool"])
def test_arrays_become_tensors_of_the_same_type_and_values(dtype: str) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)[:, ::-1]
    tensor = to_tensors({"x": array}, "cpu")["x"]
    assert str(tensor.dtype) == f"torch.{dtype}"
    np.testing.assert_array_equal(tensor.numpy(), array)
