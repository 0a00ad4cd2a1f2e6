"""What `edgesmith quantize` prints, from outcomes made by hand."""

import dataclasses

import pytest
from rich.console import Console

from edgesmith.benches.metrics.closeness import Closeness
from edgesmith.benches.report.int8_report import Decision, Quality, Quantized, describe
from edgesmith.benches.report.int8_text import print_quantized
from edgesmith.calibration.ranges import TensorRange
from edgesmith.core.values import Interval

OUTPUT = Closeness(output="y", snr_db=31.25, agreement=0.995, answers=200)
WRITTEN = Quantized(
    model="m.onnx",
    target="onnxruntime-cpu",
    status="written",
    reason="",
    out="q.onnx",
    dialect="u8",
    metric="accuracy",
    quality=Quality(
        outputs=(OUTPUT,),
        snr_db=31.25,
        drop=Interval(value=0.004, low=-0.001, high=0.009),
        original=0.94,
        changed=0.936,
    ),
    speedup=Interval(value=2.104, low=2.0, high=2.2),
    original_ms=0.2,
    final_ms=0.095,
    original_bytes=1_000_000,
    final_bytes=260_000,
    runs={"calibration": 40, "validation": 20, "test": 20},
    decisions=(
        Decision(node="conv1", operator="Conv", int8=True, float_ms=0.023, int8_ms=0.012),
        Decision(node="[head]", operator="Gemm", int8=False, why="costs too much: 9.1 dB by itself", alone_db=9.1),
    ),
    tried=("u8: 2.10x, 31.2 dB",),
)


def printed(found: Quantized, everything: bool = False) -> list[str]:
    console = Console(width=120)
    with console.capture() as capture:
        print_quantized(found, console, everything)
    return capture.get().splitlines()


def test_layers_files_and_the_outcome() -> None:
    lines = printed(WRITTEN)
    rows = [line.split() for line in lines if line.startswith("│")]
    # What stays in float first; names are printed as they are, never as markup.
    assert rows[0] == [
        "│",
        "[head]",
        "│",
        "Gemm",
        "│",
        "9.1",
        "dB",
        "│",
        "│",
        "│",
        "float:",
        "costs",
        "too",
        "much:",
        "9.1",
        "dB",
        "by",
        "itself",
        "│",
    ]
    assert rows[1] == ["│", "conv1", "│", "Conv", "│", "│", "23", "us", "│", "12", "us", "│", "INT8", "│"]
    text = "\n".join(lines)
    assert "On 20 runs that nothing was chosen with" in text
    for part in (
        "0.0040 lost (-0.0010 to 0.0090)",
        "signal to noise 31.2 dB",
        "99.50 % of 200 answers the same",
        "2.10x (2.00 to 2.20)",
        "3.85x smaller",
        "tried: u8: 2.10x, 31.2 dB",
    ):
        assert part in text
    assert lines[-1] == "WRITTEN: q.onnx (u8)"


def test_a_refusal_says_why() -> None:
    refused = dataclasses.replace(WRITTEN, status="refused", reason="slower than the original: 0.90x", out=None)
    assert printed(refused)[-1] == "REFUSED: slower than the original: 0.90x; nothing was written"


def test_what_could_not_be_proven_is_written_and_said() -> None:
    unproven = dataclasses.replace(WRITTEN, status="unproven", reason="latency not measured: no CUDA device")
    assert printed(unproven)[-1] == "UNPROVEN: latency not measured: no CUDA device; wrote q.onnx"


def test_long_lists_are_cut_unless_all_is_asked_for() -> None:
    many = tuple(Decision(node=f"n{index}", operator="Conv", int8=True) for index in range(40))
    found = dataclasses.replace(WRITTEN, decisions=many)
    assert "and 15 more; --all shows them" in printed(found)
    assert sum("│ n" in line for line in printed(found, everything=True)) == 40


@pytest.mark.parametrize(
    ("drop", "original", "text"),
    [
        (None, None, "31.2 dB"),
        (Interval(value=0.015, low=0, high=0.05), None, "1.50 % of the answers changed"),
        (Interval(value=0.004, low=0, high=0.01), 0.94, "0.9400 became 0.9360"),
    ],
)
def test_quality_in_a_few_words(drop: Interval | None, original: float | None, text: str) -> None:
    quality = Quality(outputs=(OUTPUT,), snr_db=31.24, drop=drop, original=original, changed=0.936)
    assert describe(quality) == text


def test_of_the_ranges_only_what_stands_out_is_listed_unless_all_are_asked_for() -> None:
    quiet = TensorRange(tensor="[quiet]", rule="mse", low=-1.5, high=1.25, clipped=0.0, unused=0.1, moved=0.01)
    blown = TensorRange(tensor="[blown]", rule="min-max", low=0.0, high=100.0, clipped=0.0, unused=0.9, moved=0.3)
    found = dataclasses.replace(WRITTEN, ranges=(quiet, blown))
    lines = printed(found)
    at = next(index for index, line in enumerate(lines) if line.startswith("ranges of"))
    assert " ".join(line.strip() for line in lines[at : at + 2]) == (
        "ranges of 2 tensors (mse 1, min-max 1): at most 0 % of a tensor's values clipped, 90.0 % of its levels unused, "
        "moved 30.0 % from half of the samples to all"
    )
    rows = [line for line in lines if "│ [blown]" in line or "│ [quiet]" in line]
    assert [row.replace("│", " ").split() for row in rows] == [
        ["[blown]", "min-max", "0", "to", "100", "0", "%", "90.0", "%", "30.0", "%"]
    ]
    shown = "\n".join(printed(found, everything=True))
    assert "│ [blown] " in shown and "│ [quiet] " in shown
