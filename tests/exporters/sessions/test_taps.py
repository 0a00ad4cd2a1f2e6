"""Ranges of inner tensors, seen while the float graph runs."""

import tracemalloc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from edgesmith.calibration.histogram import Histogram
from edgesmith.core.errors import DataError
from edgesmith.exporters.int8.placement import place, tensors_to_observe
from edgesmith.exporters.sessions import taps
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession
from edgesmith.exporters.sessions.taps import channel_ranges, observe

from ..conftest import Network
from ..graphs import graph, node, random


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


def test_channels_that_overflow_or_are_never_reached_have_no_ranges() -> None:
    """What is scaled by such a range would be NaN."""
    model = graph(
        [node("MatMul", "x w", "h"), node("Mul", "h large", "o"), node("Slice", "h none none one", "e")],
        {
            "w": random(4, 3),
            "large": np.float32(3e38) * np.ones(3, np.float32),
            "none": np.zeros(1, np.int64),
            "one": np.ones(1, np.int64),
        },
        {"x": ["n", 4]},
        {"o": None, "e": None},
    )
    x = random(40, 4, seed=1)
    found = channel_ranges(model, [{"x": x[:7]}, {"x": 9 * x}], {"h": -1, "o": 1, "e": 0})
    assert list(found) == ["h"]
    expected = 9 * (x @ random(4, 3))
    np.testing.assert_allclose(found["h"], [expected.min(0), expected.max(0)], rtol=1e-4)


def test_input_model_is_not_changed(digits: Network) -> None:
    before = digits.model.SerializeToString(deterministic=True)
    observe(digits.model, [digits.feed], tensors_to_observe(place(digits.model)))
    assert digits.model.SerializeToString(deterministic=True) == before


def test_no_batch_outlives_its_turn(digits: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither inputs nor inner values: when the next batch runs, everything of the one before is gone."""
    held: list[weakref.ref[np.ndarray]] = []
    most = 0

    class Watched(OnnxRuntimeSession):
        def run(self, feed: Any) -> dict[str, np.ndarray]:
            nonlocal most
            most = max(most, sum(one() is not None for one in held))
            values = super().run(feed)
            held.extend(weakref.ref(array) for array in values.values())
            return values

    monkeypatch.setattr(taps, "OnnxRuntimeSession", Watched)
    tensors = tensors_to_observe(place(digits.model))
    observe(digits.model, [{"image": digits.feed["image"][:4]}] * 5, tensors)
    assert len(held) >= 5 * (len(tensors) - 1)
    assert most == 0


def test_memory_does_not_grow_with_the_samples(digits: Network) -> None:
    """64 against 1,024 samples in batches of 16: the peak of all Python and numpy allocations is the same."""
    tensors = tensors_to_observe(place(digits.model))

    def batches(count: int) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, count, 16):
            yield {"image": np.roll(digits.feed["image"][:16], start, axis=3)}

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            observe(digits.model, batches(count), tensors)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(16)  # what is made once, on first use
    assert peak(1024) < 1.02 * peak(64)
