"""Which of the forms that were timed becomes the file, and how that is said."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgesmith.benches.report.int8_report import Decision, Quality
from edgesmith.compressor import artifacts
from edgesmith.compressor.artifacts import chosen_form
from edgesmith.compressor.int8.bounds import Bounds
from edgesmith.compressor.int8.int8_forms import Form, Problem
from edgesmith.compressor.int8.int8_search import Found
from edgesmith.compressor.stage import Graph
from edgesmith.core.values import Artifact, Interval


def artifact(folder: Path, dialect: str, kilobytes: int) -> Artifact:
    path = folder / f"{dialect}.onnx"
    path.write_bytes(bytes(1000 * kilobytes))
    return Artifact(
        path=path, target="onnxruntime-cpu", dialect=dialect, precision="int8", inputs=(), outputs=(), digest=""
    )


def timed(path: Artifact, speeds: dict[int, float], kept: dict[str, str], noise: float, **more: Any) -> Form:
    speedup = {batch: Interval(value=speed, low=speed, high=speed) for batch, speed in speeds.items()}
    return Form(artifact=path, keep_float=kept, speedup=speedup, noise=noise, **more)


def problem(bounds: Bounds, folder: Path) -> Any:
    """The network in float takes 100 kB."""
    case: Any = SimpleNamespace(
        baseline=artifact(folder, "float", 100),
        bounds=bounds,
        target=SimpleNamespace(unmeasurable=lambda: None),
        in_float=None,
        may_be_float=True,
    )
    for name in ("small_enough", "fast_enough", "rank", "ordered", "_speed", "as_fast"):
        setattr(case, name, getattr(Problem, name).__get__(case))
    return case


def chosen(forms: tuple[Form, ...], bounds: Bounds, folder: Path) -> tuple[str, str]:
    """Dialect and reason."""
    best, reason = chosen_form(Found(best=forms[0], forms=forms, decisions=()), problem(bounds, folder))
    return best.dialect, reason


@pytest.mark.parametrize(
    ("max_bytes", "noise", "dialect", "said"),
    [
        (math.inf, 0.01, "float", "3 forms (against this network in float, at batch size 1: "
                                  "float 1.00x, u8 with 1 layer in float 0.97x, s8 0.90x)"),
        (math.inf, 0.04, "u8", "3 forms (against this network in float, at batch size 1: "
                               "u8 with 1 layer in float 0.97x, float 1.00x, s8 0.90x); "
                               "no slower than float beyond the noise of 4.0%, and smaller"),
        (40_000, 0.01, "u8", "3 forms of at most 40.0 kB (against this network in float, at batch size 1: "
                             "u8 with 1 layer in float 0.97x, s8 0.90x, float 1.00x); "
                             "none as small is no slower than the original, and this one comes nearest"),
        (25_000, 0.01, "s8", "3 forms of at most 25.0 kB (against this network in float, at batch size 1: "
                             "s8 0.90x, float 1.00x, u8 with 1 layer in float 0.97x); "
                             "none as small is no slower than the original, and this one comes nearest"),
        (10_000, 0.01, "float", "3 forms (against this network in float, at batch size 1: "
                                "float 1.00x, u8 with 1 layer in float 0.97x, s8 0.90x)"),
    ],
)  # fmt: skip
def test_the_fastest_form_that_is_small_enough(
    max_bytes: float, noise: float, dialect: str, said: str, tmp_path: Path
) -> None:
    forms = (
        timed(artifact(tmp_path, "u8", 30), {1: 0.97}, {"a": "slower"}, noise),
        timed(artifact(tmp_path, "s8", 20), {1: 0.9}, {}, noise),
    )
    assert chosen(forms, Bounds(max_bytes=max_bytes), tmp_path) == (dialect, f"the fastest of {said}")


@pytest.mark.parametrize("at_one", [0.93, 0.96, 0.98])  # the noise of 3 % is between them
@pytest.mark.parametrize("limit", [None, 1.5])
def test_a_little_lost_at_one_batch_size_does_not_outweigh_much_gained_at_another(
    at_one: float, limit: float | None, tmp_path: Path
) -> None:
    """As on the digits: pruned, the network in float is 2 and 2.3 times as fast as the original."""
    original = artifact(tmp_path, "original", 300)
    form = timed(
        artifact(tmp_path, "u8", 30), {1: at_one, 32: 1.7}, {}, 0.03, original_speedup={1: 1 / 2.0, 32: 1 / 2.3}
    )
    assert chosen((form,), Bounds(original=original, speedup=limit), tmp_path) == (
        "u8",
        f"the fastest of 2 forms (against this network in float, at batch sizes 1 / 32: u8 {at_one:.2f}x / 1.70x, "
        "float 1.00x / 1.00x)",
    )


@pytest.mark.parametrize(
    ("limit", "pruned", "dialect", "said"),
    [
        (None, 1.5, "u8", "u8 0.90x / 1.70x, float 1.00x / 1.00x)"),
        (1.3, 1.5, "u8", "u8 0.90x / 1.70x, float 1.00x / 1.00x)"),
        (1.4, 1.5, "float", "float 1.00x / 1.00x, u8 0.90x / 1.70x); "
                            "u8 is 1.35x of the original at its worst batch size, and not one that keeps the 1.4x asked for"),
        (2.0, 1.5, "float", "float 1.00x / 1.00x, u8 0.90x / 1.70x); "
                            "none of them keeps the 2x asked for, and this one comes nearest"),
        (None, 1.0, "float", "float 1.00x / 1.00x, u8 0.90x / 1.70x); "
                             "u8 is 0.90x of the original at its worst batch size, and not one that is no slower than the original"),
    ],
)  # fmt: skip
def test_a_form_that_misses_the_speed_up_asked_for_is_not_taken(
    limit: float | None, pruned: float, dialect: str, said: str, tmp_path: Path
) -> None:
    original = artifact(tmp_path, "original", 300)
    form = timed(
        artifact(tmp_path, "u8", 30), {1: 0.9, 32: 1.7}, {}, 0.03, original_speedup={1: 1 / pruned, 32: 1 / pruned}
    )
    assert chosen((form,), Bounds(original=original, speedup=limit), tmp_path) == (
        dialect, f"the fastest of 2 forms (against this network in float, at batch sizes 1 / 32: {said}",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("limit_ms", "dialect", "said"),
    [
        (1.05, "u8", "u8 0.93x / 1.70x, float 1.00x / 1.00x)"),
        (1.0, "float", "float 1.00x / 1.00x, u8 0.93x / 1.70x); u8 is 1.86x of the original at its worst batch size, "
                       "and not one that is no slower than the original and takes at most 1 ms"),
    ],
)  # fmt: skip
def test_a_form_that_takes_longer_than_asked_is_not_taken(
    limit_ms: float, dialect: str, said: str, tmp_path: Path
) -> None:
    """The network in float takes 0.95 ms."""
    more = {"original_speedup": {1: 0.5, 32: 0.5}, "milliseconds": {1: 0.95 / 0.93, 32: 20.0}}
    form = timed(artifact(tmp_path, "u8", 30), {1: 0.93, 32: 1.7}, {}, 0.03, **more)
    bounds = Bounds(original=artifact(tmp_path, "original", 300), latency_ms=limit_ms)
    assert chosen((form,), bounds, tmp_path) == (
        dialect, f"the fastest of 2 forms (against this network in float, at batch sizes 1 / 32: {said}",
    )  # fmt: skip


def test_where_no_form_is_fast_enough_noise_does_not_choose_the_larger_file(tmp_path: Path) -> None:
    form = timed(artifact(tmp_path, "u8", 30), {1: 0.995}, {}, 0.03, original_speedup={1: 0.8})
    dialect, reason = chosen((form,), Bounds(original=artifact(tmp_path, "original", 300), speedup=2.0), tmp_path)
    assert dialect == "u8" and reason.endswith("; none of them keeps the 2x asked for, and this one comes nearest")


def test_forms_far_apart_are_not_called_close(tmp_path: Path) -> None:
    """The one whose mean is higher is slower than the original at batch 1."""
    forms = tuple(
        timed(artifact(tmp_path, name, 30), speeds, {}, 0.03)
        for name, speeds in (("s8", {1: 1.01, 32: 1.3}), ("u8", {1: 0.9, 32: 1.7}))
    )
    dialect, reason = chosen(forms, Bounds(), tmp_path)
    missed = "u8 is 0.90x of the original at its worst batch size, and not one that is no slower than the original"
    assert dialect == "s8" and reason.endswith(f"; {missed}")


@pytest.mark.parametrize(("speed", "in_int8"), [(1.2, [True, False]), (0.8, [False, False])])
def test_a_file_in_float_has_no_layer_in_int8(
    speed: float, in_int8: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"operator": "Conv", "alone_db": None, "float_ms": 0.1, "int8_ms": 0.2}
    decisions = (Decision(node="a", int8=True, why="", **told), Decision(node="b", int8=False, why="slow", **told))
    form = timed(artifact(tmp_path, "u8", 30), {1: speed}, {"b": "slow"}, 0.01)
    monkeypatch.setattr(artifacts, "search", lambda *_: Found(best=form, forms=(form,), decisions=decisions))
    written = artifacts._searched(problem(Bounds(), tmp_path), Graph(path=tmp_path, digest=""), 1, None)
    assert [layer.int8 for layer in written.layers] == in_int8
    assert [layer.why for layer in written.layers] == ["" if any(in_int8) else "the whole file is in float", "slow"]


@pytest.mark.parametrize(("float_db", "dialect"), [(40.0, "float"), (3.0, "s8")])
def test_where_no_form_is_good_enough(float_db: float, dialect: str, tmp_path: Path) -> None:
    """Float, unless it is not good enough itself, as after a training in INT8: then what is closest to that."""
    forms = [
        Form(artifact=artifact(tmp_path, name, 30), keep_float={}, quality=Quality(outputs=(), snr_db=db, drop=None))
        for name, db in (("u8", 5.0), ("s8", 15.0))
    ]
    case = problem(Bounds(), tmp_path)
    case.may_be_float = float_db > 20
    best, reason = chosen_form(Found(best=None, forms=(), decisions=(), tried=tuple(forms)), case)
    assert best.dialect == dialect
    assert (
        reason
        == {
            "float": "float: no INT8 form is good enough",
            "s8": "no form is good enough, nor is float; s8 is closest to what was trained",
        }[dialect]
    )


def test_what_a_choice_hangs_on(tmp_path: Path) -> None:
    assert Bounds().key() == {"rule": "geometric mean"}
    full = Bounds(max_bytes=4e5, original=artifact(tmp_path, "float", 100), speedup=1.5, latency_ms=2.0)
    assert full.key() == Bounds().key() | {"max_bytes": 4e5, "original": "", "speedup": 1.5, "latency_ms": 2.0}
