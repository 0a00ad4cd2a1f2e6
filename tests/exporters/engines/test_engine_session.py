"""Running engines. Without a GPU: refusals and the bookkeeping of addresses, on a stand-in for driver and runtime."""

import ctypes
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgesmith.core import digest
from edgesmith.core.errors import ArtifactError, DataError, MeasurementError
from edgesmith.core.values import TensorSpec
from edgesmith.exporters.engines import cuda_driver, engine_build, engine_file, engine_open
from edgesmith.exporters.engines.cuda_driver import Device
from edgesmith.exporters.engines.engine_file import EngineInfo
from edgesmith.exporters.engines.engine_session import EngineSession
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.int8 import qdq
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession

from ..conftest import Network
from ..graphs import S8, graph, node, random

INFO = EngineInfo(
    tool="tensorrt",
    version="11.4.1",
    proves="",
    source_digest="",
    onnx="model.onnx",
    onnx_digest="",
    engine_digest="",
    engine_bytes=0,
    weights_bytes=None,
    inputs=(TensorSpec(name="x", dtype="float32", shape=("n", 3)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("n", 3)),),
    profiles={"x": {"min": (1, 3), "opt": (2, 3), "max": (4, 3)}},
    precision="as-is",
    quantized=False,
    compute_capabilities=(),
    built_on="8.6",
    workspace_mb=None,
    platform="Linux x86_64",
    seconds=0.1,
    device_command="",
    device_note="",
)


class Driver:
    """The CUDA driver with this process's own memory for the device's; counts what is taken and given back."""

    def __init__(self, capability: tuple[int, int] = (8, 6)) -> None:
        self.parts = dict(zip((75, 76), capability, strict=True))
        self.memory: dict[int, Any] = {}
        self.streams = self.events = self.clock = self.graphs = self.launched = 0
        self.recording = False
        self.failing: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            handler = getattr(self, f"_{name.removesuffix('_v2')}", None)
            if name in self.failing:
                return 2
            if handler is not None:
                handler(*arguments)
            return 0

        return call

    def _cuGetErrorString(self, code: int, text: Any) -> None:
        text._obj.value = b"out of memory"

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> None:
        value._obj.value = self.parts[attribute]

    def _cuMemGetInfo(self, free: Any, total: Any) -> None:
        free._obj.value = 1 << 30

    def _cuMemAlloc(self, address: Any, size: Any) -> None:
        block = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(block)
        self.memory[ctypes.addressof(block)] = block

    def _cuMemFree(self, address: Any) -> None:
        del self.memory[address.value]

    def _cuMemcpyHtoDAsync(self, address: Any, source: Any, size: Any, stream: Any) -> None:
        assert size.value <= ctypes.sizeof(self.memory[address.value])
        ctypes.memmove(address.value, source.value, size.value)

    def _cuMemcpyDtoHAsync(self, goal: Any, address: Any, size: Any, stream: Any) -> None:
        assert size.value <= ctypes.sizeof(self.memory[address.value])
        ctypes.memmove(goal.value, address.value, size.value)

    def _cuStreamCreate(self, stream: Any, flags: Any) -> None:
        self.streams += 1
        stream._obj.value = 77

    def _cuStreamDestroy(self, stream: Any) -> None:
        self.streams -= 1

    def _cuStreamBeginCapture(self, stream: Any, mode: Any) -> None:
        assert (stream.value, mode.value, self.recording) == (77, 1, False)
        self.recording = True

    def _cuStreamEndCapture(self, stream: Any, graph: Any) -> None:
        self.recording, graph._obj.value = False, 55
        self.graphs += 1

    def _cuStreamSynchronize(self, stream: Any) -> None:
        assert not self.recording, "what waits cannot be recorded"

    def _cuGraphInstantiateWithFlags(self, launched: Any, graph: Any, flags: Any) -> None:
        assert (graph.value, flags.value) == (55, 0)
        launched._obj.value = 66
        self.graphs += 1

    def _cuGraphLaunch(self, graph: Any, stream: Any) -> None:
        assert (graph.value, stream.value) == (66, 77)
        self.launched += 1

    def _cuGraphExecDestroy(self, graph: Any) -> None:
        self.graphs -= 1

    def _cuGraphDestroy(self, graph: Any) -> None:
        self.graphs -= 1

    def _cuEventCreate(self, event: Any, flags: Any) -> None:
        self.events += 1
        event._obj.value = 100 + self.events

    def _cuEventDestroy(self, event: Any) -> None:
        self.events -= 1

    def _cuEventElapsedTime(self, value: Any, first: Any, second: Any) -> None:
        self.clock += 1
        value._obj.value = self.clock / 4


