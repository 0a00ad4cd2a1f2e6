"""One block of a transformer as torch.onnx writes it, shape arithmetic and all; dynamic in batch and length."""

import numpy as np
import onnx

from .graphs import FLOAT, graph, node, random

WIDTH, HEADS, INNER = 32, 4, 64
EACH = WIDTH // HEADS
_ATTENTION = [
    node("Shape", "x", "batch", start=0, end=1), node("Shape", "x", "tokens", start=1, end=2),
    node("Concat", "batch tokens rest each", "split", axis=0),
    *(part for name in "qkv" for part in (
        node("MatMul", f"x w{name}", f"{name}m"), node("Add", f"{name}m b{name}", f"{name}b"),
        node("Reshape", f"{name}b split", f"{name}s"), node("Transpose", f"{name}s", f"{name}h", perm=[0, 2, 1, 3]),
    )),
    node("Shape", "ks", "shape"), node("Gather", "shape order", "turned", axis=0),
    node("Slice", "turned two three", "length"), node("Slice", "turned three four", "columns"),
    node("Slice", "turned zero two", "outer"),
    node("Concat", "rest length columns", "flat", axis=0), node("Concat", "outer columns length", "whole", axis=0),
    node("Reshape", "kh flat", "k3"), node("Transpose", "k3", "k3t", perm=[0, 2, 1]), node("Reshape", "k3t whole", "kt"),
    node("MatMul", "qh kt", "scores"), node("Softmax", "scores", "shares"), node("MatMul", "shares vh", "mixed"),
    node("Transpose", "mixed", "mixedt", perm=[0, 2, 1, 3]), node("Concat", "batch tokens rest", "joined", axis=0),
    node("Reshape", "mixedt joined", "context"),
]  # fmt: skip
_REST = [
    node("MatMul", "context wo", "om"), node("Add", "om bo", "ob"), node("Add", "ob x", "r1"),
    node("LayerNormalization", "r1 gain shift", "n1"),
    node("MatMul", "n1 wi", "im"), node("Add", "im bi", "ib"),
    node("Div", "ib root", "g1"), node("Erf", "g1", "g2"), node("Add", "g2 one", "g3"), node("Mul", "ib g3", "g4"),
    node("Mul", "g4 half", "gelu"),
    node("MatMul", "gelu wf", "fm"), node("Add", "fm bf", "fb"), node("Add", "fb n1", "r2"),
    node("LayerNormalization", "r2 gain shift", "y"),
]  # fmt: skip
FEED = {"x": random(3, 7, WIDTH, seed=9)}


def block(outlier: float = 1.0) -> onnx.ModelProto:
    """The block; `outlier` is how much larger one channel is behind the GELU, and how much less it weighs there."""
    sizes = {"q": (WIDTH, WIDTH), "k": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "o": (WIDTH, WIDTH)}
    sizes |= {"i": (WIDTH, INNER), "f": (INNER, WIDTH)}
    weights = {f"w{name}": random(*size, seed=ord(name), scale=size[0] ** -0.5) for name, size in sizes.items()}
    weights |= {f"b{name}": random(size[1], seed=ord(name) + 1, scale=0.1) for name, size in sizes.items()}
    weights |= {"gain": np.ones(WIDTH, np.float32), "shift": random(WIDTH, seed=5, scale=0.1)}
    weights["wi"][:, 3] *= outlier
    weights["wf"][3] /= outlier
    numbers = {"root": 2**0.5, "one": 1, "half": 0.5}
    whole = {"rest": [-1], "each": [EACH], "order": [0, 2, 1, 3], "zero": [0], "two": [2], "three": [3], "four": [4]}
    weights |= {name: np.asarray(value, np.float32) for name, value in numbers.items()}
    weights |= {name: np.asarray(value, np.int64) for name, value in whole.items()}
    nodes = [onnx.NodeProto.FromString(each.SerializeToString()) for each in [*_ATTENTION, *_REST]]
    shape = ["batch", "tokens", WIDTH]
    model = graph(nodes, weights, {"x": shape}, {"y": shape})
    # As exporters note them down; ONNX Runtime fuses an Add and a norm only where it knows their shape.
    model.graph.value_info.extend(onnx.helper.make_tensor_value_info(name, FLOAT, shape) for name in ("context", "r1"))
    return onnx.shape_inference.infer_shapes(model)
