"""One suite over every target: what it writes is true, passes its own lint, and runs or says why it cannot."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgesmith.benches.timing import timing_loop
from edgesmith.core import digest
from edgesmith.core.errors import ArtifactError, DataError, MeasurementError, QuantizationError
from edgesmith.core.values import QuantParams, TensorSpec
from edgesmith.exporters.graph import graph_stats, onnx_file
from edgesmith.exporters.graph.graph_view import views
from edgesmith.exporters.int8 import placement, qdq
from edgesmith.exporters.sessions import taps
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession
from edgesmith.exporters.targets.target import Target
from edgesmith.exporters.targets.targets import TARGETS

RNG = np.random.default_rng(0)
FEED = {"image": RNG.standard_normal((16, 3, 8, 8)).astype(np.float32)}
SPECS = (
    (TensorSpec(name="image", dtype="float32", shape=("batch", 3, 8, 8)),),
    (TensorSpec(name="logits", dtype="float32", shape=("batch", 5)),),
)
EVERY_TARGET = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    """A residual block, average pooling and a linear layer, with a ReLU6 in it."""
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (5, 8), "b3": (5,)}
    weights = {name: RNG.standard_normal(shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}
    weights |= {"zero": np.zeros((), np.float32), "six": np.full((), 6, np.float32)}
    steps = [
        ("Conv", "image w1 b1", "c1", {"pads": [1] * 4}), ("Relu", "c1", "r1", {}),
        ("Conv", "r1 w2 b2", "c2", {"pads": [1] * 4}), ("Add", "c2 r1", "sum", {}), ("Clip", "sum zero six", "r2", {}),
        ("GlobalAveragePool", "r2", "pool", {}), ("Flatten", "pool", "flat", {}),
        ("Gemm", "flat w3 b3", "logits", {"transB": 1}),
    ]  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node(kind, reads.split(), [made], name=f"node_{made}", **extra)
            for kind, reads, made, extra in steps
        ],
        "contract",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def params(model: onnx.ModelProto) -> dict[str, QuantParams]:
    placed = placement.place(model)
    seen = taps.observe(model, [FEED], placement.tensors_to_observe(placed))
    activations = {name: qdq.activation_params(found.low, found.high, "min-max") for name, found in seen.items()}
    return qdq.weight_params(model, placed) | activations


@EVERY_TARGET
def test_name_and_channels(target: Target) -> None:
    assert TARGETS[target.name] is target
    multiple = target.channel_multiple
    assert multiple >= 1 and multiple & (multiple - 1) == 0


@EVERY_TARGET
def test_dialects_have_names_of_their_own(target: Target) -> None:
    names = [dialect.name for dialect in target.dialects()]
    assert names and len(set(names)) == len(names)
    assert "float" not in names, "the name of a file without INT8"
    assert target.dialects() == target.dialects()


@EVERY_TARGET
def test_float_artifact_is_what_it_says(target: Target, model: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    artifact = target.write(model, None, None, path)
    assert (artifact.path, artifact.target, artifact.dialect, artifact.precision) == (
        path,
        target.name,
        "float",
        "float32",
    )
    assert (artifact.inputs, artifact.outputs) == SPECS
    assert artifact.digest == digest.of_file(path)
    assert artifact.file_bytes == path.stat().st_size
    assert target.lint(path) == ()
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@EVERY_TARGET
def test_every_dialect_is_what_it_says(
    target: Target, model: onnx.ModelProto, params: dict[str, QuantParams], tmp_path: Path
) -> None:
    expected = _outputs(target.write(model, None, None, tmp_path / "float.onnx").path)
    digests = set()
    for dialect in target.dialects():
        path = tmp_path / f"{dialect.name}.onnx"
        artifact = target.write(model, params, dialect, path)
        assert (artifact.target, artifact.dialect, artifact.precision) == (target.name, dialect.name, "int8")
        assert (artifact.inputs, artifact.outputs) == SPECS
        assert artifact.digest == digest.of_file(path) and artifact.path == path
        assert target.lint(path) == ()
        loaded = onnx_file.load(path)
        onnx.checker.check_model(loaded, full_check=True)
        assert graph_stats.macs_and_parameters(loaded) == graph_stats.macs_and_parameters(model)
        noise = ((_outputs(path) - expected) ** 2).sum() / (expected**2).sum()
        assert 0 < noise < 10 ** (-2.5), "a signal to noise ratio above 25 dB, but not the float file"
        digests.add(artifact.digest)
        assert target.write(model, params, dialect, path).digest == artifact.digest, "the same again, byte for byte"
    assert len(digests) == len(target.dialects()), "a dialect that writes another one's file is none"


@EVERY_TARGET
def test_runs_or_says_why_not(
    target: Target, model: onnx.ModelProto, params: dict[str, QuantParams], tmp_path: Path
) -> None:
    artifact = target.write(model, params, target.dialects()[0], tmp_path / "model.onnx")
    reason = target.unmeasurable()
    if reason is not None:
        assert reason and reason == reason.strip()
        with pytest.raises(MeasurementError) as raised:
            target.open(artifact.path, 1)
        assert str(raised.value) == f"{artifact.path}: not measured: {reason}"
    sessions = [target.stand_in(artifact.path, 1)] + ([] if reason else [target.open(artifact.path, 1)])
    expected = _outputs(target.write(model, None, None, tmp_path / "float.onnx").path)
    for session in sessions:
        assert (_but_for_names(session.inputs), _but_for_names(session.outputs)) == tuple(map(_but_for_names, SPECS))
        for batch in (1, 5):
            given = {"image": FEED["image"][:batch]}
            outputs = session.run(given)["logits"]
            noise = ((outputs - expected[:batch]) ** 2).sum() / (expected[:batch] ** 2).sum()
            assert outputs.shape == (batch, 5) and 0 < noise < 10 ** (-2.5)
        with pytest.raises(DataError, match=r": input 'image' is missing; given: nothing$"):
            session.run({})
        session.close()
        with pytest.raises(ArtifactError, match=r": the session is closed$"):
            session.run(FEED)


@EVERY_TARGET
def test_what_can_be_timed_has_a_session(target: Target) -> None:
    """The file that times knows nothing of targets: it has a table of its own."""
    assert target.name in timing_loop.SESSIONS


@EVERY_TARGET
def test_int8_needs_a_dialect_and_parameters(
    target: Target, model: onnx.ModelProto, params: dict[str, QuantParams], tmp_path: Path
) -> None:
    with pytest.raises(QuantizationError) as raised:
        target.write(model, params, None, tmp_path / "model.onnx")
    assert str(raised.value) == f"target '{target.name}': INT8 needs a dialect"
    fewer = {name: found for name, found in params.items() if name != "r1"}
    with pytest.raises(QuantizationError) as raised:
        target.write(model, fewer, target.dialects()[0], tmp_path / "model.onnx")
    assert str(raised.value) == "tensor 'r1': no quantization parameters; calibrate it"
    assert not list(tmp_path.iterdir())


@EVERY_TARGET
def test_a_damaged_file_is_found_by_lint(target: Target, model: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    target.write(model, None, None, path)
    path.write_bytes(path.read_bytes()[:-100])
    (finding,) = target.lint(path)
    assert (finding.rule, finding.severity, finding.fixable) == ("unreadable", "refused", False)
    assert finding.text.startswith(f"{path}: ")


@EVERY_TARGET
def test_rules_have_a_source_and_can_be_asked(target: Target, model: onnx.ModelProto) -> None:
    assert target.rules()
    for name, rule in target.rules().items():
        assert name == name.lower() and rule.document
        assert [finding for view in views(model) for finding in rule.check(view)] == [], "a legal float graph"


def _but_for_names(specs: tuple[TensorSpec, ...]) -> list[tuple[object, ...]]:
    """Not every runtime remembers what a dynamic axis is called."""
    return [(s.name, s.dtype, *("?" if isinstance(size, str) else size for size in s.shape)) for s in specs]


def _outputs(path: Path) -> np.ndarray:
    session = OnnxRuntimeSession(path)
    return session.run(FEED)["logits"]
