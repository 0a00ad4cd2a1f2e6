"""report.json: round trip, schema, no NaN; and the page docs/report-schema.md names every field."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from edgesmith.benches.report.report import batch_latency, from_json, to_json, worst_speedup
from edgesmith.benches.timing.latency import Latency, PairedLatency
from edgesmith.core.errors import ArtifactError, ContractError
from edgesmith.core.values import Interval
from tests.benches.sample_report import make_report

DOCUMENT = Path(__file__).parents[3] / "docs" / "report-schema.md"


def test_round_trip_keeps_every_digit() -> None:
    report = make_report(task='a "quoted" <task> — ü')
    assert from_json(to_json(report)) == report
    assert to_json(from_json(to_json(report))) == to_json(report)


def test_what_was_not_measured_is_null_and_comes_back() -> None:
    report = make_report()
    side = dataclasses.replace(report.original, latency_ms=None, peak_memory_bytes=None, macs=None, parameters=None)
    bare = dataclasses.replace(report, original=side, speedup=None, latency=(), guilty_stage=None)
    assert json.loads(to_json(bare))["original"]["latency_ms"] is None
    assert from_json(to_json(bare)) == bare


def test_the_promised_keys_are_there() -> None:
    tree = json.loads(to_json(make_report()))
    assert next(iter(tree)) == "schema"
    assert tree["schema"] == "edgesmith.report/1"
    assert (tree["target"], tree["verdict"]) == ("onnxruntime-cpu", "unproven")
    assert set(tree["limits"][0]) >= {"name", "limit", "measured", "low", "high", "status", "note"}
    for side in ("original", "final"):
        assert set(tree[side]) == {
            "metrics",
            "accuracy",
            "latency_ms",
            "peak_memory_bytes",
            "held_memory_bytes",
            "start",
            "joules",
            "arena",
            "arena_reason",
            "device_memory_bytes",
            "device_reason",
            "file_bytes",
            "macs",
            "parameters",
        }
        assert set(tree[side]["latency_ms"]) == {"p50", "p90", "p99", "p999", "calls", "quantiles"}
        assert set(tree[side]["metrics"]["accuracy"]) >= {"value", "higher_is_better", "low", "high"}
    assert set(tree["speedup"]) >= {"median", "low", "high", "noise_floor"}
    assert set(tree["stages"][0]) >= {"id", "name", "seconds", "accuracy", "latency_ms", "macs", "file_bytes", "digest"}
    assert set(tree["artifacts"][0]) >= {"target", "dialect", "digest", "measured", "reason"}
    assert tree["guilty_stage"] == "prune + distill"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_has_no_word_for_is_refused_by_its_place(bad: float) -> None:
    report = make_report()
    stage = dataclasses.replace(report.stages[2], accuracy=bad)
    broken = dataclasses.replace(report, stages=(*report.stages[:2], stage))
    with pytest.raises(
        ContractError, match=rf"^report\.stages\.2\.accuracy: {bad} cannot stand in a report; leave out"
    ):
        to_json(broken)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda tree: tree.update(schema="edgesmith.report/9"),
            "is 'edgesmith.report/9', this version reads 'edgesmith.rep",
        ),
        (lambda tree: tree.pop("schema"), "r.json: schema is None, this version reads 'edgesmith.report/1'"),
        (lambda tree: tree["final"].pop("file_bytes"), "r.json: final.file_bytes: "),
        (lambda tree: tree.update(verdict="perhaps"), "r.json: verdict: Input should be 'pass', 'fail' or 'unproven'"),
        (
            lambda tree: tree["speedup"].update(low=math.nan),
            "r.json: report.speedup.low: nan is no number; the report was changed after it was written",
        ),
        (lambda tree: tree["speedup"].update(median="fast"), "r.json: speedup.median: Input should be a valid number"),
    ],
)
def test_a_foreign_or_damaged_report_is_refused(change: Any, text: str) -> None:
    tree = json.loads(to_json(make_report()))
    change(tree)
    with pytest.raises(ArtifactError, match=re.escape(text)):
        from_json(json.dumps(tree), source="r.json")


def test_text_that_is_not_json_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"^r.json: not JSON: "):
        from_json('{"schema": ', source="r.json")


def test_fields_added_later_are_passed_over() -> None:
    tree = json.loads(to_json(make_report())) | {"carbon": 3}
    assert from_json(json.dumps(tree)) == make_report()


def _latency(p50: float) -> Latency:
    return Latency(p50=p50, p90=2 * p50, p99=3 * p50, low=p50, high=p50)


def test_paired_latency_becomes_a_line_and_the_worst_is_found() -> None:
    def paired(batch: int, up: float) -> PairedLatency:
        return PairedLatency(
            batch=batch,
            threads=2,
            restarts=5,
            latency=(_latency(6.0), _latency(6.0 / up)),
            speedup=(Interval(value=up, low=up - 0.1, high=up + 0.1),),
            noise_floor=0.01,
        )

    lines = tuple(batch_latency(paired(batch, up)) for batch, up in ((1, 3.0), (8, 2.0), (32, 4.0)))
    assert (lines[0].original.p99, lines[0].final.p50) == (18.0, 2.0)
    worst = worst_speedup(lines)
    assert worst is not None
    assert (worst.batch, worst.median, worst.low, worst.noise_floor) == (8, 2.0, 1.9, 0.01)
    assert worst_speedup(()) is None


def test_the_page_documents_every_field() -> None:
    text = DOCUMENT.read_text()

    def names(tree: Any) -> set[str]:
        if isinstance(tree, list):
            return set().union(*map(names, tree))
        return set(tree).union(*map(names, tree.values())) if isinstance(tree, dict) else set()

    tree = json.loads(to_json(make_report()))
    for side in ("original", "final"):
        tree[side]["metrics"] = list(tree[side]["metrics"].values())  # the names of metrics are no fields
    assert {name for name in names(tree) if f"`{name}`" not in text} == set()
