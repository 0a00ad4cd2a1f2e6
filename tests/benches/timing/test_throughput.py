"""Throughput under concurrency: the rates are those of the work done, ratios are paired, a failing thread stops all."""

import itertools
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.benches.timing import throughput, throughput_loop
from edgesmith.benches.timing.contender import Contender
from edgesmith.core.errors import MeasurementError, UsageError
from tests.benches.models import WIDTH, chain


def sleeper(seconds: float, lock: Any = None) -> Callable[[], None]:
    def run() -> None:
        if lock is None:
            time.sleep(seconds)
        else:
            with lock:
                time.sleep(seconds)

    return run


@pytest.mark.alone
def test_threads_add_up_where_calls_run_beside_each_other_and_not_where_they_wait() -> None:
    """Four callers of 4 ms: up to 1,000 calls a second, or 250 where a lock lets one through at a time."""
    with ThreadPoolExecutor(4) as pool:
        one = throughput_loop.window([sleeper(0.004)], pool, 200).rate
        four = throughput_loop.window([sleeper(0.004)] * 4, pool, 200).rate
        locked = throughput_loop.window([sleeper(0.004, threading.Lock())] * 4, pool, 200).rate
    assert one < 250 and locked < 260
    assert 2 * one < four < 1000
    assert locked < 0.7 * four


def test_a_window_waits_for_a_slow_model() -> None:
    """0.05 s hold no five calls of 0.03 s: it lasts until every thread has made them."""
    calls = itertools.count()

    def run() -> None:
        next(calls)
        time.sleep(0.03)

    with ThreadPoolExecutor(2) as pool:
        done = throughput_loop.window([run, run], pool, 50)
    assert 10 <= done.calls == next(calls) <= 12
    assert 20 < done.rate < 2 / 0.03


def test_one_thread_that_fails_stops_all() -> None:
    def broken() -> None:
        raise MeasurementError("no such kernel")

    with ThreadPoolExecutor(2) as pool, pytest.raises(MeasurementError, match=r"^no such kernel$"):
        throughput_loop.window([sleeper(0.001), broken], pool, 50)


@pytest.mark.alone
def test_half_the_layers_are_twice_the_samples_at_any_concurrency(tmp_path: Path) -> None:
    whole, half = chain(tmp_path / "whole.onnx", 16), chain(tmp_path / "half.onnx", 8)
    done: list[tuple[int, int]] = []
    feeds = {16: [{"x": np.ones((16, WIDTH), np.float32)}] * 2}
    found = throughput.compare(
        [whole, half], feeds, [1, 2, 1], seconds=0.5, restarts=3, confidence=0.8, progress=lambda *now: done.append(now)
    )
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert [(one.batch, one.concurrency, one.threads) for one in found] == [(16, 1, 1), (16, 2, 1)]
    for one in found:
        (ratio,) = one.ratios
        assert 1.4 < ratio.value < 2.8
        assert ratio.low < ratio.value < ratio.high
        baseline, faster = one.rates
        assert baseline.low <= baseline.value <= baseline.high
        assert faster.value / baseline.value == pytest.approx(ratio.value, rel=0.4)
        # Samples, not calls: 16 products of 16 x 128 x 128 take some 0.1 ms, so 16 samples of them are past 10,000 a second.
        assert 2_000 < baseline.value < 2_000_000
        assert 0 < one.noise_floor < 0.5


@pytest.mark.parametrize("concurrency", [[], [2, 0]])
def test_numbers_of_threads_that_are_none(concurrency: list[int]) -> None:
    text = f"concurrency: numbers of threads from 1 on, got {concurrency}"
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        throughput.compare([Path("a.onnx")] * 2, {1: {"x": np.zeros(1)}}, concurrency)


def test_which_sessions_take_calls_at_once(tmp_path: Path) -> None:
    def contender(session: str) -> Contender:
        return Contender(label="a", session=session, path=tmp_path, file=tmp_path)

    assert throughput.cannot(contender("tensorrt"), [1, 2]) == "an engine's session runs one call at a time"
    assert throughput.cannot(contender("onnxruntime-x86"), [2]) == throughput.cannot(tmp_path, [2]) == ""
    assert throughput.cannot(contender("tensorrt"), [1]) == ""
