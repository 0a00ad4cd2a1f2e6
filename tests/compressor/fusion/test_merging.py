"""The rules of merging: what their papers state, and what PEFT computes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft.utils import merge_utils
from torch import nn
from torch.nn import functional

from edgesmith.compressor.fusion.merge_statistics import fisher, grams
from edgesmith.compressor.fusion.merging import (
    Dare,
    Fisher,
    GreedySoup,
    Mix,
    RegMean,
    Slerp,
    Soup,
    State,
    TaskArithmetic,
    Ties,
)
from edgesmith.core.task import Task


def vector(*values: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(values, dtype=torch.float64)}


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mix(members: list[State], **more: Any) -> Mix:
    count = len(members)
    return Mix(members=members, **{"shares": [1 / count] * count, "names": list("abcdefgh"[:count])} | more)


def zeros_like(state: State) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


# --- soups


def test_a_soup_is_the_mean_and_shares_weigh_it() -> None:
    members = [vector(0.0, 4.0), vector(2.0, 0.0)]
    assert Soup()(mix(members))["w"].tolist() == [1.0, 2.0]
    assert Soup()(mix(members, shares=[0.25, 0.75]))["w"].tolist() == [1.5, 1.0]


def test_a_greedy_soup_is_never_worse_than_its_best_member() -> None:
    """The judge wants 1.0; the third member would pull the soup away from it and stays out."""
    members = [vector(0.0), vector(1.9), vector(-9.0)]
    made = mix(members, judge=lambda state: -abs(float(state["w"][0]) - 1.0))
    assert float(GreedySoup()(made)["w"][0]) == pytest.approx(0.95)
    assert made.notes == ["greedy soup of b, a"]
    # Members that only harm each other: the best one alone.
    made = mix([vector(1.0), vector(5.0)], judge=lambda state: -abs(float(state["w"][0]) - 1.0))
    assert GreedySoup()(made)["w"].tolist() == [1.0]
    assert made.notes == ["greedy soup of a"]


# --- slerp


def test_slerp_keeps_the_norm_and_ends_at_the_ends() -> None:
    a, b = random(1, 4, 5), random(2, 4, 5)
    b = b * a.norm() / b.norm()
    for t in (0.0, 0.25, 0.5, 1.0):
        merged = Slerp()(mix([{"w": a}, {"w": b}], shares=[1 - t, t]))["w"]
        assert float(merged.norm()) == pytest.approx(float(a.norm()))
        angle = torch.arccos((merged * a).sum() / a.norm() ** 2 * (1 - 1e-12))
        whole = torch.arccos((b * a).sum() / a.norm() ** 2)
        assert float(angle) == pytest.approx(t * float(whole), abs=1e-5)
    torch.testing.assert_close(Slerp()(mix([{"w": a}, {"w": b}], shares=[1.0, 0.0]))["w"], a)
    torch.testing.assert_close(Slerp()(mix([{"w": a}, {"w": b}], shares=[0.0, 1.0]))["w"], b)
    half = Soup()(mix([{"w": a}, {"w": b}]))["w"]
    assert float(half.norm()) < 0.9 * float(a.norm()), "the straight line shrinks them"


def test_slerp_of_parallel_tensors_and_of_zero_is_the_line() -> None:
    assert Slerp()(mix([vector(1.0, 2.0), vector(3.0, 6.0)]))["w"].tolist() == [2.0, 4.0]
    assert Slerp()(mix([vector(0.0, 0.0), vector(3.0, 6.0)]))["w"].tolist() == [1.5, 3.0]


# --- task vectors


def test_task_vectors_add_up() -> None:
    """With scale n it is the paper's sum: each member's change, where others changed nothing, arrives whole."""
    base = vector(1.0, 1.0, 1.0)
    members = [vector(3.0, 1.0, 1.0), vector(1.0, 0.0, 1.0)]
    assert TaskArithmetic(scale=2.0)(mix(members, base=base))["w"].tolist() == [3.0, 0.0, 1.0]
    assert TaskArithmetic(scale=1.0)(mix(members, base=base))["w"].tolist() == [2.0, 0.5, 1.0]
    forgotten = TaskArithmetic(scale=-1.0)(mix([members[0]], base=base))  # the paper's negation
    assert forgotten["w"].tolist() == [-1.0, 1.0, 1.0]


def test_a_scale_is_chosen_on_validation() -> None:
    made = mix([vector(2.0)], base=vector(0.0), judge=lambda state: -abs(float(state["w"][0]) - 4.1))
    assert TaskArithmetic()(made)["w"].tolist() == [4.0]
    assert made.notes == ["scale 2 of 0.5, 0.75, 1, 1.25, 1.5, 2, 3 is best on validation"]


def test_ties_trims_elects_and_averages_what_agrees() -> None:
    base = vector(0.0, 0.0, 0.0, 0.0)
    # Column 0: agreement; 1: the larger side wins, and alone; 2: small values are trimmed; 3: one member alone.
    members = [vector(2.0, 5.0, 0.1, 0.0), vector(4.0, -3.0, 0.2, 9.0)]
    assert Ties(density=0.75)(mix(members, base=base))["w"].tolist() == pytest.approx([3.0, 5.0, 0.1, 9.0])
    assert Ties(density=0.5)(mix(members, base=base))["w"].tolist() == pytest.approx([3.0, 5.0, 0.0, 9.0])


def test_ties_is_what_peft_computes() -> None:
    """On one tensor, and on several: the paper trims the whole vector, so PEFT gets them as one."""
    taus = [random(seed, 6, 7) for seed in range(4)]
    ours = Ties(density=0.3)(mix([{"w": tau} for tau in taus], base=zeros_like({"w": taus[0]})))["w"]
    theirs = merge_utils.ties(taus, torch.ones(4, dtype=torch.float64), 0.3)
    torch.testing.assert_close(ours, theirs)
    parts = [{"a": tau[:2] * 10, "b": tau[2:]} for tau in taus]
    found = Ties(density=0.3)(mix(parts, base=zeros_like(parts[0])))
    joined = [torch.cat([part["a"].flatten(), part["b"].flatten()]) for part in parts]
    theirs = merge_utils.ties(joined, torch.ones(4, dtype=torch.float64), 0.3)
    torch.testing.assert_close(torch.cat([found["a"].flatten(), found["b"].flatten()]), theirs)


def test_task_arithmetic_is_what_peft_computes() -> None:
    taus, shares = [random(seed, 5, 3) for seed in range(3)], [0.5, 0.3, 0.2]
    ours = TaskArithmetic(scale=2.0)(mix([{"w": tau} for tau in taus], base=zeros_like({"w": taus[0]}), shares=shares))[
        "w"
    ]
    torch.testing.assert_close(ours, 2 * merge_utils.task_arithmetic(taus, torch.tensor(shares, dtype=torch.float64)))


def test_dare_is_what_peft_computes_with_the_same_draws() -> None:
    taus = [random(seed, 8, 8) for seed in range(3)]
    generator = torch.Generator().manual_seed(7)
    ours = Dare(density=0.4)(mix([{"w": tau} for tau in taus], base=zeros_like({"w": taus[0]}), generator=generator))
    torch.manual_seed(7)
    torch.testing.assert_close(ours["w"], merge_utils.dare_linear(taus, torch.full((3,), 1 / 3).double(), 0.4))


def test_dare_keeps_the_expectation() -> None:
    """Over many draws the mean is the task vector, and no draw is it."""
    tau = random(3, 40)
    generator = torch.Generator().manual_seed(0)
    draws = [
        Dare(density=0.25)(mix([{"w": tau}], base=zeros_like({"w": tau}), generator=generator))["w"]
        for _ in range(2000)
    ]
    torch.testing.assert_close(torch.stack(draws).mean(0), tau, rtol=0, atol=0.25)
    zero = torch.stack(draws).eq(0).double().mean()
    assert float(zero) == pytest.approx(0.75, abs=0.01)


# --- rules that look at data


def test_equal_fishers_give_the_average_and_a_sure_member_its_way() -> None:
    members = [vector(0.0, 4.0), vector(2.0, 0.0)]
    equal = [vector(0.3, 0.7)] * 2
    assert Fisher()(mix(members, fishers=equal))["w"].tolist() == pytest.approx([1.0, 2.0])
    one = [vector(1.0, 1.0), vector(0.0, 3.0)]
    assert Fisher()(mix(members, fishers=one))["w"].tolist() == pytest.approx([0.0, 1.0], abs=1e-5)
    nobody = [vector(0.0, 1.0)] * 2
    assert Fisher()(mix(members, fishers=nobody))["w"].tolist() == pytest.approx([1.0, 2.0])
    larger = [{"w": 1e-9 * each["w"]} for each in one]
    assert Fisher()(mix(members, fishers=larger))["w"].tolist() == pytest.approx([0.0, 1.0], abs=1e-5)


class Tiny(nn.Module):
    """One layer, so that what a rule should give can be computed by other means."""

    def __init__(self, layer: nn.Module, seed: int) -> None:
        super().__init__()
        self.layer = layer
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), (6,)),
    "linear without bias": (lambda: nn.Linear(6, 4, bias=False), (6,)),
    "convolution": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 7, 6)),
    "grouped": (lambda: nn.Conv2d(4, 6, (3, 1), padding="same", dilation=2, groups=2), (4, 6, 6)),
    "one axis": (lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), (2, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_regmean_is_the_layer_that_differs_least(name: str) -> None:
    """Its outputs differ from each member's, on that member's inputs, least in squares: any step away is worse."""
    make, shape = LAYERS[name]
    modules = [Tiny(make(), seed) for seed in range(2)]
    inputs = [random(seed, 40, *shape).float() * (1 + 4 * seed) for seed in range(2)]
    made = mix(
        [{key: tensor.detach().double() for key, tensor in module.named_parameters()} for module in modules],
        grams=[grams(module, [({"x": x}, None)]) for module, x in zip(modules, inputs, strict=True)],
    )
    found = RegMean(alpha=1.0)(made)
    merged = Tiny(make(), 0).double()
    merged.load_state_dict(found)
    loss = sum(
        functional.mse_loss(merged(x.double()), module(x).detach().double(), reduction="sum")
        for module, x in zip(modules, inputs, strict=True)
    )
    average = Tiny(make(), 0).double()
    average.load_state_dict(Soup()(made))
    worse = sum(
        functional.mse_loss(average(x.double()), module(x).detach().double(), reduction="sum")
        for module, x in zip(modules, inputs, strict=True)
    )
    assert isinstance(loss, torch.Tensor) and isinstance(worse, torch.Tensor)
    gradients = torch.autograd.grad(loss, list(merged.parameters()))
    least = float(loss.detach())
    assert least < 0.9 * float(worse.detach())
    assert all(float(gradient.abs().max()) < 1e-3 * least for gradient in gradients)


def test_regmean_averages_an_input_that_was_always_zero() -> None:
    layers = [Tiny(nn.Linear(3, 2, bias=False), seed) for seed in range(2)]
    inputs = [random(seed, 20, 3).float() * torch.tensor([1.0, 1.0, 0.0]) for seed in range(2)]
    made = mix(
        [{"layer.weight": module.layer.weight.detach().double()} for module in layers],
        grams=[grams(module, [({"x": x}, None)]) for module, x in zip(layers, inputs, strict=True)],
    )
    torch.testing.assert_close(RegMean()(made)["layer.weight"][:, 2], Soup()(made)["layer.weight"][:, 2])


def test_the_fisher_information_of_logistic_regression() -> None:
    """In closed form: the mean over samples and classes of `(p_c - p_c^2) x^2`."""
    module = Tiny(nn.Linear(3, 2), 0)
    x = random(1, 4000, 3).float()
    task = Task(name="t", model=lambda: module, test=None, outputs=("y",))  # type: ignore[arg-type]  # no data is read
    samples = (({"x": row[None]}, None) for row in x)
    found = fisher(module, samples, task, "y", torch.Generator().manual_seed(0))
    with torch.no_grad():
        p = torch.softmax(module(x), 1)
    expected = ((p - p.square()).T @ x.square()) / len(x)
    torch.testing.assert_close(found["layer.weight"], expected, rtol=0.1, atol=0.005)
    torch.testing.assert_close(found["layer.bias"], (p - p.square()).mean(0), rtol=0.1, atol=0.005)


def test_the_fisher_information_of_several_labels() -> None:
    """Of `k` labels each is drawn by its own probability; the loss is their mean: `(p - p^2) x^2 / k^2`."""
    module = Tiny(nn.Linear(3, 2), 0)
    x = random(1, 4000, 3).float()
    data: Any = None
    task = Task(name="t", model=lambda: module, test=data, outputs=("y",), loss="binary-cross-entropy")
    found = fisher(module, (({"x": row[None]}, None) for row in x), task, "y", torch.Generator().manual_seed(0))
    with torch.no_grad():
        p = torch.sigmoid(module(x))
    expected = ((p - p.square()).T @ x.square()) / len(x) / 4
    torch.testing.assert_close(found["layer.weight"], expected, rtol=0.1, atol=0.002)
