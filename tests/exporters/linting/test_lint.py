"""What the linter says, word for word; where it looks; what it takes for constant."""

from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgesmith.exporters.linting.lint import Finding, check, summary
from edgesmith.exporters.linting.lint_onnxruntime import RULES as PLAIN_RULES, SATURATING_RULES, VNNI_RULES
from edgesmith.exporters.linting.lint_tensorrt import RULES

from ..graphs import node, random
from .lint_changes import axis, computed, from_data, in_constant_nodes, output_dtype, per_channel_activation, setting
from .lint_graphs import (
    PAIR,
    S8,
    U8,
    in_branches,
    in_function,
    input_as_output,
    integer,
    layer,
    loop,
    microsoft,
    model,
    one,
    pair,
)


def said(made: onnx.ModelProto, severity: str = "refused") -> list[str]:
    """Of the TensorRT rules."""
    return [finding.text for finding in check(made, RULES) if finding.severity == severity]


SYMMETRIC = "calibrate it symmetrically, as INT8"


@pytest.mark.parametrize("change", [None, in_constant_nodes])
@pytest.mark.parametrize(
    ("zero", "texts"),
    [
        (S8(3), ["{}: zero point 3; it must be 0; " + SYMMETRIC + " [zero-point]"] * 4),
        (U8(17), ["{}: works on UINT8 with zero point 17; " + SYMMETRIC + " [unsigned]"] * 4),
        (U8(128), ["{}: works on UINT8 with zero point 128; INT8 with zero point 0 holds the same numbers, as --fix writes [unsigned]"] * 4),
        (U8(0), [
            "{}: works on UINT8 with zero point 0: builds with a warning, and clips at 127; " + SYMMETRIC
            + ": at twice the scale it would lose a bit [unsigned]",
            "{}: works on UINT8 with zero point 0; " + SYMMETRIC + ": at twice the scale it would lose a bit [unsigned]",
        ] * 2),
    ],
)  # fmt: skip
def test_zero_points_of_activations(zero: np.generic, texts: list[str], change: object) -> None:
    nodes = ["QuantizeLinear 'n_q'", "DequantizeLinear 'n_d'", "QuantizeLinear 'n_yq'", "DequantizeLinear 'n_y'"]
    made = layer(zero=zero, change=change)  # type: ignore[arg-type]
    assert said(made) == [text.format(name) for text, name in zip(texts, nodes, strict=True)]


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (partial(layer, weight_zero=7), "DequantizeLinear 'n_k': zero point 7; it must be 0; " + SYMMETRIC + " [zero-point]"),
        (
            partial(layer, "Gemm", weight_zero=254, weight_type=U8),
            "DequantizeLinear 'n_k': works on UINT8 with zero point 254; " + SYMMETRIC + " [unsigned]",
        ),
        (
            partial(layer, zero=None, opset=21, change=output_dtype(TensorProto.UINT8)),
            "QuantizeLinear 'n_q': no zero point, which means UINT8; taken as INT8 in silence: clips at 127; "
            "calibrate it symmetrically, as INT8, and write its zero point of 0 [missing-zero-point]",
        ),
        (
            partial(layer, bias="int32"),
            "DequantizeLinear 'n_bd': works on an INT32 bias; keep the bias in float, as --fix does [int32-bias]",
        ),
        (
            partial(layer, change=from_data("s")),
            "QuantizeLinear 'n_q': its scale is not a constant; fold the constants; ranges that depend on the input are not to "
            "be had: calibrate it [dynamic-parameters]",
        ),
        (
            partial(layer, weight_scale=-0.5),
            "DequantizeLinear 'n_k': scale -0.5; it must be positive; a channel of zeros may have any positive scale [scale]",
        ),
        (
            partial(layer, change=setting(ws=np.full(5, 0.01, np.float32), wz=np.zeros(5, S8))),
            "DequantizeLinear 'n_k': 5 scales along axis 0, which has 8 values; write one for the tensor, or one for each "
            "output channel [scale-count]",
        ),
        (
            partial(layer, change=setting(wz=S8(0))),
            "DequantizeLinear 'n_k': 1 zero point(s) for 8 scale(s); write as many, as --fix does [zero-point-count]",
        ),
        (
            partial(layer, zero=np.int16(0), opset=21),
            "QuantizeLinear 'n_q': works on INT16; calibrate it symmetrically, as INT8 [integer-type]",
        ),
        (
            partial(integer, "QLinearConv"),
            "QLinearConv 'n_i': an integer operator, which TensorRT has none of; quantize the float original again, with Q/DQ "
            "pairs [integer-operator]",
        ),
        (
            partial(microsoft, "FastGelu", "x"),
            "FastGelu 'n_y': TensorRT has no such operator (com.microsoft); express it with other operators, or write a plugin "
            "of that name [unsupported-operator]",
        ),
        (
            partial(loop, go="", reads="c"),
            "Loop 'n_y': its body reads a condition, and it is given none; give it True, and let the body pass it on, where the "
            "trip count alone ends it [operator-use]",
        ),
        (
            partial(loop, "", reads="i"),
            "Loop 'n_y': its body reads the number of the iteration, and it is given none; give it a trip count: the largest "
            "INT64, where the condition alone ends it [operator-use]",
        ),
        (
            partial(loop, "", ""),
            "Loop 'n_y': has neither a trip count nor a condition; give it a trip count [operator-use]",
        ),
        (
            input_as_output,
            "input 'x' is an output too, and the engine's input is called '__x'; give out an Identity of it, under a name of its "
            "own [input-as-output]",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(made: object, text: str) -> None:
    assert said(made())[0] == text  # type: ignore[operator]


@pytest.mark.parametrize(
    ("made", "severity", "text"),
    [
        (
            partial(layer, "ConvTranspose", axis=None, group=2), "risky",
            "ConvTranspose 'n_m': a transposed convolution of INT8 weights in groups, which TensorRT before 10.9 cannot build; "
            "keep its weights in float, or use one group [grouped-transposed]",
        ),
        (
            partial(layer, group=2), "slow",
            "Conv 'n_m': a convolution of INT8 weights in groups, which TensorRT splits: reported slower than FP16; keep its "
            "weights in float [grouped-convolution]",
        ),
        (
            partial(layer, axis=1), "risky",
            "Conv 'n_m': scales of its weights along axis 1; INT8 kernels want them along axis 0; one scale for the weights, "
            "or one for each value along that axis [weight-axis]",
        ),
        (
            partial(layer, "ConvTranspose", axis=1), "risky",
            "ConvTranspose 'n_m': scales of its weights along axis 1; INT8 kernels want them along axis 0; one scale for the "
            "weights, or one for each value along that axis [weight-axis]",
        ),
        (
            partial(layer, weight_zero=None), "risky",
            "DequantizeLinear 'n_k': no zero point, which TensorRT 8 refuses; write 0, as --fix does [missing-zero-point]",
        ),
        (
            partial(layer, change=per_channel_activation), "risky",
            "QuantizeLinear 'n_q': one scale for each channel of an activation, which a product cannot be scaled back by; one "
            "scale for the tensor; differences between channels belong in the weights [activation-granularity]",
        ),
        (
            partial(layer, scale_type=np.float16), "risky",
            "QuantizeLinear 'n_q': a 16-bit scale in opset 17, which needs 19; raise the opset, as --fix does [scale-type]",
        ),
        (
            partial(one, "Relu", (2,), (2,), 8), "risky",
            "opset 8; TensorRT documents 9 to 25; raise it, as --fix does [opset]",
        ),
        (
            partial(one, "Relu", (2,), (2,), 26), "risky",
            "opset 26; TensorRT documents 9 to 25; export it with opset 25 or below [opset]",
        ),
        (
            partial(one, "DeformConv", (2,), (2,), 19), "risky",
            "DeformConv 'n_y': needs a plugin; TensorRT for RTX has none; load the plugin, or express it with other operators "
            "[unsupported-operator]",
        ),
    ],
)  # fmt: skip
def test_what_is_risky_or_slow(made: object, severity: str, text: str) -> None:
    assert said(made(), severity)[0] == text  # type: ignore[operator]
    assert said(made()) == []  # type: ignore[operator]


@pytest.mark.parametrize(
    "made",
    [
        partial(layer, group=8),  # depthwise
        partial(layer, "ConvTranspose", axis=None),
        partial(layer, change=axis(-4)),  # the same axis from behind
        partial(layer, change=computed("s", "Cast", to=TensorProto.FLOAT)),
        partial(layer, "MatMul", change=computed("z")),
        partial(one, "Relu", (2,), (2,), 9),
        partial(one, "Relu", (2,), (2,), 25),
    ],
)
def test_what_nothing_is_said_of(made: object) -> None:
    assert check(made(), RULES) == ()  # type: ignore[operator]


def test_a_float_weight_in_groups_is_not_int8s_business() -> None:
    made = model(
        [node("ConvTranspose", "x w", "y", group=2)], {"w": random(8, 4, 3, 3)}, (2, 8, 6, 6), (2, 8, 8, 8)
    )  # fmt: skip
    assert check(made, RULES) == ()


def test_operators_in_a_form_that_is_not_there() -> None:
    use = "{}; {} [operator-use]"
    for made, text in (
        (one("MaxPool", (1, 1, 4, 4), (1, 1, 2, 2), kernel_shape=[2, 2], dilations=[2, 2]),
         use.format("MaxPool 'n_y': TensorRT pools without dilation only", "express it with other operators")),
        (model([node("ReduceSum", "x x", "y")], {}, (1,), (1,)),
         use.format("ReduceSum 'n_y': its input 1 is not a constant; TensorRT must know it when it builds", "fold the constants, or give it a fixed value")),
        (model([node("MaxPool", "x", "y i", kernel_shape=[2, 2])], {}, (1, 1, 4, 4), (1, 1, 3, 3)),
         use.format("MaxPool 'n_y': TensorRT gives its first output only", "leave out the others")),
    ):  # fmt: skip
        assert said(made) == [text]
    assert said(one("MaxPool", (1, 1, 4, 4), (1, 1, 3, 3), kernel_shape=[2, 2], dilations=[1, 1])) == []


def test_inside_branches_and_functions() -> None:
    text = "zero point 3; it must be 0; calibrate it symmetrically, as INT8 [zero-point]"
    assert said(in_branches(S8(3))) == [
        f"{kind} 'n_{branch}{end}': {text}"
        for branch in "ba"  # attributes are sorted: else_branch comes first
        for kind, end in (("QuantizeLinear", "q"), ("DequantizeLinear", "o"))
    ]
    for opset in (16, 17, 18):  # of the function; the model has 17, and a pair is the same in all
        made = in_function(S8(3))
        made.functions[0].opset_import[0].version = opset
        onnx.checker.check_model(made)
        assert [finding.rule for finding in check(made, RULES)] == ["zero-point"] * 2


def test_a_scale_that_a_caller_may_replace_is_no_constant() -> None:
    made = pair()
    made.graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, []))
    assert {finding.rule for finding in check(made, RULES)} == {"dynamic-parameters"}


