"""OpenVINO: what it says it runs in INT8, exact refusals, and a file that is not there for it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgesmith.core.errors import ArtifactError, DataError, MeasurementError
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.int8 import qdq
from edgesmith.exporters.sessions.openvino_session import OpenVinoSession
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession
from edgesmith.exporters.targets.openvino import OpenVino

from ..conftest import Network
from ..graphs import graph, node, random
from ..linting.lint_graphs import microsoft

INT8 = ("u8", "i8")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    model = graph(
        [node("MatMul", "x w", "h"), node("Add", "h z", "sum")],
        {"w": random(4, 3)},
        {"x": ["batch", 4], "z": ["batch", 3]},
        {"sum": None},
    )
    onnx_file.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def feed(batch: int = 2) -> dict[str, np.ndarray]:
    return {"x": random(batch, 4, seed=1), "z": random(batch, 3, seed=2)}


@pytest.mark.parametrize("dialect", OpenVino().dialects(), ids=lambda dialect: dialect.name)
def test_its_execution_graph_is_in_int8(dialect: object, network: Network, tmp_path: Path) -> None:
    """Every convolution and product; and the numbers are those of ONNX Runtime."""
    path = tmp_path / "model.onnx"
    artifact = OpenVino().write(network.model, network.params, dialect, path)  # type: ignore[arg-type]
    session = OpenVinoSession(artifact.path)
    planned = sum(node.op_type in ("Conv", "Gemm", "MatMul") for node in network.model.graph.node)
    run = [
        kernel.precision
        for kernel in session.kernels()
        if kernel.operator in ("Convolution", "FullyConnected", "MatMul")
    ]
    assert len(run) == planned and set(run) <= set(INT8)
    (here,), (there,) = session.run(network.feed).values(), OnnxRuntimeSession(path).run(network.feed).values()
    assert ((here - there) ** 2).sum() / (there**2).sum() < 10 ** (-2.5), "as close to each other as to float"
    assert OpenVino().lint(path) == ()


def test_float_stays_float32(network: Network) -> None:
    """Left to itself OpenVINO computes in BF16 where the CPU has it."""
    session = OpenVinoSession(network.path)
    kinds = {kernel.precision for kernel in session.kernels() if kernel.operator in ("Convolution", "FullyConnected")}
    assert kinds == {"f32"}
    (here,), (there,) = session.run(network.feed).values(), OnnxRuntimeSession(network.path).run(network.feed).values()
    np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-4 * np.abs(there).max())


def test_what_runs_in_float_between_pairs_is_found(vgg: Network, tmp_path: Path) -> None:
    """It has no INT8 kernel for weights with zero points."""
    model = qdq.write_qdq(vgg.model, vgg.params, OpenVino().dialects()[0])
    changed = [t for t in model.graph.initializer if t.name.endswith("weight_zero_point")]
    for tensor in changed:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.int8(3), tensor.name))
    onnx_file.save(model, tmp_path / "model.onnx")
    found = OpenVino().lint(tmp_path / "model.onnx")
    kinds = [(finding.operator, finding.severity) for finding in found]
    assert kinds[:2] == [("Conv", "slow")] * 2
    assert kinds[2:] == [("Gemm", "slow")] * 2
    assert found[0].text == (
        "Conv 'node_conv2d': stands between pairs, and OpenVINO runs it in f32 (Convolution); keep it in float: its pairs "
        "cost time [runs-in-float]"
    )


def test_bound_runs_give_what_run_gives(path: Path) -> None:
    session = OpenVinoSession(path)
    given = feed()
    run = session.bind(given)
    run()
    np.testing.assert_allclose(session.run(given)["sum"], given["x"] @ random(4, 3) + given["z"], rtol=1e-5)
    with pytest.raises(DataError, match=r"model\.onnx: input 'z' must be float32 \(\?, 3\), got float64 \(2, 3\)$"):
        session.bind({**given, "z": given["z"].astype(float)})


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_that_fails(threads: int, tmp_path: Path) -> None:
    """With one thread OpenVINO's own `infer` says nothing of it, and leaves the result of the run before."""
    model = graph([node("Concat", "x z", "y", axis=1)], {}, {"x": ["n", 4], "z": ["m", 4]}, {"y": None})
    onnx_file.save(model, tmp_path / "model.onnx")
    session = OpenVinoSession(tmp_path / "model.onnx", threads)
    bad = {"x": random(2, 4), "z": random(3, 4)}
    assert session.run({"x": random(2, 4), "z": random(2, 4)})["y"].shape == (2, 8)
    for run in (session.run, session.bind):
        with pytest.raises(MeasurementError, match=r"model\.onnx: OpenVINO cannot run it: \S"):
            run(bad)


def test_a_file_that_it_cannot_load(tmp_path: Path) -> None:
    onnx.save(microsoft("NoSuchOperator", "x"), tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match=r"model\.onnx: OpenVINO cannot load it: \S"):
        OpenVinoSession(tmp_path / "model.onnx")
    (finding,) = OpenVino().lint(tmp_path / "model.onnx")
    assert (finding.rule, finding.severity) == ("load", "refused")


def test_importing_it_leaves_nothing_in_the_home_folder(path: Path, tmp_path: Path) -> None:
    """Left to itself the package keeps an identity and counts there, and sends them."""
    home = tmp_path / "home"
    home.mkdir()
    script = (
        "import pathlib, sys; from edgesmith.exporters.sessions.openvino_session import OpenVinoSession\n"
        "OpenVinoSession(pathlib.Path(sys.argv[1])).close(); print('openvino_telemetry' in sys.modules)"
    )
    environment = {**os.environ, "HOME": str(home), "CI": ""}
    done = subprocess.run([sys.executable, "-c", script, str(path)], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr
    assert list(home.iterdir()) == []


def test_without_openvino(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    reason = 'openvino is not installed: pip install "edgesmith[openvino]"'
    assert OpenVino().unmeasurable() == reason
    with pytest.raises(MeasurementError) as raised:
        OpenVino().open(path, 1)
    assert str(raised.value) == f"{path}: not measured: {reason}"
    assert isinstance(OpenVino().stand_in(path, 1), OnnxRuntimeSession)
    assert OpenVino().lint(path) == ()
