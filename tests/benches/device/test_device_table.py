"""What comes back from devices: read as a stranger's file, shown as one table of device x model."""

import dataclasses
import io
import json
import math
from typing import Any

import pytest
from rich.console import Console

from edgesmith.benches.device.device_result import (
    Accuracy,
    BatchTimes,
    DeviceModel,
    DeviceResult,
    PairedSpeed,
    Parity,
    Times,
    from_json,
)
from edgesmith.benches.device.device_table import print_devices
from edgesmith.core.errors import ArtifactError
from edgesmith.core.values import Interval


def times(p50: float) -> Times:
    return Times(p50=p50, p90=2 * p50, p99=3 * p50, low=p50, high=p50)


def measured(target: str, final_ms: float, low: float, high: float) -> DeviceModel:
    speed = PairedSpeed(value=2 / final_ms, low=low, high=high, noise_floor=0.01)
    return DeviceModel(
        target=target,
        dialect="s8-shifted",
        precision="int8",
        judged=True,
        file_bytes=1000,
        measured=True,
        reason="",
        accuracy=Accuracy(
            original=Interval(value=0.875, low=0.8, high=0.9),
            final=Interval(value=0.8671875, low=0.8, high=0.9),
            drop=Interval(value=0.0078125, low=-0.01, high=0.02),
            reference={"original": 0.875, "final": 0.875},
        ),
        agreement={"original": 1.0, "final": 0.992},
        parity=(Parity(side="final", output="logits", max_abs=0.0123, snr_db=41.5),),
        latency=(BatchTimes(batch=1, threads=1, original=times(2.0), final=times(final_ms), speedup=speed),),
    )


def result(*models: DeviceModel, cpu: str) -> DeviceResult:
    return DeviceResult(
        bundle="0" * 64,
        task="small",
        metric="accuracy",
        higher_is_better=True,
        samples=256,
        confidence=0.95,
        settings={"threads": 1},
        device={"cpu": cpu, "cores": 4, "os": "Linux", "python": "3.8.10", "numpy": "1.24.4", "gpu": None},
        models=models,
    )


NOT_THERE = dataclasses.replace(
    measured("tensorrt", 1.0, 1.0, 1.0), judged=False, measured=False, reason="no CUDA device", latency=(), parity=()
)
PI = result(measured("onnxruntime-arm", 0.5, 3.8, 4.2), NOT_THERE, cpu="Cortex-A76")
NANO = result(measured("onnxruntime-arm", 2.1, 0.9, 1.05), cpu="Cortex-A57\x1b[2J")


def test_a_table_of_device_and_model() -> None:
    out = io.StringIO()
    print_devices({"ssh://pi": PI, "ssh://nano": NANO}, Console(file=out, width=150))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines[0] == "On the device"
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert rows == [
        ["ssh://pi", "onnxruntime-arm, s8-shifted", "accuracy 0.8672", "0.500 ms, original 2.00 ms"],
        ["", "", "lost 0.0078 (-0.0100 to 0.0200)", "4.00x faster (3.80 to 4.20)"],
        ["", "", "99.2 % answer as in the run", ""],
        ["", "", "at most 0.0123 from the run's outputs", ""],
        ["ssh://nano", "onnxruntime-arm, s8-shifted", "accuracy 0.8672", "2.10 ms, original 2.00 ms"],
        ["", "", "lost 0.0078 (-0.0100 to 0.0200)", "no difference that could be measured (0.90x to 1.05x)"],
        ["", "", "99.2 % answer as in the run", ""],
        ["", "", "at most 0.0123 from the run's outputs", ""],
    ]
    assert lines[-3:] == [
        "ssh://pi: Cortex-A76, 4 core(s), Linux, python 3.8.10, numpy 1.24.4; 256 samples, 1 thread(s)",
        "ssh://pi: tensorrt, s8-shifted: not measured: no CUDA device",
        # What a device says of itself is no command to the terminal.
        "ssh://nano: Cortex-A57?[2J, 4 core(s), Linux, python 3.8.10, numpy 1.24.4; 256 samples, 1 thread(s)",
    ]


def changed(**fields: Any) -> str:
    return json.dumps(dataclasses.asdict(PI) | fields)


def test_it_is_read_back() -> None:
    assert from_json(changed(), "x") == PI
    assert from_json(changed(later="field"), "x") == PI


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "x: not a result of schema 'edgesmith.device/1': : Input should be an object"),
        (
            changed(schema="edgesmith.device/2"),
            "x: not a result of schema 'edgesmith.device/1': schema: Input should be 'edgesmith.device/1'",
        ),
        (
            changed(samples="many"),
            "x: not a result of schema 'edgesmith.device/1': samples: Input should be a valid integer",
        ),
        (changed(confidence=math.nan), "x: a number in it is not finite"),
        (changed(models=[]), "x: names no judged model, or several"),
    ],
)
def test_what_is_no_result(text: str, said: str) -> None:
    with pytest.raises(ArtifactError) as refused:
        from_json(text, "x")
    assert str(refused.value) == said
