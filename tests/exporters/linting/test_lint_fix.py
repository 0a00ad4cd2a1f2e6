"""What --fix rewrites gives the very same outputs, and what would change them is left with its remedy."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgesmith.core.errors import UsageError
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.int8 import qdq
from edgesmith.exporters.linting import lint_file
from edgesmith.exporters.linting.lint import check
from edgesmith.exporters.linting.lint_file import fix_file
from edgesmith.exporters.linting.lint_fix import Fixed, fix
from edgesmith.exporters.linting.lint_onnxruntime import VNNI_RULES
from edgesmith.exporters.linting.lint_tensorrt import RULES

from ..conftest import Network
from ..graphs import ASYMMETRIC, S8, U8, decibels, initializer, kinds, node, optimised, random, run
from .lint_changes import axis, output_dtype, setting, unnamed_bias
from .lint_graphs import PAIR, in_function, layer, model, one, pair, residual


def fixed(made: onnx.ModelProto, rules: dict = RULES) -> Fixed:  # type: ignore[type-arg]
    before = made.SerializeToString(deterministic=True)
    found = fix(made, lambda candidate: check(candidate, rules))
    assert made.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(found.model, full_check=True)
    return found


def left(found: Fixed, rules: dict = RULES) -> list[str]:  # type: ignore[type-arg]
    return [finding.rule for finding in check(found.model, rules)]


def feed(made: onnx.ModelProto, scale: float = 4.0) -> dict[str, np.ndarray]:
    """So wide that some values are clipped."""
    shape = [size.dim_value for size in made.graph.input[0].type.tensor_type.shape.dim]
    return {"x": random(*shape, scale=scale)}


UNSIGNED = "UINT8 around 128 written as INT8 around 0: the same numbers"
WRITTEN = "zero point(s) of 0 written that were missing"


@pytest.mark.parametrize(
    ("made", "changes"),
    [
        (partial(layer, zero=np.uint8(128)), (f"2 tensor(s) in {UNSIGNED}",)),
        (partial(layer, "MatMul", zero=np.uint8(128), weight_type=np.uint8, weight_zero=128), (f"3 tensor(s) in {UNSIGNED}",)),
        (partial(residual, np.uint8(128)), (f"6 tensor(s) in {UNSIGNED}",)),
        (partial(in_function, np.uint8(128)), (f"1 tensor(s) in {UNSIGNED}",)),
        (
            partial(pair, [node("MaxPool", "q", "m", kernel_shape=[2, 2]), node("Transpose", "m", "i", perm=[0, 2, 3, 1])],
                    (2, 8, 6, 6), (2, 5, 5, 8), z=np.uint8(128)),
            (f"1 tensor(s) in {UNSIGNED}",),
        ),
        (
            partial(layer, zero=np.uint8(128), opset=21, change=output_dtype(TensorProto.UINT8)),
            (f"2 tensor(s) in {UNSIGNED}",),
        ),
        (partial(layer, "Gemm", weight_zero=-7), ("1 constant(s) written as INT8 around 0: the same numbers",)),
        (partial(layer, bias="int32"), ("1 INT32 bias(es) written in float: the same numbers",)),
        (
            partial(layer, bias="none", change=unnamed_bias),
            ("1 bias(es) without a name left out",),
        ),
        (partial(layer, "Gemm", bias="int32"), ("1 INT32 bias(es) written in float: the same numbers",)),
        (partial(layer, weight_zero=None), (f"1 {WRITTEN}",)),
        (partial(layer, zero=None, opset=21, change=output_dtype(TensorProto.INT8)), (f"4 {WRITTEN}",)),
        (partial(one, "Relu", (2, 8), (2, 8), 8), ("opset raised from 8 to 17",)),
        (
            partial(layer, zero=np.uint8(128), bias="int32", weight_zero=None),
            (f"2 tensor(s) in {UNSIGNED}", "1 INT32 bias(es) written in float: the same numbers", f"1 {WRITTEN}"),
        ),
    ],
)  # fmt: skip
def test_the_same_numbers_bit_for_bit(made: object, changes: tuple[str, ...]) -> None:
    original: onnx.ModelProto = made()  # type: ignore[operator]
    found = fixed(original)
    assert (found.changes, found.failures, left(found)) == (changes, (), [])
    expected, actual = (run(version, feed(original), optimise=False)["y"] for version in (original, found.model))
    assert np.array_equal(expected, actual) and np.abs(expected).max() > 0


@pytest.mark.parametrize(
    "made",
    [
        partial(layer, zero=np.uint8(0)),  # would need another scale
        partial(layer, zero=np.uint8(17)),
        partial(layer, zero=np.int8(3)),
        partial(layer, zero=None),
        partial(layer, weight_type=np.uint8, weight_zero=100),  # up to 155: past INT8
        partial(layer, weight_scale=0.0),
    ],
)
def test_what_would_change_numbers_is_left_alone(made: object) -> None:
    original: onnx.ModelProto = made()  # type: ignore[operator]
    found = fixed(original)
    assert found.changes == () and found.model is original
    assert left(found)


def test_a_function_of_another_opset_is_rewritten_too() -> None:
    made = in_function(np.uint8(128))
    made.functions[0].opset_import[0].version = 16
    found = fixed(made)
    assert (found.changes, left(found)) == ((f"1 tensor(s) in {UNSIGNED}",), [])
    assert np.array_equal(run(made, feed(made))["y"], run(found.model, feed(made))["y"])


def test_integers_that_are_seen_from_outside_keep_their_type() -> None:
    for inputs, outputs, nodes in (
        (TensorProto.UINT8, TensorProto.FLOAT, [node("DequantizeLinear", "x s z", "y")]),
        (TensorProto.FLOAT, TensorProto.UINT8, [node("QuantizeLinear", "x s z", "y")]),
    ):
        made = model(nodes, PAIR | {"z": np.uint8(128)}, (2, 8), (2, 8), types=(inputs, outputs))
        assert fixed(made).changes == ()
    nodes = [node("QuantizeLinear", "x s z", "q"), node("Cast", "q", "y", to=TensorProto.FLOAT)]
    assert fixed(model(nodes, PAIR | {"z": np.uint8(128)}, (2, 8), (2, 8))).changes == (), (
        "somebody else computes with them"
    )


def test_a_shared_zero_point_is_not_changed_for_others() -> None:
    """One constant is the zero point of a pair that can be rewritten and of one that cannot."""
    nodes = [
        node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "d"), node("QuantizeLinear", "d s z", "r"),
        node("Cast", "r", "y", to=TensorProto.FLOAT),
    ]  # fmt: skip
    made = model(nodes, PAIR | {"z": np.uint8(128)}, (2, 8), (2, 8))
    found = fixed(made)
    assert found.changes == (f"1 tensor(s) in {UNSIGNED}",)
    assert initializer(found.model, "z") == 128 and initializer(found.model, "z_int8") == 0
    assert np.array_equal(run(made, feed(made))["y"], run(found.model, feed(made))["y"])


def test_the_float_type_of_a_dequantizer_stays() -> None:
    """`output_dtype` is the integer type of a QuantizeLinear, and from opset 23 on the float type of a DequantizeLinear."""
    made = pair(z=np.uint8(128))
    made.opset_import[0].version, made.ir_version = 23, 11
    for made_by, kind in zip(made.graph.node, (TensorProto.UINT8, TensorProto.FLOAT), strict=True):
        made_by.attribute.append(helper.make_attribute("output_dtype", kind))
    quantize, dequantize = fixed(made).model.graph.node
    assert [entry.name for entry in quantize.attribute] == []
    assert [(entry.name, entry.i) for entry in dequantize.attribute] == [("output_dtype", TensorProto.FLOAT)]


def test_a_bias_in_half_precision_is_not_cut_off() -> None:
    made = layer(bias="int32", scale_type=np.float16, opset=19, change=setting(b=np.full(8, 200_000, np.int32)))
    assert (
        initializer(fixed(made).model, "bd").tolist()
        == [float(np.float16(200_000 * np.float32(np.float16(0.001))))] * 8
    )


def test_a_bias_with_a_scale_per_channel() -> None:
    scales = np.array([1, 2, 4, 8, 16, 32, 64, 128], np.float32) / 128
    found = fixed(layer(bias="int32", change=setting(bs=scales, b=np.arange(8, dtype=np.int32) - 4)))
    assert initializer(found.model, "bd").tolist() == [-4 / 128, -6 / 128, -8 / 128, -8 / 128, 0, 32 / 128, 1, 3]
    assert not {"b", "bs", "bz"} & {tensor.name for tensor in found.model.graph.initializer}


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "Gemm"])
def test_scales_per_channel_in_an_old_opset(kind: str) -> None:
    """As ONNX Runtime's quantizer leaves them: the file does not load. Its twin in opset 17 says what it means."""
    found = fixed(layer(kind, opset=11, weight_scale=0.05), VNNI_RULES)
    assert found.changes[0] == "opset raised from 11 to 17"
    twin = layer(kind, weight_scale=0.05)
    expected, actual = (run(version, feed(twin), optimise=False)["y"] for version in (twin, found.model))
    assert np.array_equal(expected, actual)


