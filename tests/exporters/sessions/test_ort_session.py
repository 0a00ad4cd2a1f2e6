"""A file in ONNX Runtime: exact refusals, bound runs that give what `run` gives, threads that are honoured."""

import gc
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgesmith.core.errors import ArtifactError, DataError, MeasurementError, UsageError
from edgesmith.core.values import TensorSpec
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession

from ..conftest import Network
from ..graphs import graph, node, random


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two inputs, two outputs, one of which the second input alone decides."""
    model = graph(
        [node("MatMul", "x w", "h"), node("Add", "h z", "sum"), node("Neg", "z", "negative")],
        {"w": random(4, 3)}, {"x": ["batch", 4], "z": ["batch", 3]}, {"sum": None, "negative": None},
    )  # fmt: skip
    onnx_file.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def feed(batch: int = 2) -> dict[str, np.ndarray]:
    return {"x": random(batch, 4, seed=1), "z": random(batch, 3, seed=2)}


def test_runs_and_says_what_it_takes(path: Path) -> None:
    session = OnnxRuntimeSession(str(path))
    x, z = (TensorSpec(name=name, dtype="float32", shape=("batch", size)) for name, size in (("x", 4), ("z", 3)))
    assert session.inputs == (x, z)
    assert [(spec.name, spec.dtype, spec.shape[1]) for spec in session.outputs] == [
        ("sum", "float32", 3), ("negative", "float32", 3),
    ]  # fmt: skip
    for batch in (1, 5):
        given = feed(batch)
        outputs = session.run({**given, "unused": np.zeros(3)})
        assert list(outputs) == ["sum", "negative"]
        np.testing.assert_allclose(outputs["sum"], given["x"] @ random(4, 3) + given["z"], rtol=1e-5)
        np.testing.assert_array_equal(outputs["negative"], -given["z"])


def test_specs_are_those_of_the_file(network: Network) -> None:
    session = OnnxRuntimeSession(network.path)
    assert (session.inputs, session.outputs) == onnx_file.specs(onnx_file.load(network.path))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"x": None}, "input 'x' is missing; given: z"),
        ({"x": None, "z": None}, "input 'x' is missing; given: nothing"),
        ({"x": np.zeros((2, 4))}, "input 'x' must be float32 (batch, 4), got float64 (2, 4)"),
        ({"x": np.zeros((2, 4), np.int64)}, "input 'x' must be float32 (batch, 4), got int64 (2, 4)"),
        ({"x": np.zeros((2, 5), np.float32)}, "input 'x' must be float32 (batch, 4), got float32 (2, 5)"),
        ({"z": np.zeros((2, 3, 1), np.float32)}, "input 'z' must be float32 (batch, 3), got float32 (2, 3, 1)"),
        ({"z": np.zeros(3, np.float32)}, "input 'z' must be float32 (batch, 3), got float32 (3,)"),
        ({"x": np.zeros((2, 4), ">f4")}, "input 'x' must be float32 (batch, 4), got >f4 (2, 4)"),
    ],
)
@pytest.mark.parametrize("call", ["run", "bind"])
def test_wrong_feeds(path: Path, call: str, changed: dict[str, np.ndarray | None], text: str) -> None:
    given = {name: array for name, array in {**feed(), **changed}.items() if array is not None}
    with pytest.raises(DataError) as raised:
        getattr(OnnxRuntimeSession(path), call)(given)
    assert str(raised.value) == f"{path}: {text}"


def test_closed(path: Path) -> None:
    session = OnnxRuntimeSession(path)
    session.close()
    session.close()
    for call in (session.run, session.bind):
        with pytest.raises(ArtifactError) as raised:
            call(feed())
        assert str(raised.value) == f"{path}: the session is closed"
    assert [spec.name for spec in session.inputs] == ["x", "z"]


def test_files_it_cannot_load(path: Path) -> None:
    missing = path.with_name("none.onnx")
    with pytest.raises(ArtifactError) as raised:
        OnnxRuntimeSession(missing)
    assert str(raised.value).startswith(f"{missing}: ONNX Runtime cannot load it: ")
    assert "NO_SUCHFILE" in str(raised.value)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ArtifactError) as raised:
        OnnxRuntimeSession(path)
    text = str(raised.value)
    assert text.startswith(f"{path}: ONNX Runtime cannot load it: ") and "INVALID_PROTOBUF" in text
    assert "\n" not in text


@pytest.mark.parametrize("call", ["run", "bind"])
def test_a_graph_that_fails_on_a_batch(tmp_path: Path, call: str) -> None:
    """The input's batch axis is dynamic, but a constant inside says 2."""
    model = graph([node("Reshape", "x shape", "y")], {"shape": np.array([2, 4])}, {"x": ["n", 4]}, {"y": ["n", 4]})
    onnx_file.save(model, tmp_path / "model.onnx")
    session = OnnxRuntimeSession(tmp_path / "model.onnx")
    assert session.run({"x": random(2, 4)})["y"].shape == (2, 4)
    with pytest.raises(MeasurementError) as raised:
        session.run({"x": random(3, 4)}) if call == "run" else session.bind({"x": random(3, 4)})()
    assert str(raised.value).startswith(f"{tmp_path / 'model.onnx'}: ONNX Runtime cannot run it: ")


def bound(session: OnnxRuntimeSession, given: dict[str, np.ndarray], runs: int = 1) -> list[np.ndarray]:
    """Outputs of a bound run, through the binding it was given."""
    bindings = []
    inner = session._session

    class Recorder:
        def io_binding(self) -> object:
            bindings.append(inner.io_binding())
            return bindings[-1]

        def run_with_iobinding(self, binding: object) -> None:
            inner.run_with_iobinding(binding)

    session._session = Recorder()
    call = session.bind(given)
    session._session = inner
    del given
    gc.collect()
    for _ in range(runs):
        assert call() is None
    found: list[np.ndarray] = bindings[0].copy_outputs_to_cpu()
    return found