class Context:
    """Doubles `x` into `y`, through the addresses it was told."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes = {"x": tuple(shape), "y": tuple(shape)}
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        count = int(np.prod(self.shapes["x"]))
        sides = {name: (ctypes.c_float * count).from_address(self.addresses[name]) for name in ("x", "y")}
        for index in range(count):
            sides["y"][index] = 2 * sides["x"][index]
        return stream == 77


def vendor(version: str = "11.4.1", loads: bool = True) -> Any:
    """What `tensorrt` gives a session."""

    class Logger:
        ERROR, INTERNAL_ERROR = "ERROR", "INTERNAL_ERROR"

        def log(self, severity: Any, message: str) -> None: ...

    def runtime(logger: Any) -> Any:
        def deserialize(data: bytes) -> Any:
            if not loads:
                logger.log("ERROR", "Serialization assertion failed: version tag does not match")
                return None
            return SimpleNamespace(create_execution_context=Context, get_tensor_dtype=lambda name: "FLOAT")

        return SimpleNamespace(deserialize_cuda_engine=deserialize)

    return SimpleNamespace(__version__=version, ILogger=Logger, Runtime=runtime, nptype=lambda kind: np.float32)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return written(tmp_path)


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "model.engine"
    path.write_bytes(b"an engine")
    engine_file.write(dataclasses.replace(INFO, engine_digest=digest.of_file(path), **changes), path)
    return path


def opened(path: Path, driver: Driver | None = None, **changes: Any) -> EngineSession:
    return EngineSession(path, Device(driver or Driver()), vendor(**changes))


def test_runs_whatever_the_batch(engine: Path) -> None:
    session = opened(engine)
    assert (session.inputs, session.outputs) == (INFO.inputs, INFO.outputs)
    for batch in (4, 1, 3, 9):  # nine is more than the profile holds: in pieces of four, four and one
        values = random(batch, 3, seed=batch)
        assert np.array_equal(session.run({"x": values})["y"], 2 * values)


def test_buffers_grow_are_reused_and_given_back(engine: Path) -> None:
    driver = Driver()
    session = opened(engine, driver)
    session.run({"x": random(2, 3)})
    held = set(driver.memory)
    session.run({"x": random(1, 3)})
    assert set(driver.memory) == held and session.device_bytes == 2 * 2 * 3 * 4
    session.run({"x": random(4, 3)})
    assert len(driver.memory) == 2 and session.device_bytes == 2 * 4 * 3 * 4
    bound = session.bind({"x": random(3, 3)})
    assert len(driver.memory) == 4, "what is bound has memory of its own"
    bound()
    session.close()
    session.close()
    assert (driver.memory, driver.streams, driver.events) == ({}, 0, 0)
    with pytest.raises(ArtifactError, match=r"the session is closed$"):
        session.run({"x": random(1, 3)})


def test_two_bound_feeds_do_not_overwrite_each_other(engine: Path) -> None:
    driver = Driver()
    session = opened(engine, driver)
    values = [random(2, 3, seed=1), random(1, 3, seed=2)]
    runs = [session.bind({"x": array}) for array in values]
    for index in (0, 1, 0):
        runs[index]()
        context = session._context
        found = (ctypes.c_float * values[index].size).from_address(context.addresses["y"])
        assert np.array_equal(np.array(found), (2 * values[index]).ravel())


def test_time_is_taken_by_events(engine: Path) -> None:
    driver = Driver()
    session = opened(engine, driver)
    assert session.device_ms({"x": random(1, 3)}, runs=3) == [0.25, 0.5, 0.75]
    assert driver.events == 0


def test_a_graph_is_recorded_once_launched_and_given_back(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, recorded = Driver(), []
    session = opened(engine, driver)
    run = Context.execute_async_v3
    monkeypatch.setattr(
        Context, "execute_async_v3", lambda self, stream: recorded.append(driver.recording) or run(self, stream)
    )
    assert session.graph_ms({"x": random(1, 3)}, runs=3) == [0.25, 0.5, 0.75]
    assert recorded == [False, False, False, True], "run, then recorded"
    assert (driver.launched, driver.graphs, driver.events) == (4, 0, 0)


def test_what_tensorrt_refuses_to_record_is_what_is_said(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    session = opened(engine, driver)
    run = Context.execute_async_v3
    monkeypatch.setattr(Context, "execute_async_v3", lambda self, stream: not driver.recording and run(self, stream))
    with pytest.raises(MeasurementError, match=r": TensorRT cannot run it: it gave no reason$"):
        session.graph_ms({"x": random(1, 3)})
    assert (driver.recording, driver.graphs) == (False, 0)


@pytest.mark.parametrize("failing", ["cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphLaunch"])
def test_what_cannot_be_a_graph_says_so_and_leaves_the_session_usable(failing: str, engine: Path) -> None:
    driver = Driver()
    session = opened(engine, driver)
    driver.failing = {failing}
    with pytest.raises(MeasurementError, match=rf"^CUDA driver: {failing}: "):
        session.graph_ms({"x": random(1, 3)})
    driver.recording = False
    assert driver.graphs == 0
    assert np.array_equal(session.run({"x": np.ones((1, 3), np.float32)})["y"], np.full((1, 3), 2, np.float32))


@pytest.mark.parametrize(
    ("feed", "text"),
    [
        ({}, "input 'x' is missing; given: nothing"),
        ({"x": np.zeros((1, 3))}, "input 'x' must be float32 from (1, 3) to (4, 3), got float64 (1, 3)"),
        ({"x": np.zeros((1, 5), np.float32)}, "input 'x' must be float32 from (1, 3) to (4, 3), got float32 (1, 5)"),
        ({"x": np.zeros((0, 3), np.float32)}, "input 'x' must be float32 from (1, 3) to (4, 3), got float32 (0, 3)"),
    ],
)
def test_feeds_that_do_not_fit(feed: dict[str, np.ndarray], text: str, engine: Path) -> None:
    with pytest.raises(DataError) as raised:
        opened(engine).run(feed)
    assert str(raised.value) == f"{engine}: {text}"


@pytest.mark.parametrize(
    ("changes", "driver", "version", "text"),
    [
        ({}, (8, 6), "10.3.0", "built by tensorrt 11.4.1, and version 10.3.0 is here: engines fit one version only"),
        ({}, (8, 7), "11.4.1", "built for compute capability 8.6, and the GPU here has 8.7"),
        ({"compute_capabilities": ("8.6", "8.9")}, (12, 0), "11.4.1", "built for compute capability 8.6, 8.9, and the GPU here has 12.0"),
    ],
)  # fmt: skip
def test_another_version_or_gpu_is_refused(
    changes: dict[str, Any], driver: tuple[int, int], version: str, text: str, tmp_path: Path
) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(ArtifactError) as raised:
        opened(path, Driver(driver), version=version)
    assert str(raised.value) == f"{path}: {text}; build it again on this machine"


def test_another_tool_is_a_reason_too() -> None:
    text = "built by tensorrt 11.4.1, and tensorrt-rtx 1.7.1 is here"
    assert engine_file.refusal(INFO, "tensorrt-rtx", "1.7.1", "8.6") == text
    assert engine_file.refusal(INFO, "tensorrt", "11.4.1", None) is None


def test_what_the_runtime_refuses(engine: Path) -> None:
    with pytest.raises(ArtifactError) as raised:
        opened(engine, loads=False)
    assert str(raised.value) == (
        f"{engine}: tensorrt 11.4.1 cannot load it: Serialization assertion failed: version tag does not match; "
        "build it again"
    )


def test_a_driver_that_fails_says_which_call(engine: Path) -> None:
    driver = Driver()
    session = opened(engine, driver)
    driver.failing = {"cuMemAlloc_v2"}
    with pytest.raises(MeasurementError, match=r"^CUDA driver: cuMemAlloc_v2: out of memory \(error 2\)$"):
        session.run({"x": random(1, 3)})


def test_without_a_device(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "load", lambda: None)
    with pytest.raises(MeasurementError) as raised:
        EngineSession(engine, vendor=vendor())
    assert str(raised.value) == "no CUDA device: the NVIDIA driver is not installed, or sees no GPU"
    assert cuda_driver.capability() is None


def test_without_the_runtime(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(MeasurementError, match=r'not measured: it needs tensorrt, .*: pip install "edgesmith\[tensorrt\]"$'):  # fmt: skip
        EngineSession(engine)


def test_an_engine_is_reused_only_for_the_file_it_was_made_from(
    vgg: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_open, "EngineSession", engine_file.read)
    onnx_file.save(vgg.model, tmp_path / "model.onnx")
    first = engine_open.open_beside(tmp_path / "model.onnx")
    assert engine_open.open_beside(tmp_path / "model.onnx") == first
    onnx_file.save(qdq.write_qdq(vgg.model, vgg.params, S8), tmp_path / "model.onnx")
    again = engine_open.open_beside(tmp_path / "model.onnx")
    assert isinstance(first, EngineInfo) and isinstance(again, EngineInfo)
    assert (first.quantized, again.quantized) == (False, True)


@pytest.mark.gpu
def test_gpu_parity_with_onnx_runtime(digits: Network, tmp_path: Path) -> None:
    for name, model in (("float", digits.model), ("int8", qdq.write_qdq(digits.model, digits.params, S8))):
        path = tmp_path / f"{name}.onnx"
        onnx_file.save(model, path)
        session = engine_open.open_beside(path)
        expected = OnnxRuntimeSession(path).run(digits.feed)["logits"]
        actual = session.run(digits.feed)["logits"]
        assert (expected.argmax(1) == actual.argmax(1)).mean() > 0.99
        session.close()


@pytest.mark.gpu
def test_gpu_time_and_memory(digits: Network, tmp_path: Path) -> None:
    onnx_file.save(digits.model, tmp_path / "model.onnx")
    session = engine_open.open_beside(tmp_path / "model.onnx")
    feed = {name: array[:8] for name, array in digits.feed.items()}
    session.bind(feed)()
    times = session.device_ms(feed, runs=20)
    assert len(times) == 20 and 0 < min(times) < 100
    assert 0 < np.median(session.graph_ms(feed, runs=20)) < 1.2 * np.median(times)
    assert session.device_bytes > sum(array.nbytes for array in feed.values())
    session.close()


@pytest.mark.gpu
def test_gpu_refuses_an_engine_of_another_version(tmp_path: Path) -> None:
    model = graph([node("Relu", "x", "y")], {}, {"x": ["n", 4]}, {"y": ["n", 4]})
    onnx_file.save(model, tmp_path / "model.onnx")
    info = engine_build.build(tmp_path / "model.onnx", tmp_path / "model.engine")
    engine_file.write(dataclasses.replace(info, version="10.0.0"), tmp_path / "model.engine")
    with pytest.raises(ArtifactError, match=r"built by \S+ 10\.0\.0, and version .* is here"):
        EngineSession(tmp_path / "model.engine")
