"""Single ONNX Runtime kernels at the sizes of a MiniLM encoder: `python benches/results/transformer_kernels.py [ROWS]`.

ROWS are batch times tokens (768). One thread; the 20th percentile over 0.4 s, so that a busy machine shows less.
"""

import sys
import time
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 768
WIDTH, INNER, HEADS, TOKENS = 384, 1536, 12, 48
FOREIGN = "com.microsoft"
Arrays = dict[str, np.ndarray]


def milliseconds(steps: list[str], constants: Arrays, feed: Arrays) -> float:
    """Time a chain of nodes, each "Operator inputs -> outputs"; "-" is an input left out, "!" ONNX Runtime's own."""
    nodes = []
    for step in steps:
        left, right = step.split(" -> ")
        kind, *inputs = left.split()
        names = ["" if name == "-" else name for name in inputs]
        heads: dict[str, Any] = {"num_heads": HEADS} if "Attention" in kind else {}
        domain = FOREIGN if kind.endswith("!") else ""
        nodes.append(helper.make_node(kind.rstrip("!"), names, right.split(), domain=domain, **heads))
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feed.items()
    ]
    result = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "kernels", given, [result], tensors)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(FOREIGN, 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    model = helper.make_model(graph, opset_imports=imports, ir_version=9).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 10 or time.perf_counter() - start < 0.4:
        before = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - before)
    return float(np.percentile(times, 20)) * 1e3


def main() -> None:
    rng = np.random.default_rng(0)
    x, y, z = (rng.standard_normal((1, ROWS, width)).astype(np.float32) for width in (WIDTH, WIDTH, INNER))
    ones, zeros, inner = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32), np.ones(INNER, np.float32)
    norm: Arrays = {"g": ones, "b": zeros}
    two = {"x": x, "y": y}
    shown: dict[str, float] = {
        "residual and norm fused": milliseconds(["SkipLayerNormalization! x y g b -> o"], norm, two),
        "Sum, LayerNormalization": milliseconds(
            ["Sum x y -> s", "LayerNormalization s g b -> o"], norm, {"x": x, "y": y}
        ),
        "Mul by a vector": milliseconds(["Mul x g -> o"], {"g": 2 * ones}, {"x": x}),
        "BiasGelu, 1536": milliseconds(["BiasGelu! z b -> o"], {"b": inner}, {"z": z}),
        "Gelu, 1536": milliseconds(["Gelu z -> o"], {}, {"z": z}),
        "FastGelu, 1536": milliseconds(["FastGelu! z -> o"], {}, {"z": z}),
    }
    for rows, columns, data in ((WIDTH, WIDTH, x), (WIDTH, INNER, z[..., :WIDTH].copy()), (INNER, WIDTH, z)):
        weight = rng.standard_normal((rows, columns)).astype(np.float32)
        bias, scale = np.zeros(columns, np.float32), np.full(columns, 0.01, np.float32)
        integers = rng.integers(-127, 128, weight.shape).astype(np.int8)
        grid: Arrays = {"s": np.asarray(0.03, np.float32), "z": np.asarray(128, np.uint8)}
        int8: Arrays = {"w": integers, "ws": scale, "b": bias, **grid}
        product = "MatMulIntegerToFloat! q w s ws z - b -> o"
        size, feed = f"{rows} -> {columns}", {"a": data}
        shown[f"{size}: float, bias"] = milliseconds(
            ["MatMul a w -> m", "Add m b -> o"], {"w": weight, "b": bias}, feed
        )
        shown[f"{size}: INT8, range at run time"] = milliseconds(
            ["DynamicQuantizeMatMul! a w ws - b -> o"], {"w": integers, "ws": scale, "b": bias}, feed
        )
        shown[f"{size}: INT8, fixed range"] = milliseconds(["QuantizeLinear a s z -> q", product], int8, feed)
    batch = max(ROWS // TOKENS, 1)
    query = rng.standard_normal((batch, TOKENS, WIDTH)).astype(np.float32)
    mask = np.zeros((batch, 1, TOKENS, TOKENS), np.float32)
    heads = {"q": query, "k": query, "v": query}
    shown["MultiHeadAttention"] = milliseconds(["MultiHeadAttention! q k v -> o"], {}, heads)
    shown["MultiHeadAttention, mask"] = milliseconds(["MultiHeadAttention! q k v - - m -> o"], {}, heads | {"m": mask})
    for name, value in shown.items():
        print(f"| {name} | {value:.3f} |", flush=True)


if __name__ == "__main__":
    main()