@pytest.mark.parametrize("batch", [1, 7])
def test_bound_runs_give_what_run_gives(network: Network, batch: int) -> None:
    session = OnnxRuntimeSession(network.path)
    given = {name: array[:batch] for name, array in network.feed.items()}
    (output,) = bound(session, given, runs=3)
    np.testing.assert_array_equal(output, next(iter(session.run(given).values())))


def test_bound_arrays_need_not_be_contiguous_or_kept(path: Path) -> None:
    session = OnnxRuntimeSession(path)
    wide = {"x": random(4, 6, seed=5).T[:, ::1], "z": random(6, 6)[:, ::2]}
    expected = session.run({name: np.ascontiguousarray(array) for name, array in wide.items()})
    outputs = bound(session, {name: array.copy(order="K") for name, array in wide.items()}, runs=2)
    np.testing.assert_array_equal(outputs[0], expected["sum"])
    np.testing.assert_array_equal(outputs[1], expected["negative"])
    np.testing.assert_array_equal(session.run(wide)["sum"], expected["sum"])


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_are_those_asked_for(digits: Network, threads: int) -> None:
    """The calling thread is one of them, so that `threads - 1` are started."""
    gc.collect()
    before = len(os.listdir("/proc/self/task"))
    session = OnnxRuntimeSession(digits.path, threads)
    assert len(os.listdir("/proc/self/task")) - before == threads - 1
    session.close()
    gc.collect()
    assert len(os.listdir("/proc/self/task")) == before


def test_all_common_types_have_numpys_name(tmp_path: Path) -> None:
    kinds = {"FLOAT": "float32", "DOUBLE": "float64", "FLOAT16": "float16", "INT64": "int64", "INT32": "int32"}
    kinds |= {"INT16": "int16", "INT8": "int8", "UINT8": "uint8", "BOOL": "bool"}
    model = graph([node("Identity", f"in_{kind}", f"out_{kind}") for kind in kinds], {}, {}, {})
    for kind in kinds:
        made = [
            onnx.helper.make_tensor_value_info(f"{side}_{kind}", getattr(onnx.TensorProto, kind), ["n"])
            for side in ("in", "out")
        ]
        model.graph.input.append(made[0])
        model.graph.output.append(made[1])
    onnx_file.save(model, tmp_path / "model.onnx")
    session = OnnxRuntimeSession(tmp_path / "model.onnx")
    assert [spec.dtype for spec in session.inputs] == list(kinds.values())
    given = {f"in_{kind}": np.array([1, 0, 1], name) for kind, name in kinds.items()}
    for (name, output), dtype in zip(session.run(given).items(), kinds.values(), strict=True):
        assert str(output.dtype) == dtype and name.startswith("out_")
        np.testing.assert_array_equal(output.astype(int), [1, 0, 1])


def test_devices(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    this = f"this ONNX Runtime {onnxruntime.__version__} cannot run on"
    with pytest.raises(UsageError, match=f"^{re.escape(this)} 'tpu'; known devices: cpu, cuda, tensorrt, openvino$"):
        OnnxRuntimeSession(path, device="tpu")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UsageError, match=f"^{re.escape(this)} 'cuda'; pip install onnxruntime-gpu$"):
        OnnxRuntimeSession(path, device="cuda")


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider' is not in available")
def test_a_provider_that_does_not_start_is_no_way_back_to_the_cpu(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime itself would only warn, and run on the CPU."""
    monkeypatch.setattr("edgesmith.exporters.sessions.ort_session.provider", lambda device: "CUDAExecutionProvider")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return  # the test marked gpu runs it
    with pytest.raises(MeasurementError) as caught:
        OnnxRuntimeSession(path, device="cuda")
    assert str(caught.value) == (
        f"{path}: ONNX Runtime could not start CUDAExecutionProvider; its CUDA libraries do not fit this machine's: "
        'pip install "onnxruntime-gpu[cuda,cudnn]", or use --device cpu'
    )


@pytest.mark.gpu
def test_on_cuda(path: Path) -> None:
    """Needs onnxruntime-gpu in place of onnxruntime."""
    here, there = OnnxRuntimeSession(path).run(feed(5)), OnnxRuntimeSession(path, device="cuda").run(feed(5))
    for name, values in here.items():
        np.testing.assert_allclose(there[name], values, rtol=1e-3, atol=1e-3)


def test_sessions_that_take_turns_share_their_worker_threads(path: Path) -> None:
    # A pool of its own for each spins on after its run, on the cores that the next session needs: with two threads
    # on two cores a file measured against itself was then 0.8 to 1.1 times as fast.
    code = (
        "import os, sys\n"
        "from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession\n"
        "counts = [len(os.listdir('/proc/self/task'))]\n"
        "kept = []\n"
        "for _ in range(3):\n"
        "    kept.append(OnnxRuntimeSession(sys.argv[1], threads=3, shared_pool=sys.argv[2] == 'shared'))\n"
        "    counts.append(len(os.listdir('/proc/self/task')))\n"
        "print([count - counts[0] for count in counts])"
    )
    workers = [
        subprocess.run([sys.executable, "-c", code, path, pool], capture_output=True, text=True, check=True)
        for pool in ("shared", "own")
    ]
    assert [run.stdout.strip() for run in workers] == ["[0, 2, 2, 2]", "[0, 2, 4, 6]"]
    assert [run.stderr for run in workers] == ["", ""]
