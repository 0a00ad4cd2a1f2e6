"""What devices measured, as a table of device x model for the HTML report."""

from collections.abc import Mapping

from ..report.report import Report
from . import device_table
from .device_result import DeviceModel, DeviceResult


def models(results: Mapping[str, DeviceResult]) -> list[str]:
    """The columns of the devices' table."""
    return list(dict.fromkeys(device_table.model_text(model) for found in results.values() for model in found.models))


def rows(report: Report, results: Mapping[str, DeviceResult]) -> list[tuple[str, str, list[tuple[str, list[str]]]]]:
    """(device, what it is, [(model, lines) ...]) in the order of `models`."""
    columns, found = models(results), []
    for name, result in results.items():
        own = {device_table.model_text(model): model for model in result.models}
        cells = [
            (each, _lines(report, result, own[each]) if each in own else ["not in its bundle"]) for each in columns
        ]
        found.append((device_table.plain(name), device_table.device_text(result), cells))
    return found


def _lines(report: Report, result: DeviceResult, model: DeviceModel) -> list[str]:
    ours = next((each.digest for each in report.artifacts if each.target == model.target), "")
    old = ["of an earlier file than this report's; measure again"] if model.digest and model.digest != ours else []
    if not model.measured:
        return [*old, f"not measured: {device_table.plain(model.reason)}"]
    lines = device_table.accuracy_text(result, model).splitlines()
    for one in model.latency:
        times, change = device_table.speed_text(one).splitlines()
        lines += [f"batch {one.batch}: {times}", change]
    return [*old, *lines]
