"""Several devices on the terminal: one table of device x model."""

from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from ..report import words
from ..report.report import SpeedUp
from ..report.terminal import add_row, new_table
from .device_result import BatchTimes, DeviceModel, DeviceResult

_VERSIONS = ("python", "numpy", "onnxruntime", "openvino", "tensorrt")


def print_devices(found: Mapping[str, DeviceResult], console: Console) -> None:
    """A row for every model that was measured on a device; below it the devices, and what was not measured and why."""
    batches = list(dict.fromkeys(one.batch for result in found.values() for m in result.models for one in m.latency))
    table = new_table("On the device", "device", "model", "accuracy", *(f"batch {batch}" for batch in batches))
    for column in table.columns:
        column.overflow, column.justify = "fold", "left"
    for name, result in found.items():
        for model in result.models:
            if model.measured:
                add_row(table, name, model_text(model), accuracy_text(result, model), *_speeds(model, batches))
        table.add_section()
    if table.row_count:
        console.print(table)
    for name, result in found.items():
        console.print(Text(f"{name}: {device_text(result)}"), soft_wrap=True)
        for model in result.models:
            if not model.measured:
                console.print(Text(f"{name}: {model_text(model)}: not measured: {plain(model.reason)}"), soft_wrap=True)


def model_text(model: DeviceModel) -> str:
    """Target and dialect."""
    return f"{plain(model.target)}, {plain(model.dialect)}"


def accuracy_text(result: DeviceResult, model: DeviceModel) -> str:
    """The metric there and what is lost against the original there; else how often both answer the same."""
    lines = []
    if model.accuracy is not None:
        lost = model.accuracy.drop
        lines.append(f"{plain(result.metric)} {words.significant(model.accuracy.final.value, 4)}")
        lines.append(f"lost {lost.value:.4f} ({lost.low:.4f} to {lost.high:.4f})")
    if model.agreement.get("final") is not None:
        lines.append(f"{words.share(model.agreement['final'])} answer as in the run")
    outputs = [each for each in model.parity if each.side == "final"]
    if outputs:
        lines.append(f"at most {words.significant(max(each.max_abs for each in outputs))} from the run's outputs")
    return "\n".join(lines)


def _speeds(model: DeviceModel, batches: list[int]) -> list[str]:
    found = {each.batch: speed_text(each) for each in model.latency}
    return [found.get(batch, words.NOT_MEASURED) for batch in batches]


def speed_text(one: BatchTimes) -> str:
    """Both medians, and the paired speed-up on a line of its own."""
    up = one.speedup
    speed = SpeedUp(batch=one.batch, median=up.value, low=up.low, high=up.high, noise_floor=up.noise_floor)
    times = f"{words.milliseconds(one.final.p50)}, original {words.milliseconds(one.original.p50)}"
    return f"{times}\n{words.speed_change(speed)}"


def device_text(result: DeviceResult) -> str:
    """What the device is, and how it was measured."""
    device = result.device
    said = [str(device.get("cpu", "")), f"{device.get('cores')} core(s)", str(device.get("os", ""))]
    said += [f"GPU of compute capability {device['gpu']}"] if device.get("gpu") else []
    said += [f"{name} {device[name]}" for name in _VERSIONS if name in device]
    return plain(", ".join(said) + f"; {result.samples} samples, {result.settings.get('threads')} thread(s)")


def plain(text: str) -> str:
    """A device's own words, without what a terminal would take for a command."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)