def test_half_scales_in_an_old_opset() -> None:
    made = layer(scale_type=np.float16)
    found = fixed(made)
    assert (found.changes, left(found)) == (("opset raised from 17 to 19",), [])
    twin = layer(scale_type=np.float16, opset=19)
    values = {"x": feed(made)["x"].astype(np.float16)}
    assert np.array_equal(run(twin, values)["y"], run(found.model, values)["y"])


def test_an_opset_that_cannot_be_raised_is_said() -> None:
    made = one("Upsample", (1, 1, 2, 2), (1, 1, 4, 4), 8, scales=[1.0, 1.0, 2.0, 2.0])
    made.graph.node[0].op_type = "NoSuchOperator"
    found = fix(made, lambda candidate: check(candidate, RULES))
    assert found.changes == ()
    (failure,) = found.failures
    assert failure.startswith("opset 8 cannot be raised to 17: ")


# --- on a trained network, in the dialects of its own targets


@pytest.fixture(scope="module")
def written(digits: Network) -> dict[str, onnx.ModelProto]:
    return {dialect.name: qdq.write_qdq(digits.model, digits.params, dialect) for dialect in (S8, U8, ASYMMETRIC)}


def test_a_file_for_tensorrt_becomes_one_for_x86(
    digits: Network, written: dict[str, onnx.ModelProto], tmp_path: Path
) -> None:
    found = fixed(written["s8-symmetric"], VNNI_RULES)
    assert left(found, VNNI_RULES) == []
    assert kinds(found.model) == kinds(written["s8-symmetric"])
    for name, made in (("before", written["s8-symmetric"]), ("after", found.model)):
        onnx_file.save(made, tmp_path / f"{name}.onnx")
    before, after = optimised(tmp_path / "before.onnx"), optimised(tmp_path / "after.onnx")
    assert after["QLinearConv"] > before["QLinearConv"], "which is what makes it fast"
    expected, actual = (run(made, digits.feed)["logits"] for made in (written["s8-symmetric"], found.model))
    assert decibels(expected, actual) > 25
    assert digits.labels is not None
    accuracy = [(values.argmax(1) == digits.labels).mean() for values in (expected, actual)]
    assert abs(accuracy[0] - accuracy[1]) < 0.01