def test_numbers_in_constant_nodes() -> None:
    nodes = [
        node("Constant", "", "s", value_float=0.1), node("Constant", "", "zero", value_int=0),
        node("Cast", "zero", "z", to=TensorProto.INT8), node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"), node("Constant", "", "axes", value_ints=[1]),
        node("ReduceSum", "d axes", "y"),
    ]  # fmt: skip
    assert check(model(nodes, {}, (2, 8), (2, 1)), RULES) == ()


def test_findings_come_in_the_order_of_the_nodes() -> None:
    made = layer(zero=S8(3), bias="int32", weight_zero=7)
    assert [finding.node for finding in check(made, RULES)] == ["n_q", "n_d", "n_k", "n_bd", "n_yq", "n_y"]


def test_a_long_list_is_cut() -> None:
    findings = [Finding(rule="r", problem=f"p{index}", remedy="m") for index in range(7)]
    assert summary(findings) == (
        "p0; m [r]; p1; m [r]; p2; m [r]; p3; m [r]; p4; m [r]; and 2 more"
    )  # fmt: skip
    assert summary(findings[:1]) == "p0; m [r]"


# --- ONNX Runtime on a CPU


def relu_between(zero: np.generic) -> onnx.ModelProto:
    """Conv -> pair -> Relu -> pair."""
    nodes = [
        node("Conv", "x w", "c"), node("QuantizeLinear", "c s z", "q"), node("DequantizeLinear", "q s z", "d"),
        node("Relu", "d", "r"), node("QuantizeLinear", "r s z", "rq"), node("DequantizeLinear", "rq s z", "y"),
    ]  # fmt: skip
    return model(nodes, PAIR | {"z": zero, "w": random(8, 8, 3, 3)}, (2, 8, 6, 6), (2, 8, 4, 4))


