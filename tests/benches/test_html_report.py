"""The HTML report: one file, escaped, well formed, with charts whose lengths are the numbers."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from edgesmith.benches.html_report import limit_row, render_html, stage_rows
from edgesmith.benches.report import Report
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
    row = page[page.index('<th scope="row">stem') :]
    row = row[: row.index("</tr>")]
    assert '<td data-label="float">60 us</td>' in row and '<td data-label="INT8">396 us</td>' in row
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


def test_ranges_are_listed_beside_the_layers() -> None:
    text = " ".join(read(make_report()).text.split())
    assert (
        "ranges of 2 tensors (mse 1, entropy 1): at most 0.0310 % of a tensor's values clipped, 61.0 % of its levels "
        "unused, moved 2.40 % from half of the samples to all."
    ) in text
    assert "relu<1> mse 0 to 5.25 0.0310 % 61.0 % 2.40 %" in text
    assert "sum entropy -2.50 to 2.00 0 % 2.00 %" in text
