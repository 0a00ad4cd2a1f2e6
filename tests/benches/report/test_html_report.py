"""The HTML report: one file, escaped, well formed, with charts whose lengths are the numbers."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgesmith.benches.device import device_page
from edgesmith.benches.device.device_result import Devices
from edgesmith.benches.report.html_report import distribution, limit_row, render_html, rewrite, stage_rows
from edgesmith.benches.report.report import Percentiles, Report, to_json
from tests.benches.device.test_device_table import NANO, PI
from tests.benches.sample_report import make_report

EVIL = "<script>alert('1')</script>&\"x"
VOID = {"meta", "rect", "br"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that what is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += f"{data} "


def read(report: Report) -> Reader:
    reader = Reader()
    reader.feed(render_html(report))
    assert reader.open == []
    return reader


def evil_report() -> Report:
    """Every string that a user or a machine decides is hostile."""
    report = make_report(task=EVIL)
    stages = tuple(dataclasses.replace(stage, id=EVIL, notes=(EVIL,)) for stage in report.stages)
    artifacts = tuple(
        dataclasses.replace(
            file,
            path=EVIL,
            target=EVIL,
            dialect=EVIL,
            reason=EVIL,
            engine=file.engine and dataclasses.replace(file.engine, path=EVIL, proves=EVIL),
            device_command=EVIL,
            device_note=EVIL,
            layers=tuple(dataclasses.replace(layer, node=EVIL, operator=EVIL, why=EVIL) for layer in file.layers),
            ranges=tuple(dataclasses.replace(each, tensor=EVIL, rule=EVIL) for each in file.ranges),
        )
        for file in report.artifacts
    )
    sides = {
        name: dataclasses.replace(getattr(report, name), metrics={EVIL: getattr(report, name).metrics["accuracy"]})
        for name in ("original", "final")
    }
    return dataclasses.replace(
        report,
        target=EVIL,
        stages=stages,
        artifacts=artifacts,
        main_metric=EVIL,
        guilty_stage=EVIL,
        limits=tuple(dataclasses.replace(limit, note=EVIL) for limit in report.limits),
        environment={"cpu": EVIL, EVIL: [EVIL]},
        unmeasured_reason=EVIL,
        **sides,
    )


def test_every_user_string_is_escaped_and_shown() -> None:
    reader = read(evil_report())
    assert "script" not in {tag for tag, _ in reader.tags}
    assert reader.text.count(EVIL) >= 20


def test_one_file_without_network_or_script() -> None:
    page = render_html(make_report())
    assert not re.findall(r"https?:|//|@import|url\(|<script|<link|<img|src=|href=", page)


def test_verdict_and_change_stand_in_the_text() -> None:
    text = " ".join(read(make_report()).text.split())
    assert "unproven no limit is missed, but 1 of 6 limits (drop) is not proven at 95 % confidence." in text
    assert "-0.28 points (at most 1.08 lost at 95 %)" in text
    assert "3.10x faster (2.88 to 3.29)" in text
    assert "tensorrt s8-symmetric (int8)" in text
    assert "no: no CUDA device" in text


def test_ledger_bars_are_as_long_as_their_numbers() -> None:
    original, prune, distill, quantize = stage_rows(make_report())
    assert [bar.width for _, bar in original.costs] == [100, 100, 100]
    assert [bar.width for _, bar in quantize.costs] == pytest.approx(
        [100 * 0.131 / 0.412, 100 * 1.02 / 4.18, 12.19], abs=0.01
    )
    assert (prune.accuracy.start, original.accuracy.start) == pytest.approx((0, 97))
    assert [row.guilty for row in (original, prune, distill, quantize)] == [False, True, True, False]


def test_an_interval_is_drawn_on_its_side_of_the_limit() -> None:
    report = make_report()
    rows = {result.name: limit_row(report, result) for result in report.limits}
    speedup, latency, drop = rows["speedup"], rows["latency_ms"], rows["drop"]
    assert speedup.interval is not None
    assert latency.interval is not None
    assert drop.interval is not None
    assert speedup.interval.start > speedup.limit == speedup.kept_start
    assert latency.interval.start + latency.interval.width < latency.limit == latency.kept_width
    assert drop.interval.start < drop.limit < drop.interval.start + drop.interval.width
    assert drop.interval.start < drop.estimate < drop.limit


def test_layers_are_listed_with_what_became_of_them() -> None:
    page = render_html(make_report())
    assert "<summary>onnxruntime-cpu: 1 of 2 layers in INT8</summary>" in page
    assert page.count("<details>") == 1  # the other file has none
    assert "conv&lt;1&gt;" in page and "31.2 dB" in page
    row = page[page.index('<th role="rowheader" scope="row">stem') :]
    row = row[: row.index("</tr>")]
    assert (
        '<td role="cell" data-label="float">60 us</td>' in row
        and '<td role="cell" data-label="INT8">396 us</td>' in row
    )
    assert "float: slower in INT8" in row


def test_a_run_without_a_runtime_says_so_and_draws_nothing() -> None:
    report = make_report()
    limits = tuple(
        dataclasses.replace(
            limit, measured=None, low=None, high=None, status="unproven", note="not measured: no CUDA device"
        )
        for limit in report.limits
    )
    stages = tuple(dataclasses.replace(stage, latency_ms=None) for stage in report.stages)
    bare = dataclasses.replace(
        report, limits=limits, stages=stages, latency=(), speedup=None, unmeasured_reason="no CUDA device"
    )
    text = " ".join(read(bare).text.split())
    assert "Latency Not measured: no CUDA device." in text
    assert text.count("not measured: no CUDA device") == 1 + len(limits)


def test_every_quantile_that_the_report_holds_is_drawn_and_said() -> None:
    report = make_report()
    one, thirtytwo = (distribution(report, index) for index in (0, 1))
    assert (one.batch, one.change) == (1, "3.10x faster (2.88 to 3.29)")
    assert one.rows == (
        ("p50", "0.412 ms", "0.133 ms"),
        ("p90", "0.453 ms", "0.146 ms"),
        ("p99", "0.618 ms", "0.199 ms"),
    )
    assert [piece.label for piece in one.original] == ["p50", "p90", "p99"]
    assert [piece.width for piece in one.original] == pytest.approx([100 / 1.5, 10 / 1.5, 40 / 1.5])
    assert sum(piece.width for piece in thirtytwo.final) == pytest.approx(100 / 3.6)

    few = Percentiles(p50=1.0, p90=2.0, p99=3.0, p999=4.0)
    pair = dataclasses.replace(report.latency[0], original=few, final=few)
    assert distribution(dataclasses.replace(report, latency=(pair,)), 0).rows[-1] == ("p99.9", "4.00 ms", "4.00 ms")

    shares = ((0.0, 0.8), (0.05, 0.9), (0.5, 1.0), (0.9, 2.0), (0.99, 3.0), (0.999, 4.0), (1.0, 50.0))
    many = dataclasses.replace(few, calls=9000, quantiles=shares)
    pair = dataclasses.replace(report.latency[0], original=many, final=many)
    found = distribution(dataclasses.replace(report, latency=(pair,)), 0)
    assert [name for name, _, _ in found.rows] == ["fastest", "p5", "p50", "p90", "p99", "p99.9", "slowest"]
    assert [(piece.label, piece.start, piece.width) for piece in found.original] == [
        ("p50", 0.0, 25.0), ("p90", 25.0, 25.0), ("p99", 50.0, 25.0), ("p99.9", 75.0, 25.0),
    ], "one call that took long does not squeeze the rest"  # fmt: skip


def test_devices_stand_in_a_table_of_device_and_model() -> None:
    report = make_report()
    ours = report.artifacts[0].digest
    judged = dataclasses.replace(PI.models[0], target="onnxruntime-cpu", digest=ours)
    stale = dataclasses.replace(judged, digest="0" * 64)
    found = {"ssh://pi": dataclasses.replace(PI, models=(judged, PI.models[1]))}
    found["ssh://nano"] = dataclasses.replace(NANO, models=(stale,))
    assert device_page.models(found) == ["onnxruntime-cpu, s8-shifted", "tensorrt, s8-shifted"]
    (pi, said, cells), (_, nano, others) = device_page.rows(report, found)
    assert (pi, said[:10], nano[:17]) == ("ssh://pi", "Cortex-A76", "Cortex-A57?[2J, 4")
    assert cells == [
        (
            "onnxruntime-cpu, s8-shifted",
            [
                "accuracy 0.8672",
                "lost 0.0078 (-0.0100 to 0.0200)",
                "99.2 % answer as in the run",
                "at most 0.0123 from the run's outputs",
                "batch 1: 0.500 ms, original 2.00 ms",
                "4.00x faster (3.80 to 4.20)",
            ],
        ),
        ("tensorrt, s8-shifted", ["not measured: no CUDA device"]),
    ]
    assert others[0][1][0] == "of an earlier file than this report's; measure again"
    assert others[1] == ("tensorrt, s8-shifted", ["not in its bundle"])


def test_what_was_not_measured_is_listed_with_its_reason() -> None:
    text = " ".join(read(make_report()).text.split())
    assert (
        "What was not measured throughput on onnxruntime-cpu: not asked for: [measure] of the recipe names no concurrency "
        "tensorrt: no CUDA device what the mean hides: no audit yet: edgesmith audit, with the "
        "run's directory other devices: none yet: edgesmith bench, with the run's directory and --on"
    ) in text
    final = dataclasses.replace(make_report().final, arena_reason="1.24 does not say")
    silent = read(dataclasses.replace(make_report(), final=final)).text
    assert "names no concurrency what the arena holds on onnxruntime-cpu: 1.24 does not say tensorrt: " in " ".join(
        silent.split()
    )
    found = Devices(results={}, unreadable=("devices/x.json: not JSON",))
    assert "a device: devices/x.json: not JSON" in render_html(make_report(), None, found)
    assert "edgesmith compress recipe.toml --out ../again --threads 1 --seed 0</code>" in render_html(make_report())


def test_a_run_directory_gets_its_page_anew_with_what_devices_measured(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(to_json(make_report()))
    (tmp_path / "devices").mkdir()
    tree = dataclasses.asdict(PI)
    (tmp_path / "devices/pi.json").write_text(json.dumps({"url": "ssh://pi", **tree}))
    (tmp_path / "devices/no.json").write_text("{")
    (tmp_path / "devices/text.json").write_bytes(b"\xff")
    rewrite(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert ">ssh://pi<br>" in page
    assert "a device: devices/no.json: not a result of schema" in page
    assert "a device: devices/text.json: cannot be read: " in page


def test_ranges_are_listed_beside_the_layers() -> None:
    text = " ".join(read(make_report()).text.split())
    assert (
        "ranges of 2 tensors (mse 1, entropy 1): at most 0.0310 % of a tensor's values clipped, 61.0 % of its levels "
        "unused, moved 2.40 % from half of the samples to all."
    ) in text
    assert "relu<1> mse 0 to 5.25 0.0310 % 61.0 % 2.40 %" in text
    assert "sum entropy -2.50 to 2.00 0 % 2.00 %" in text
