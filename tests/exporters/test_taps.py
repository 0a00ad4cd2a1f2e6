"""Ranges of inner tensors, seen while the float graph runs."""

import numpy as np
import pytest
import torch

from edgesmith.calibration.histogram import Histogram
from edgesmith.core.errors import DataError
from edgesmith.exporters.placement import place, tensors_to_observe
from edgesmith.exporters.taps import observe

from .conftest import Network
from .graphs import graph, node, random


def test_ranges_are_those_of_the_values() -> None:
    model = graph(
        [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("Neg", "r", "y")],
        {"w": random(4, 3)},
        {"x": ["n", 4]},
        {"y": None},
    )
    x = random(40, 4, seed=1)
    found = observe(model, ({"x": x[start : start + 16]} for start in range(0, 40, 16)), ("r", "x", "y", "h"))
    inner = x @ random(4, 3)
    values = {"r": np.maximum(inner, 0), "x": x, "y": -np.maximum(inner, 0), "h": inner}
    assert list(found) == ["r", "x", "y", "h"]
    for name, histogram in found.items():
        assert histogram.count == values[name].size
        assert histogram.low == pytest.approx(values[name].min(), rel=1e-5, abs=1e-6)
        assert histogram.high == pytest.approx(values[name].max(), rel=1e-5, abs=1e-6)


def test_the_way_data_is_cut_into_batches_does_not_matter(digits: Network) -> None:
    tensors = tensors_to_observe(place(digits.model))
    images = digits.feed["image"][:60]
    whole = observe(digits.model, [{"image": images}], tensors)
    pieces = observe(digits.model, [{"image": images[start : start + 7]} for start in range(0, 60, 7)], tensors)
    for name in tensors:
        assert whole[name].count == pieces[name].count > 0
        assert (whole[name].low, whole[name].high) == pytest.approx((pieces[name].low, pieces[name].high), abs=1e-4)


def test_inner_values_are_torchs(digits: Network) -> None:
    """The range in front of the head is that of torch's own pooled features."""
    pooled: list[torch.Tensor] = []
    hook = digits.module.head.register_forward_pre_hook(lambda module, inputs: pooled.append(inputs[0]))
    with torch.no_grad():
        digits.module(torch.tensor(digits.feed["image"]))
    hook.remove()
    name = next(made.output[0] for made in digits.model.graph.node if made.op_type == "GlobalAveragePool")
    histogram: Histogram = observe(digits.model, [digits.feed], (name,))[name]
    assert histogram.low == pytest.approx(float(pooled[0].min()), abs=1e-5)
    assert histogram.high == pytest.approx(float(pooled[0].max()), rel=1e-4)


def test_an_overflow_is_named() -> None:
    model = graph(
        [node("Mul", "x big", "h"), node("Relu", "h", "y")],
        {"big": np.full(1, 1e38, np.float32)},
        {"x": ["n", 4]},
        {"y": None},
    )
    with pytest.raises(DataError) as raised:
        observe(model, [{"x": np.full((2, 4), 1e3, np.float32)}], ("x", "h"))
    assert str(raised.value) == "tensor 'h': holds NaN or infinity; no range can be found"


def test_input_model_is_not_changed(digits: Network) -> None:
    before = digits.model.SerializeToString(deterministic=True)
    observe(digits.model, [digits.feed], tensors_to_observe(place(digits.model)))
    assert digits.model.SerializeToString(deterministic=True) == before
