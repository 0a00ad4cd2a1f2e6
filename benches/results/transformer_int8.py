"""A sentence encoder in INT8, form by form: `python benches/results/transformer_int8.py FOLDER [SECONDS] [THREADS]`.

FOLDER is that of public_onnx.py and holds minilm.onnx and minilm.npz. For batch 1 and 32: where the time goes, from
ONNX Runtime's profile; how close each form is on sentences that nothing was found with; how much faster it is, paired
with the original, SECONDS for each batch size (30).
"""

import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx

from edgesmith.benches.metrics import closeness
from edgesmith.benches.timing import latency
from edgesmith.compressor.int8 import recover
from edgesmith.compressor.int8.calibrate import calibrate
from edgesmith.compressor.int8.closeness_judge import run
from edgesmith.core.values import Arrays
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.graph.canonical import canonicalise
from edgesmith.exporters.int8 import dynamic, ort_glue
from edgesmith.exporters.sessions import ort_kernels
from edgesmith.exporters.targets.onnxruntime_cpu import OnnxRuntimeCpu

CALIBRATION, TEST = slice(0, 150), slice(225, 300)
BATCHES = (1, 32)
KINDS = {
    "products with weights": ("DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
    "residual + norm": ("SkipLayerNormalization", "LayerNormalization", "Sum"),
    "GELU": ("Gelu", "BiasGelu"),
    "softmax, its guard": ("Softmax", "IsNaN", "Where"),
    "quantize": ("DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear"),
    "smoothing": ("Mul",),
    "Add": ("Add",),
    "move, shapes": ("Transpose", "Reshape", "Slice", "Concat", "Shape", "Gather", "Unsqueeze", "Squeeze", "Expand"),
}


def feeds_of(arrays: Mapping[str, np.ndarray], rows: slice, batch: int) -> list[Arrays]:
    starts = range(rows.start, rows.stop - batch + 1, batch)
    return [{name: array[start : start + batch] for name, array in arrays.items()} for start in starts]


def forms(original: Path, arrays: Mapping[str, np.ndarray], folder: Path) -> dict[str, Path]:
    """Every way to write it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    found = {"float": original}
    found["ONNX Runtime's quantize_dynamic, per channel"] = folder / "theirs.onnx"
    quantize_dynamic(
        original, folder / "theirs.onnx", per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"]
    )
    samples = feeds_of(arrays, CALIBRATION, 1)
    graph, target = canonicalise(onnx_file.load(original)), OnnxRuntimeCpu()
    smooth, told = recover.before_ranges(["smooth"], graph, lambda: iter(samples), "cpu", "--recover")
    print(told[0], flush=True)
    dialects = {dialect.name: dialect for dialect in target.dialects()}
    for title, model in (("", graph), (", smoothed", smooth)):
        params = calibrate(model, iter(samples), "mse")
        for name in ("u8-asymmetric", "dynamic"):
            dialect = dialects[name]
            found[name + title] = folder / f"{name}{len(title)}.onnx"
            target.write(model, params.params, dialect, found[name + title], params.keep_float)
            if title:
                written = dynamic.write_int8(model, params.params, dialect, params.keep_float)
                found[f"{name}{title}, glue as it was"] = folder / f"{name}-plain.onnx"
                onnx_file.save(written, found[f"{name}{title}, glue as it was"])
    ort_glue.rewrite(graph)
    found["float, glue rewritten"] = folder / "float.onnx"
    onnx_file.save(graph, found["float, glue rewritten"])
    return found


def profile(path: Path, model: onnx.ModelProto, feeds: list[Arrays], threads: int) -> dict[str, float]:
    """Kind of kernel -> milliseconds of one run. A float product with weights is one that the graph has as a MatMul."""
    weights = {tensor.name for tensor in model.graph.initializer}
    layers = {node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights}
    kind_of = {operator: kind for kind, operators in KINDS.items() for operator in operators}
    times: dict[str, float] = defaultdict(float)
    for kernel in ort_kernels.kernels(path, model, feeds, threads, 2.0):
        kind = kind_of.get(kernel.operator, "others")
        if kernel.operator in ("MatMul", "FusedMatMul", "MatMulInteger"):
            kind = "products with weights" if kernel.node in layers else "attention's products"
        times[kind] += kernel.milliseconds
    return {**times, "all": sum(times.values())}


def table(title: str, rows: Mapping[str, Mapping[str, object]], show: Callable[[object], str]) -> None:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    print(f"\n| {title} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(show(row[column]) if column in row else '-' for column in columns)} |")


def main() -> None:
    folder, rest = Path(sys.argv[1]), [float(text) for text in sys.argv[2:]]
    seconds, threads = (rest[0] if rest else 30.0), (int(rest[1]) if len(rest) > 1 else 1)
    arrays = dict(np.load(folder / "minilm.npz"))
    with tempfile.TemporaryDirectory() as name:
        found = forms(folder / "minilm.onnx", arrays, Path(name))
        graph = canonicalise(onnx_file.load(folder / "minilm.onnx"))
        test = feeds_of(arrays, TEST, 1)
        expected = list(run(found["float"], test))
        results: dict[str, dict[str, object]] = {
            form: {"dB": f"{closeness.worst_snr(closeness.compare(expected, list(run(path, test)))):.1f}"}
            for form, path in list(found.items())[1:]
        }
        table("form", results, str)
        for batch in BATCHES:
            feeds = feeds_of(arrays, CALIBRATION, batch)[:4]
            times = {form: profile(path, graph, feeds, threads) for form, path in found.items()}
            table(f"ms of one run, batch {batch}", times, lambda value: f"{value:.2f}")
        feeds_by_batch = {batch: feeds_of(arrays, CALIBRATION, batch)[:4] for batch in BATCHES}
        for measured in latency.compare(list(found.values()), feeds_by_batch, threads, seconds=seconds):
            print(f"batch {measured.batch}: float {measured.latency[0].p50:.2f} ms, A/A {measured.noise_floor:.1%}")
            for form, speedup in zip(results, measured.speedup, strict=True):
                text = f"{speedup.value:.2f}x ({speedup.low:.2f} to {speedup.high:.2f})"
                results[form][f"batch {measured.batch}"] = text
        table("form", results, str)


if __name__ == "__main__":
    main()
