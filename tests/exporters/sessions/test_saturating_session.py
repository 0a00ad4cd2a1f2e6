"""INT8 on x86 without VNNI, against what the real kernels gave and against products added one by one."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgesmith.core.errors import MeasurementError
from edgesmith.exporters.int8 import qdq, saturation
from edgesmith.exporters.int8.dialect import Dialect
from edgesmith.exporters.int8.integer_node import IntegerNode
from edgesmith.exporters.sessions.cpu import this_cpu
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession
from edgesmith.exporters.sessions.saturating_session import SaturatingSession

from ..conftest import Network
from ..graphs import U8, U8_7

REAL = Path(__file__).parents[2] / "data" / "avx2_kernels.npz"


@pytest.mark.parametrize("number", range(16))
def test_as_the_real_kernels(number: int, tmp_path: Path) -> None:
    with np.load(REAL, allow_pickle=False) as stored:
        x, y = stored[f"{number}.x"], stored[f"{number}.y"]
        (tmp_path / "layer.onnx").write_bytes(stored[f"{number}.model"].tobytes())
    session = SaturatingSession(tmp_path / "layer.onnx")
    assert len(session.emulated) == 1
    given = session.run({"x": x})["y"]
    assert given.dtype == y.dtype
    np.testing.assert_array_equal(given, y)


def test_the_real_kernels_did_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test before would pass with sums as they are."""
    different = 0
    monkeypatch.setattr(saturation, "products", saturation.exact)
    with np.load(REAL, allow_pickle=False) as stored:
        for number in range(16):
            model = onnx.load_from_string(stored[f"{number}.model"].tobytes())
            constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
            (node,) = model.graph.node
            plain = IntegerNode(node, constants["w"]).run({"x": stored[f"{number}.x"], **constants})
            different += not np.array_equal(plain, stored[f"{number}.y"])
    assert different >= 8, "every other one is adversarial"


@pytest.mark.parametrize("depth", [1, 2, 7, 600])
def test_pairs_are_neighbours_and_saturate_by_themselves(depth: int) -> None:
    rng = np.random.default_rng(depth)
    data = rng.integers(150, 256, (3, depth)).astype(np.uint8)
    weight = rng.integers(-128, 128, (depth, 5)).astype(np.int8)
    expected = np.zeros((3, 5), np.int64)
    for row in range(3):
        for column in range(5):
            terms = data[row].astype(int) * weight[:, column].astype(int)
            expected[row, column] = sum(
                max(-32768, min(32767, int(terms[start : start + 2].sum()))) for start in range(0, depth, 2)
            )
    np.testing.assert_array_equal(saturation.products(data, weight), expected)
    np.testing.assert_array_equal(saturation.exact(data, weight), data.astype(int) @ weight.astype(int))


def test_which_pairs_can_saturate() -> None:
    pairs = np.array([[64, 64], [65, 64], [-64, -64], [-65, -64], [127, -128], [-128, -128]], np.int8)
    assert saturation.can_saturate(pairs.T.copy()).tolist() == [[False, True, False, True, False, True]]


@pytest.mark.parametrize("dialect", [U8, U8_7], ids=lambda dialect: dialect.name)
def test_a_whole_network_but_for_what_saturates(
    dialect: Dialect, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU that saturates by itself it is held against that; elsewhere without what saturates."""
    path = tmp_path / "model.onnx"
    onnx.save(qdq.write_qdq(network.model, network.params, dialect), path)
    session = SaturatingSession(path)
    assert bool(session.emulated) == (dialect is U8)
    if this_cpu() != "x86":
        monkeypatch.setattr(saturation, "products", saturation.exact)
    feed = {name: values[:64] for name, values in network.feed.items()}
    (real,), (emulated,) = OnnxRuntimeSession(path).run(feed).values(), session.run(feed).values()
    np.testing.assert_allclose(emulated, real, rtol=0, atol=1e-6 * np.abs(real).max())


def test_an_operator_that_is_not_emulated_is_refused(tmp_path: Path) -> None:
    weight = np.full((8, 8), 127, np.int8)
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"], name="product")
    graph = helper.make_graph(
        [node],
        "integers",
        [helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [1, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [1, 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "model.onnx")
    with pytest.raises(MeasurementError) as raised:
        SaturatingSession(tmp_path / "model.onnx")
    assert str(raised.value) == (
        "MatMulInteger 'product': how it saturates on a CPU without VNNI is not emulated; keep it in float"
    )