@pytest.mark.parametrize("zero", [0, 3, -128, 127])
def test_signed_activations_with_any_zero_point(zero: int) -> None:
    """As ONNX Runtime's quantizer writes them by default."""
    made = layer(zero=np.int8(zero), bias="int32")
    found = fixed(made, VNNI_RULES)
    assert found.changes == ("2 tensor(s) in INT8 written as UINT8, 128 more and the zero point too: the same numbers",)
    assert left(found, VNNI_RULES) == [] and initializer(found.model, "z_uint8") == zero + 128
    assert initializer(found.model, "w").dtype == np.int8, "kernels want signed weights"
    assert np.array_equal(run(made, feed(made), optimise=False)["y"], run(found.model, feed(made), optimise=False)["y"])


def test_what_is_left_of_a_file_for_x86(written: dict[str, onnx.ModelProto]) -> None:
    """Biases and what is around 128 can be rewritten; what starts at 0 behind a Relu would need another scale."""
    found = fixed(written["u8"])
    assert any("INT32 bias" in change for change in found.changes) and any(
        UNSIGNED in change for change in found.changes
    )
    remaining = check(found.model, RULES)
    assert {finding.rule for finding in remaining} == {"unsigned"} and not any(finding.fixable for finding in remaining)
    assert all("zero point 0" in finding.problem for finding in remaining)