def test_what_is_slow_on_x86() -> None:
    pair_text = (
        "QuantizeLinear 'n_q': a pair between a node and its Relu keeps the two from being fused; quantize what the Relu gives "
        "instead [pair-before-relu]"
    )
    signed = (
        "QuantizeLinear 'n_{}': signed activations are slow on x86; as UINT8, 128 more, they are the same numbers, --fix writes that "
        "[signed-activations]"
    )
    found = check(relu_between(S8(0)), VNNI_RULES)
    assert {finding.severity for finding in found} == {"slow"}
    assert [finding.text for finding in found] == [pair_text, signed.format("q"), signed.format("rq")]
    assert [finding.text for finding in check(relu_between(S8(0)), PLAIN_RULES)] == [pair_text]
    assert [finding.text for finding in check(relu_between(U8(128)), VNNI_RULES)] == [
        pair_text,
        "QuantizeLinear 'n_rq': zero point 128 behind a Relu, which is then run by itself; with zero point 0 the Relu is "
        "dropped, --fix writes it [zero-point-after-relu]",
    ]
    assert [finding.rule for finding in check(relu_between(U8(0)), VNNI_RULES)] == ["pair-before-relu"]


def test_weights_are_signed_and_meant_to_be() -> None:
    assert check(layer(zero=U8(128), weight_type=np.float32), VNNI_RULES) == ()


