"""Which INT8 is tried on which CPU."""

import platform
from pathlib import Path

import onnx
import pytest

from edgesmith.exporters import qdq
from edgesmith.exporters.dialect import Dialect
from edgesmith.exporters.lint import check
from edgesmith.exporters.lint_onnxruntime import RULES, VNNI_RULES
from edgesmith.exporters.onnxruntime_cpu import OnnxRuntimeCpu, weight_bits

from .conftest import Network
from .graphs import ASYMMETRIC, U8
from .lint_graphs import microsoft


@pytest.mark.parametrize(
    ("machine", "flags", "bits"),
    [
        ("x86_64", "fpu avx2 avx512f avx512_vnni", 8),
        ("x86_64", "fpu avx2 avx_vnni", 8),
        ("AMD64", "fpu avx2 avx512f", 7),
        ("x86_64", "fpu avx2", 7),
        ("aarch64", "fp asimd", 8),
        ("arm64", "fp asimd asimddp", 8),
    ],
)
def test_seven_bits_where_products_would_saturate(machine: str, flags: str, bits: int, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    assert weight_bits(machine, tmp_path / "cpuinfo") == bits


def test_an_unknown_x86_cpu_is_taken_to_saturate(tmp_path: Path) -> None:
    assert weight_bits("x86_64", tmp_path / "none") == 7
    assert weight_bits("arm64", tmp_path / "none") == 8


@pytest.mark.parametrize(
    ("machine", "names"),
    [("x86_64", ["u8", "u8-asymmetric", "dynamic"]), ("aarch64", ["u8", "u8-asymmetric", "s8", "dynamic"])],
)
def test_dialects_of_a_machine(machine: str, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert [dialect.name for dialect in OnnxRuntimeCpu().dialects()] == names


@pytest.mark.parametrize(
    ("machine", "bits", "rule"),
    [
        ("x86_64", 8, "signed-activations"),
        ("x86_64", 7, "saturating-weights"),
        ("aarch64", 8, None),
    ],
)
def test_rules_of_a_machine(machine: str, bits: int, rule: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr("edgesmith.exporters.onnxruntime_cpu.weight_bits", lambda: bits)
    assert {*OnnxRuntimeCpu().rules()} - {*RULES} == ({rule} if rule else set())


def test_lint_says_what_the_runtime_says(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"nothing of the kind")
    (finding,) = OnnxRuntimeCpu().lint(path)
    assert finding.text == (
        f"{path}: not an ONNX file, or truncated; export it again; nothing in it was checked [unreadable]"
    )
    onnx.save(microsoft("NoSuchOperator", "x"), path)
    (finding,) = OnnxRuntimeCpu().lint(path)
    assert (finding.rule, finding.severity) == ("load", "refused")
    assert finding.problem.startswith(f"{path}: ONNX Runtime cannot load it: ")


@pytest.mark.parametrize("dialect", [U8, ASYMMETRIC], ids=lambda dialect: dialect.name)
def test_its_own_dialects_are_clean(network: Network, dialect: Dialect) -> None:
    assert check(qdq.write_qdq(network.model, network.params, dialect), VNNI_RULES) == ()
    assert check(network.model, VNNI_RULES) == ()
