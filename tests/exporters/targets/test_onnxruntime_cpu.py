"""Which INT8 is tried on which CPU."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgesmith.exporters.int8 import qdq
from edgesmith.exporters.int8.dialect import Dialect
from edgesmith.exporters.linting.lint import check
from edgesmith.exporters.linting.lint_onnxruntime import RULES, VNNI_RULES
from edgesmith.exporters.sessions import ort_session
from edgesmith.exporters.sessions.cpu import Cpu, this_cpu
from edgesmith.exporters.targets import onnxruntime_cpu
from edgesmith.exporters.targets.onnxruntime_cpu import OnnxRuntimeCpu
from edgesmith.exporters.targets.targets import TARGETS

from ..conftest import Network
from ..graphs import ASYMMETRIC, S8, U8, calibrate, graph, node
from ..linting.lint_graphs import microsoft


@pytest.mark.parametrize(
    ("machine", "flags", "cpu"),
    [
        ("x86_64", "fpu avx2 avx512f avx512_vnni", "x86-vnni"),
        ("x86_64", "fpu avx2 avx_vnni", "x86-vnni"),
        ("AMD64", "fpu avx2 avx512f", "x86"),
        ("x86_64", "fpu avx2", "x86"),
        ("aarch64", "fp asimd", "arm"),
        ("arm64", "fp asimd asimddp", "arm"),
        ("riscv64", "", "other"),
    ],
)
def test_what_a_cpu_says_of_itself(machine: str, flags: str, cpu: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    assert this_cpu(machine, tmp_path / "cpuinfo") == cpu


def test_an_unknown_x86_cpu_is_taken_to_saturate(tmp_path: Path) -> None:
    assert this_cpu("x86_64", tmp_path / "none") == "x86"
    assert this_cpu("arm64", tmp_path / "none") == "arm"


@pytest.mark.parametrize(
    ("cpu", "names", "bits", "rule"),
    [
        ("x86-vnni", ["u8", "u8-asymmetric", "dynamic"], 8, "signed-activations"),
        ("x86", ["u8", "u8-asymmetric", "dynamic"], 7, "saturating-weights"),
        ("arm", ["s8-shifted", "s8-asymmetric", "u8", "u8-asymmetric", "dynamic"], 8, None),
        ("other", ["u8", "u8-asymmetric", "s8", "dynamic"], 8, None),
    ],
)
def test_dialects_and_rules_of_a_cpu(
    cpu: Cpu, names: list[str], bits: int, rule: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_cpu, "this_cpu", lambda: cpu)
    for target in (OnnxRuntimeCpu(), OnnxRuntimeCpu(name="other", cpu=cpu)):
        assert [dialect.name for dialect in target.dialects()] == names
        assert {dialect.weight_bits for dialect in target.dialects()} == {bits}
        assert {*target.rules()} - {*RULES} == ({rule} if rule else set())
        assert target.unmeasurable() is None


@pytest.mark.parametrize(
    ("here", "cpu", "reason"),
    [
        ("x86-vnni", "x86", "this CPU has VNNI; how it saturates without is emulated, how fast it is cannot be told"),
        ("arm", "x86", "this CPU is not x86-64"),
        ("x86", "arm", "this CPU is not Arm"),
    ],
)
def test_another_cpu_cannot_be_timed(here: Cpu, cpu: Cpu, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_cpu, "this_cpu", lambda: here)
    assert OnnxRuntimeCpu(name="another", cpu=cpu).unmeasurable() == reason


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


def test_another_device_is_judged_without_this_cpus_saturation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.full((64, 64), 0.127, np.float32)
    model = graph([node("MatMul", "x w", "y")], {"w": weight}, {"x": ["n", 64]}, {"y": ["n", 64]})
    feed = {"x": np.full((4, 64), 1.0, np.float32)}
    onnx.save(qdq.write_qdq(model, calibrate(model, feed), S8), tmp_path / "model.onnx")
    monkeypatch.setattr(ort_session, "this_cpu", lambda: "x86")
    session = TARGETS["tensorrt"].stand_in(tmp_path / "model.onnx", 1)
    np.testing.assert_allclose(session.run(feed)["y"], feed["x"] @ weight, rtol=0.02)
