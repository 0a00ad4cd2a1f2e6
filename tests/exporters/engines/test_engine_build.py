"""Engines, built for real by NVIDIA's builder, without a GPU: what comes out, and what is said when nothing does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgesmith.core import digest
from edgesmith.core.errors import ArtifactError, BuildError, ExitCode, UsageError
from edgesmith.core.values import TensorSpec
from edgesmith.exporters.engines import engine_build, engine_build_child, engine_errors, engine_file
from edgesmith.exporters.engines.engine_build import build, device_command
from edgesmith.exporters.engines.engine_options import Build, tool_problem, tool_version
from edgesmith.exporters.engines.engine_profile import Profile, profiles, trtexec
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.int8 import qdq

from ..conftest import Network
from ..graphs import S8, S8_BIAS, graph, node, random


def saved(model: onnx.ModelProto, folder: Path, name: str = "model") -> Path:
    onnx_file.save(model, folder / f"{name}.onnx")
    return folder / f"{name}.onnx"


@pytest.fixture(scope="module")
def built(digits: Network, tmp_path_factory: pytest.TempPathFactory) -> dict[str, engine_file.EngineInfo]:
    """The trained digits network, as float, INT8 and both in FP16."""
    folder, found = tmp_path_factory.mktemp("built"), {}
    for name, model in (("float", digits.model), ("int8", qdq.write_qdq(digits.model, digits.params, S8))):
        path = saved(model, folder, name)
        found[name] = build(path, folder / f"{name}.engine")
        found[f"{name} half"] = build(path, folder / f"{name}-half.engine", Build(precision="float16"))
    return found


def test_weights_shrink_as_they_should(built: dict[str, engine_file.EngineInfo]) -> None:
    sizes = {name: info.weights_bytes or 0 for name, info in built.items()}
    assert sizes["float"] > 100_000
    assert sizes["int8"] < 0.5 * sizes["float"]
    assert 0.45 * sizes["float"] < sizes["float half"] < 0.6 * sizes["float"]
    assert sizes["int8 half"] < 0.5 * sizes["float"]


def test_what_stands_beside_the_engine(vgg: Network, tmp_path: Path) -> None:
    path, engine = saved(vgg.model, tmp_path), tmp_path / "out" / "vgg.engine"
    options = Build(batch=(1, 2, 4), workspace_mb=64, compute_capabilities=("8.6", "8.9"))
    info = build(path, engine, options)
    assert engine_file.read(engine) == info
    assert sorted(file.name for file in engine.parent.iterdir()) == ["vgg.engine", "vgg.engine.json"]
    assert (info.tool, f"{info.tool} {info.version}") == ("tensorrt-rtx", tool_version("tensorrt-rtx"))
    assert info.source_digest == info.onnx_digest == digest.of_file(path)
    assert (info.engine_digest, info.engine_bytes) == (digest.of_file(engine), engine.stat().st_size)
    assert info.profiles == {"x": {"min": (1, 3, 8, 8), "opt": (2, 3, 8, 8), "max": (4, 3, 8, 8)}}
    assert (info.workspace_mb, info.compute_capabilities, info.built_on) == (64, ("8.6", "8.9"), None)
    assert (info.precision, info.quantized) == ("as-is", False)
    assert info.inputs == (TensorSpec(name="x", dtype="float32", shape=("batch", 3, 8, 8)),)
    assert info.seconds > 0 and info.platform.startswith(os.uname().sysname)
    assert info.proves == (
        "it proves that NVIDIA's parser accepts the graph and that it builds; "
        "it is not an engine for a Jetson and it proves no speed"
    )
    assert info.device_command == (
        "trtexec --onnx=model.onnx --saveEngine=model.engine --minShapes=x:1x3x8x8 --optShapes=x:2x3x8x8 "
        "--maxShapes=x:4x3x8x8 --memPoolSize=workspace:64 --stronglyTyped"
    )


def test_the_cast_file_is_kept_for_the_device(vgg: Network, tmp_path: Path) -> None:
    path = saved(qdq.write_qdq(vgg.model, vgg.params, S8), tmp_path)
    info = build(path, tmp_path / "model.engine", Build(precision="float16"))
    assert info.onnx == "model.float16.onnx"
    assert info.onnx_digest == digest.of_file(tmp_path / info.onnx) != info.source_digest == digest.of_file(path)
    assert "--onnx=model.float16.onnx" in info.device_command
    assert info.device_note == "TensorRT 10.0 to 10.11 needs --int8 --fp16 in place of --stronglyTyped"
    assert device_command(path, Build(precision="float16")) == (info.device_command, info.device_note)


def test_one_capability_makes_another_engine_than_two(vgg: Network, tmp_path: Path) -> None:
    path = saved(vgg.model, tmp_path)
    one = build(path, tmp_path / "one.engine", Build(compute_capabilities=("8.6",)))
    two = build(path, tmp_path / "two.engine", Build(compute_capabilities=("8.6", "8.9")))
    assert two.engine_bytes > one.engine_bytes


def test_an_unknown_capability_names_those_that_are(vgg: Network, tmp_path: Path) -> None:
    with pytest.raises(BuildError) as raised:
        build(saved(vgg.model, tmp_path), tmp_path / "model.engine", Build(compute_capabilities=("8.6", "7.2")))
    text = str(raised.value)
    assert text.startswith("compute capability 7.2: TensorRT for RTX ")
    assert "does not build for it; known: " in text and "8.6" in text.split("known: ")[1]
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_a_chip_that_cannot_do_it_says_which_operation(vgg: Network, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"cannot build it: .*Turing \(SM75\): FP32 GEMM is not supported"):
        build(saved(vgg.model, tmp_path), tmp_path / "model.engine", Build(compute_capabilities=("7.5",)))


def dynamic() -> onnx.ModelProto:
    return graph([node("Relu", "x", "y")], {}, {"x": ["n", "time", 4]}, {"y": ["n", "time", 4]})


def test_a_dynamic_axis_needs_sizes(tmp_path: Path) -> None:
    path = saved(dynamic(), tmp_path)
    with pytest.raises(UsageError) as raised:
        build(path, tmp_path / "model.engine", Build(batch=(1, 2, 4)))
    text = (
        "input 'x' (n, time, 4): axis 1 'time' is dynamic and has no sizes; give smallest, usual and largest: "
        "--shape x=1xNx4:2xNx4:4xNx4 with numbers for N, or build.shapes in the recipe"
    )
    assert str(raised.value) == text
    assert device_command(path, Build(batch=(1, 2, 4))) == ("", text)
    info = build(path, tmp_path / "model.engine", Build(shapes={"x": ((1, 2, 4), (2, 8, 4), (4, 16, 4))}))
    assert info.profiles == {"x": {"min": (1, 2, 4), "opt": (2, 8, 4), "max": (4, 16, 4)}}


SPECS = (
    TensorSpec(name="image", dtype="float32", shape=("n", 3, "h")),
    TensorSpec(name="mask", dtype="float32", shape=(1, 4)),
)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (Build(shapes={"imag": ((1,), (1,), (1,))}), "build.shapes: no input 'imag'; did you mean 'image'?; inputs: image, mask"),
        (Build(shapes={"image": ((1, 4, 8), (1, 3, 8), (1, 3, 8))}), "build.shapes: 'image' is (n, 3, h), 1x4x8 does not fit"),
        (Build(shapes={"image": ((1, 3), (1, 3, 8), (1, 3, 8))}), "build.shapes: 'image' is (n, 3, h), 1x3 does not fit"),
        (Build(shapes={"image": ((2, 3, 8), (1, 3, 8), (2, 3, 8))}), "build.shapes: 'image': 2x3x8:1x3x8:2x3x8 must not fall from smallest to largest"),
        (Build(batch=(4, 2, 8)), "build.batch: 4, 2, 8 must not fall from smallest to largest"),
        (
            Build(batch=(1, 2, 3), shapes={"image": ((1, 3, 8), (1, 3, 8), (2, 3, 8))}),
            "build.batch: 1, 2, 3 applies to no input: each has a fixed first axis or build.shapes",
        ),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_meant(options: Build, text: str) -> None:
    with pytest.raises(UsageError) as raised:
        profiles(SPECS, options)
    assert str(raised.value) == text


def test_only_dynamic_inputs_have_a_profile() -> None:
    found = profiles(SPECS, Build(shapes={"image": ((1, 3, 8), (2, 3, 8), (2, 3, 9))}))
    assert found == {"image": Profile(min=(1, 3, 8), opt=(2, 3, 8), max=(2, 3, 9))}
    command = trtexec("a b.onnx", found, Build(timing_cache="x/y.cache"))
    assert command == (
        "trtexec '--onnx=a b.onnx' '--saveEngine=a b.engine' --minShapes=image:1x3x8 --optShapes=image:2x3x8 "
        "--maxShapes=image:2x3x9 --timingCacheFile=timing.cache --stronglyTyped"
    )


def test_an_int32_bias_is_refused_with_node_and_remedy(vgg: Network, tmp_path: Path) -> None:
    path = saved(qdq.write_qdq(vgg.model, vgg.params, S8_BIAS), tmp_path)
    with pytest.raises(BuildError) as raised:
        build(path, tmp_path / "model.engine", Build(precision="as-is"))
    text, nodes = str(raised.value), len(onnx_file.load(path).graph.node)
    assert raised.value.exit_code == ExitCode.FAILED
    assert "refuses node 'module.layers.0.bias_DQ' (DequantizeLinear), INVALID_NODE: " in text
    assert "input has type Int32 but must have type FP8, FP4, Int4, Int8, or UInt8" in text
    assert "an INT32 bias is not accepted: write the file with target 'tensorrt', which keeps biases in float" in text
    assert f"of {nodes} nodes, not 'module.layers.0.bias_DQ' (DequantizeLinear)" in text
    assert "CUDA" not in text, "the missing driver is not the reason"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_an_operator_it_does_not_have(tmp_path: Path) -> None:
    model = graph([node("Relu", "x", "r"), node("Det", "r", "y")], {}, {"x": ["n", 4, 4]}, {"y": ["n"]})
    with pytest.raises(BuildError) as raised:
        build(saved(model, tmp_path), tmp_path / "model.engine")
    version = tool_version("tensorrt-rtx").split()[1]
    assert str(raised.value) == (
        f"{tmp_path / 'model.onnx'}: TensorRT for RTX {version} refuses node 'n_y' (Det), UNSUPPORTED_NODE; TensorRT has "
        "no such operator, or not with these attributes: replace it in the model and export again; its own check passes "
        "1 of 2 nodes, not 'n_y' (Det)"
    )


def test_a_truncated_file(vgg: Network, tmp_path: Path) -> None:
    path = saved(vgg.model, tmp_path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ArtifactError, match=r"truncated; export it again$"):
        build(path, tmp_path / "model.engine")


@pytest.mark.parametrize(
    ("tool", "text"),
    [
        ("auto", 'neither tensorrt nor tensorrt_rtx is installed: pip install "edgesmith[tensorrt-rtx]"'),
        ("tensorrt", 'tensorrt is not installed: pip install "edgesmith[tensorrt]"'),
        ("tensorrt-rtx", 'tensorrt_rtx is not installed: pip install "edgesmith[tensorrt-rtx]"'),
    ],
)
def test_a_missing_tool_names_its_command(
    tool: str, text: str, vgg: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert tool_problem(tool) == text
    with pytest.raises(UsageError) as raised:
        build(saved(vgg.model, tmp_path), tmp_path / "model.engine", Build(tool=tool))  # type: ignore[arg-type]
    assert str(raised.value) == text and raised.value.exit_code == ExitCode.USAGE


def child(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run another program in place of the building one."""

    def wait(job: Path) -> tuple[int, str]:
        done = subprocess.run([sys.executable, "-c", text, str(job)], capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    monkeypatch.setattr(engine_build, "_wait", wait)


def test_a_crash_of_the_tool_is_an_error(vgg: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, engine = saved(vgg.model, tmp_path), tmp_path / "model.engine"
    build(path, engine)
    before = engine.read_bytes()
    child("import json, os, sys; open(json.load(open(sys.argv[1]))['engine'], 'w').write('half'); os.kill(os.getpid(), 11)", monkeypatch)  # fmt: skip
    with pytest.raises(BuildError) as raised:
        build(path, engine)
    assert str(raised.value) == (
        f"{path}: TensorRT for RTX crashed: its process was ended by signal 11; nothing was written. "
        "Signal 9 most likely means too little memory: --workspace-mb limits it"
    )
    assert engine.read_bytes() == before and engine_file.read(engine)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.engine", "model.engine.json", "model.onnx"]


def test_an_exception_of_the_child_is_shown(vgg: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child("raise RuntimeError('out of order')", monkeypatch)
    with pytest.raises(BuildError, match=r"ended with code 1(\n.*)*\n  RuntimeError: out of order$"):
        build(saved(vgg.model, tmp_path), tmp_path / "model.engine", Build(precision="float16"))
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"], "not even the cast file"


SLOW = """
import sys
from pathlib import Path
from edgesmith.exporters.engines import engine_build
engine_build.build(Path(sys.argv[1]), Path(sys.argv[2]))
"""
VENDOR = """
import os, pathlib, time
pathlib.Path(os.environ["STARTED"]).write_text(str(os.getpid()))
time.sleep(60)
"""


def test_ctrl_c_ends_the_child_and_leaves_nothing(vgg: Network, tmp_path: Path) -> None:
    """A stand-in for the vendor's module takes a minute, so that there is time to interrupt it."""
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor" / "tensorrt.py").write_text(VENDOR)
    path, started = saved(vgg.model, tmp_path), tmp_path / "started"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "vendor"), "STARTED": str(started)}
    command = [sys.executable, "-c", SLOW, str(path), str(tmp_path / "model.engine")]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as parent:
        deadline = time.monotonic() + 30
        while not (started.exists() and started.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        building = int(started.read_text())
        parent.send_signal(signal.SIGINT)
        _, stderr = parent.communicate(timeout=30)
    assert "KeyboardInterrupt" in stderr
    with pytest.raises(ProcessLookupError):
        os.kill(building, 0)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "started", "vendor"]


class Cached:
    """A builder's configuration that keeps timings, as `tensorrt` does; what TensorRT for RTX writes is but a head."""

    def __init__(self, fits: bool = True) -> None:
        self.fits, self.cache = fits, b""

    def create_timing_cache(self, stored: bytes) -> bytes:
        return stored

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return self.fits and not ignore_mismatch

    def get_timing_cache(self) -> "Cached":
        return self

    def serialize(self) -> bytes:
        return self.cache + b"timing"


def test_a_timing_cache_is_read_and_written_back(tmp_path: Path) -> None:
    path, config = tmp_path / "timing.cache", Cached()
    for stored in (b"timing", b"timingtiming"):
        engine_build_child._set_timing_cache(config, str(path))
        engine_build_child._keep_timing_cache(config, str(path))
        assert path.read_bytes() == stored
    engine_build_child._set_timing_cache(config, None)
    engine_build_child._keep_timing_cache(config, None)
    with pytest.raises(engine_build_child.Refused) as raised:
        engine_build_child._set_timing_cache(Cached(fits=False), str(path))
    text = f"{path}: not a timing cache of this tool and version; remove it to start a new one"
    assert str(engine_errors.refused(Path("m.onnx"), "tensorrt", raised.value.facts, dynamic())) == text


def test_a_real_build_with_a_timing_cache(vgg: Network, tmp_path: Path) -> None:
    path, cache = saved(vgg.model, tmp_path), tmp_path / "t.cache"
    first = build(path, tmp_path / "m.engine", Build(timing_cache=str(cache)))
    stored = cache.read_bytes()
    assert stored and first.device_command.endswith("--timingCacheFile=timing.cache --stronglyTyped")
    again = build(path, tmp_path / "m.engine", Build(timing_cache=str(cache)))
    assert cache.read_bytes() == stored and again.weights_bytes == first.weights_bytes


@pytest.mark.parametrize(
    ("module", "version", "quantized", "typed"),
    [
        ("tensorrt", "10.3.0", True, False),
        ("tensorrt", "10.3.0", False, True),
        ("tensorrt", "10.11.0.33", True, False),
        ("tensorrt", "10.12.0", True, True),
        ("tensorrt", "11.4.1", True, True),
        ("tensorrt_rtx", "1.7.1.116", True, True),
    ],
)
def test_only_old_tensorrt_with_pairs_is_typed_weakly(module: str, version: str, quantized: bool, typed: bool) -> None:
    assert engine_build_child.strongly_typed(version, {"module": module, "quantized": quantized}) is typed


def test_other_refusals_have_a_remedy(tmp_path: Path) -> None:
    path, model = tmp_path / "m.onnx", dynamic()
    said = {"version": "11.4", "log": [["ERROR", "no reason that anybody knows"]]}
    texts = {
        "import": ({"message": "OSError: libnvinfer.so.11"}, 'tensorrt is installed but cannot be imported (OSError: libnvinfer.so.11); pip install "edgesmith[tensorrt]"'),
        "builder": ({**said, "message": "nullptr"}, f"{path}: TensorRT 11.4 cannot start its builder: no reason that anybody knows; it needs a CUDA device; without one build with --tool tensorrt-rtx"),
        "build": (said, f"{path}: TensorRT 11.4 cannot build it: no reason that anybody knows; change that part of the model and export it again"),
        "compute capability": ({"version": "11.4", "unknown": ["8.6"], "known": []}, "compute capability 8.6: TensorRT 11.4 builds for the GPU at hand only; leave compute capabilities out"),
    }  # fmt: skip
    for step, (facts, text) in texts.items():
        assert str(engine_errors.refused(path, "tensorrt", {"step": step, **facts}, model)) == text


def test_a_non_zero_zero_point_is_refused_with_a_remedy(vgg: Network, tmp_path: Path) -> None:
    model = qdq.write_qdq(vgg.model, vgg.params, S8)
    for tensor in model.graph.initializer:
        if tensor.name == "x_zero_point":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.int8(3).reshape(()), tensor.name))
    with pytest.raises(BuildError, match=r"refuses .*QuantizeLinear\).*only INT8 with a zero point of 0 is accepted"):
        build(saved(model, tmp_path), tmp_path / "model.engine")


def test_metadata_that_is_not_of_this_engine(tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    with pytest.raises(
        ArtifactError, match=r"no such engine; build it: edgesmith build MODEL.onnx --out model.engine$"
    ):
        engine_file.read(engine)
    engine.write_bytes(random(4).tobytes())
    with pytest.raises(ArtifactError, match=r"model.engine.json: cannot be read \(No such file or directory\)"):
        engine_file.read(engine)
    for text in ("{", "[]", '{"schema": "edgesmith.engine/1"}', '{"schema": "edgesmith.engine/9"}'):
        engine_file.beside(engine).write_text(text)
        with pytest.raises(ArtifactError, match=r"model.engine.json: .*; build the engine again$"):
            engine_file.read(engine)


def test_an_engine_that_was_swapped(vgg: Network, tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    build(saved(vgg.model, tmp_path), engine)
    assert json.loads(engine_file.beside(engine).read_text())["schema"] == "edgesmith.engine/1"
    engine.write_bytes(engine.read_bytes() + b"\0")
    with pytest.raises(ArtifactError) as raised:
        engine_file.read(engine)
    assert str(raised.value) == f"{engine}: not the file that model.engine.json describes; build the engine again"