# --- files


def test_the_fixed_file_and_its_proof(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(layer(zero=np.uint8(128), bias="int32"), path)
    before = path.read_bytes()
    result = fix_file(path, "tensorrt")
    assert (result.out, result.left, result.not_compared) == (str(tmp_path / "m.fixed.onnx"), (), "")
    assert result.difference == lint_file.Difference(output="y", largest=0.0, magnitude=result.difference.magnitude)  # type: ignore[union-attr]
    assert result.difference is not None and result.difference.magnitude > 1
    assert path.read_bytes() == before
    assert lint_file.lint_file(Path(str(result.out)), "tensorrt").findings == ()


def test_nothing_is_written_where_nothing_can_be_fixed(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(layer(zero=np.uint8(0)), path)
    result = fix_file(path, "tensorrt")
    assert (result.out, result.changes, result.left) == (None, (), result.findings)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_the_file_itself_is_never_written_to(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(layer(zero=np.uint8(128)), path)
    with pytest.raises(UsageError) as raised:
        fix_file(path, "tensorrt", tmp_path / "." / "m.onnx")
    assert str(raised.value) == f"--out {path}: is the file itself, which stays as it is; name another"


def test_a_failure_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(layer(zero=np.uint8(128)), path)
    monkeypatch.setattr(lint_file, "compare", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fix_file(path, "tensorrt")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_why_two_files_were_not_compared(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(layer(opset=12), path)
    result = fix_file(path, "onnxruntime-cpu")
    assert result.difference is None
    assert result.not_compared.startswith("ONNX Runtime cannot run the original: ")
    made = layer(zero=np.uint8(128))
    made.graph.node.append(helper.make_node("Log", ["y"], ["e"]))
    made.graph.output.append(helper.make_tensor_value_info("e", TensorProto.FLOAT, None))
    assert lint_file.compare(made, made, 0) == (None, "NaN or infinity comes out of made-up inputs")


def test_dynamic_axes_get_sizes() -> None:
    made = pair()
    for value in (made.graph.input[0], made.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
        value.type.tensor_type.shape.dim[1].dim_param = "time"
    other = pair(s=np.float32(0.1))
    other.graph.input[0].CopyFrom(made.graph.input[0])
    other.graph.output[0].CopyFrom(made.graph.output[0])
    difference, reason = lint_file.compare(made, other, 0)
    assert reason == "" and difference is not None
    assert difference.magnitude == np.float32(0.05) * np.float32(128), "wide enough to be clipped"
    assert 0 < dataclasses.astuple(difference)[1] < 6.4 + 6.4
    assert lint_file.compare(made, other, 0)[0] == difference, "the same seed, the same inputs"


def test_a_negative_axis(tmp_path: Path) -> None:
    made = layer(weight_type=np.uint8, weight_zero=128, change=axis(-4))
    found = fixed(made)
    assert left(found) == []
    assert np.array_equal(run(made, feed(made), optimise=False)["y"], run(found.model, feed(made), optimise=False)["y"])
