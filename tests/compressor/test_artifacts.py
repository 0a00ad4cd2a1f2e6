"""Which of the forms that were timed becomes the file, and how that is said."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgesmith.compressor.artifacts import chosen_form
from edgesmith.compressor.int8.int8_search import Form, Found, Problem
from edgesmith.core.values import Artifact, Interval


def artifact(folder: Path, dialect: str, kilobytes: int) -> Artifact:
    path = folder / f"{dialect}.onnx"
    path.write_bytes(bytes(1000 * kilobytes))
    return Artifact(
        path=path, target="onnxruntime-cpu", dialect=dialect, precision="int8", inputs=(), outputs=(), digest=""
    )


def timed(path: Artifact, speed: float, kept: dict[str, str], noise: float) -> Form:
    speedup = {1: Interval(value=speed, low=speed, high=speed)}
    return Form(artifact=path, keep_float=kept, speedup=speedup, noise=noise)


@pytest.mark.parametrize(
    ("max_bytes", "noise", "chosen", "said"),
    [
        (math.inf, 0.01, "float", "3 forms (against this network in float, at the worst batch size: "
                                  "float 1.00x, u8 0.97x, s8 0.90x)"),
        (math.inf, 0.04, "u8", "3 forms (against this network in float, at the worst batch size: u8 0.97x, float 1.00x, "
                               "s8 0.90x); no slower than float beyond the noise of 4.0%, and smaller; 1 layer stays in float"),
        (40_000, 0.01, "u8", "3 forms of at most 40.0 kB (against this network in float, at the worst batch size: "
                             "u8 0.97x, s8 0.90x, float 1.00x); 1 layer stays in float"),
        (25_000, 0.01, "s8", "3 forms of at most 25.0 kB (against this network in float, at the worst batch size: "
                             "s8 0.90x, float 1.00x, u8 0.97x)"),
        (10_000, 0.01, "float", "3 forms (against this network in float, at the worst batch size: "
                                "float 1.00x, u8 0.97x, s8 0.90x)"),
    ],
)  # fmt: skip
def test_the_fastest_form_that_is_small_enough(
    max_bytes: float, noise: float, chosen: str, said: str, tmp_path: Path
) -> None:
    forms = (
        timed(artifact(tmp_path, "u8", 30), 0.97, {"a": "slower"}, noise),
        timed(artifact(tmp_path, "s8", 20), 0.9, {}, noise),
    )
    case: Any = SimpleNamespace(
        baseline=artifact(tmp_path, "float", 100),
        max_bytes=max_bytes,
        target=SimpleNamespace(unmeasurable=lambda: None),
    )
    case.small_enough = lambda form: Problem.small_enough(case, form)
    case.rank = lambda form: Problem.rank(case, form)
    case._as_fast = lambda form, first: Problem._as_fast(case, form, first)
    case.ordered = lambda forms: Problem.ordered(case, forms)
    best, reason = chosen_form(Found(best=forms[0], forms=forms, decisions=()), case)
    assert (best.dialect, reason) == (chosen, f"the fastest of {said}")