def test_what_saturates_without_vnni() -> None:
    """255 * 128 fits into 16 bits, 255 * 129 does not; the sum of two weights of unlike sign always fits."""
    pairs = [64, 64, -64, -65, 127, -127, 65, 64]

    def weights(values: list[int]) -> onnx.ModelProto:
        channels = np.broadcast_to(np.array(values, S8).reshape(1, 8, 1, 1), (8, 8, 3, 3))
        return layer(zero=U8(128), change=setting(w=np.ascontiguousarray(channels)))

    text = (
        "Conv 'n_m': 144 of 288 pairs of its weights can saturate: their products are added in 16 bits without VNNI; write "
        "weights in 7 bits: quantize it for this target [saturating-weights]"
    )
    found = check(weights(pairs), SATURATING_RULES)
    assert [(finding.text, finding.severity) for finding in found] == [(text, "risky")]
    assert check(weights([64, 64, -64, -64, 127, -127, -64, 127]), SATURATING_RULES) == ()
    assert check(layer(), SATURATING_RULES) == (), "signed activations go another way there"


@pytest.mark.parametrize(
    ("made", "rule"),
    [
        (partial(layer, zero=U8(128), opset=12), "opset"),
        (partial(layer, "Gemm", zero=U8(128), opset=10), "opset"),
        (partial(layer, zero=U8(128), scale_type=np.float16), "scale-type"),
        (partial(layer, zero=U8(128), change=setting(wz=np.zeros(4, S8))), "zero-point-count"),
        (partial(layer, zero=U8(128), change=axis(7)), "scale-count"),
    ],
)
def test_what_onnx_itself_refuses(made: object, rule: str) -> None:
    found = check(made(), VNNI_RULES)  # type: ignore[operator]
    assert {(finding.rule, finding.severity) for finding in found} == {(rule, "refused")}
