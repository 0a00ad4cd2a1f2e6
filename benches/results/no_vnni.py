"""INT8 on x86 without VNNI, emulated and real: ``python benches/results/no_vnni.py FOLDER``.

Real is ONNX Runtime on this CPU, where it has AVX2 and no VNNI; else under QEMU's user-mode emulator with a CPU model
that is like that (Debian: apt install qemu-user). What the CPU says it has is asked of its CPUID instruction and
printed. There, and so with its kernels:

1. random and adversarial layers (`--layers` of them), real against emulated, value by value;
2. the ResNet-20 of examples/fashion_mnist with INT8 weights of 8 and of 7 bits (min-max over 512 training images,
   dialect `u8`), real against emulated on `--images` test images, value by value.

Here, on all 10,000 test images: accuracy with saturation (emulated, or real) and without. Files go to FOLDER.
`--facts PATH` stores a few small layers with what the real kernels gave, for a test.
"""

import argparse
import ctypes
import importlib
import mmap
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from edgesmith.benches.metrics.accuracy import labels_of, paired_drop, predict
from edgesmith.benches.metrics.metrics import METRICS, scores_of
from edgesmith.core.task import Split
from edgesmith.core.values import Arrays, TensorSpec
from edgesmith.exporters import from_torch
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.graph.canonical import canonicalise
from edgesmith.exporters.int8 import placement, qdq
from edgesmith.exporters.sessions import taps
from edgesmith.exporters.sessions.cpu import this_cpu
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession
from edgesmith.exporters.sessions.saturating_session import SaturatingSession
from edgesmith.exporters.targets.onnxruntime_cpu import OnnxRuntimeCpu

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion_mnist"
KINDS = ("QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat")
BITS = {8: OnnxRuntimeCpu(name="with", cpu="x86-vnni"), 7: OnnxRuntimeCpu(name="without", cpu="x86")}
SAMPLES, BATCH = 512, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cpu", default="Haswell-noTSX", help="one of `qemu-x86_64 -cpu help`")
    parser.add_argument("--layers", type=int, default=400)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--facts", type=Path)
    parser.add_argument("--inside", action="store_true", help="this is the process under QEMU")
    options = parser.parse_args()
    if options.inside:
        inside(options)
        return
    if this_cpu() not in ("x86", "x86-vnni"):
        raise SystemExit("this is no x86 CPU: there is nothing to emulate, and nothing to compare with")
    sys.path.insert(0, str(EXAMPLE))
    data = importlib.import_module("images").splits()
    write_files(options.folder, data)
    emulated = this_cpu() == "x86-vnni"
    if emulated:
        under_qemu(options.cpu)
    else:
        inside(options)
    print_accuracy(options.folder, data["test"], emulated)


# --- files


def write_files(folder: Path, data: Mapping[str, Split]) -> None:
    """`float.onnx`, `8-bit.onnx`, `7-bit.onnx`, and the test images as `test.npz`."""
    folder.mkdir(parents=True, exist_ok=True)
    module = importlib.import_module("networks").ResNet20()
    importlib.import_module("train").load("resnet20", module)
    spec = TensorSpec(name="image", dtype="float32", shape=("batch", 1, 28, 28))
    from_torch.export(module, next(batches(data["train"])), (spec,), ("logits",), folder / "float.onnx")
    model = canonicalise(onnx_file.load(folder / "float.onnx"))
    placed = placement.place(model)
    seen = taps.observe(model, batches(data["train"]), placement.tensors_to_observe(placed))
    params = qdq.weight_params(model, placed) | {
        name: qdq.activation_params(found.low, found.high, "min-max") for name, found in seen.items()
    }
    for bits, target in BITS.items():
        target.write(model, params, target.dialects()[0], folder / f"{bits}-bit.onnx")
    np.savez(folder / "test.npz", image=data["test"].batch(np.arange(len(data["test"])))[0]["image"])


def batches(images: Split) -> Iterator[Arrays]:
    """The calibration samples."""
    chosen = np.random.default_rng(0).permutation(len(images))[:SAMPLES]
    for start in range(0, SAMPLES, BATCH):
        yield images.batch(chosen[start : start + BATCH])[0]


# --- under QEMU


def under_qemu(cpu: str) -> None:
    """This script again, by the same Python with the same packages, as QEMU's CPU runs it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    python = os.path.realpath(sys.executable)  # QEMU loads programs, not the links of a virtual environment
    command = ["qemu-x86_64", "-cpu", cpu, python, __file__, *sys.argv[1:], "--inside"]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "TCG doesn't support requested feature" not in line]
    if done.returncode != 0 or said:
        raise SystemExit("\n".join([f"under QEMU: exit code {done.returncode}", *said]))


def inside(options: argparse.Namespace) -> None:
    features = cpu_features()
    which = f"CPU under QEMU ({options.cpu})" if options.inside else "this CPU"
    print(f"{which}: {', '.join(f'{name} {flag}' for name, flag in features.items())}", flush=True)
    if not features["avx2"] or features["avx512_vnni"] or features["avx_vnni"]:
        raise SystemExit("not a CPU with AVX2 and without VNNI")
    compare_layers(options.layers, options.facts)
    with np.load(options.folder / "test.npz", allow_pickle=False) as stored:
        images = stored["image"][: options.images]
    for bits in BITS:
        compare_file(options.folder / f"{bits}-bit.onnx", images)


def cpu_features() -> dict[str, bool]:
    """By the instruction itself: /proc/cpuinfo is the host's."""
    code = bytes.fromhex("5389f889f14989d00fa24189004189580441894808418950 0c5bc3".replace(" ", ""))
    memory = mmap.mmap(-1, len(code), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    call = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(address)

    def cpuid(leaf: int, sub: int) -> list[int]:
        registers = (ctypes.c_uint32 * 4)()
        call(leaf, sub, ctypes.addressof(registers))
        return list(registers)

    _, ebx, ecx, _ = cpuid(7, 0)
    return {
        "avx2": bool(ebx >> 5 & 1),
        "avx512f": bool(ebx >> 16 & 1),
        "avx512_vnni": bool(ecx >> 11 & 1),
        "avx_vnni": bool(cpuid(7, 1)[0] >> 4 & 1),
    }


def compare_layers(count: int, facts: Path | None) -> None:
    """Every other layer is adversarial: large activations and large weights, so that most sums saturate."""
    rng, different, saturated = np.random.default_rng(0), Counter[str](), Counter[str]()
    stored: dict[str, Any] = {}
    for number in range(count):
        model, data = layer(KINDS[number % len(KINDS)], rng, adversarial=number % 2 == 0, small=number < 16)
        path = Path(tempfile.gettempdir()) / f"no-vnni-{os.getpid()}.onnx"
        onnx.save(model, path)
        real = OnnxRuntimeSession(path).run({"x": data})["y"]
        emulated = SaturatingSession(path)
        kind = KINDS[number % len(KINDS)]
        different[kind] += not np.array_equal(real, emulated.run({"x": data})["y"])
        saturated[kind] += bool(emulated.emulated)
        path.unlink()
        if number < 16:
            bytes_ = np.frombuffer(model.SerializeToString(), np.uint8)
            stored |= {f"{number}.model": bytes_, f"{number}.x": data, f"{number}.y": real}
    for kind in KINDS:
        print(
            f"{kind}: {count // len(KINDS)} layers, {saturated[kind]} can saturate, {different[kind]} differ",
            flush=True,
        )
    if facts is not None:
        np.savez_compressed(facts, **stored)


def layer(kind: str, rng: np.random.Generator, adversarial: bool, small: bool) -> tuple[onnx.ModelProto, np.ndarray]:
    """A model of one node, `x` to `y`, and its input."""

    def data(*shape: int) -> np.ndarray:
        return rng.integers(200 if adversarial else 0, 256, shape).astype(np.uint8)

    def weight(*shape: int) -> np.ndarray:
        large = rng.choice([-128, -127, -110, 100, 120, 127], shape)
        return (large if adversarial else np.clip(rng.normal(0, 50, shape), -128, 127)).astype(np.int8)

    def scales(*shape: int) -> np.ndarray:
        return rng.uniform(0.5, 2, shape).astype(np.float32)

    keys: dict[str, Any] = {}
    zero = np.asarray(rng.integers(0, 256), np.uint8)
    if kind == "QLinearConv":
        group = int(rng.choice([1, 1, 1, 2, 4]))
        channels, outputs = (group * int(value) for value in rng.integers(1, 6 if small else 20, 2))
        size, kernel = (int(value) for value in (rng.integers(7, 12), rng.choice([1, 2, 3])))
        x, w = data(2, channels, size, size), weight(outputs, channels // group, kernel, kernel)
        keys = {
            "group": group,
            "strides": rng.integers(1, 3, 2).tolist(),
            "dilations": rng.integers(1, 3, 2).tolist(),
            "pads": rng.integers(0, 3, 4).tolist(),
        }
        depth, width = w[0].size, outputs
    else:
        depth, width = int(rng.integers(1, 60 if small else 1100)), int(rng.integers(1, 20 if small else 70))
        x, w = data(int(rng.integers(1, 9)), depth), weight(depth, width)
    per_channel = kind != "QLinearMatMul"
    w_scale = scales(width) if per_channel else scales()
    w_zero = np.zeros(w_scale.shape, np.int8)
    result: dict[str, np.ndarray] = {
        "ys": np.asarray(100 * depth**0.5, np.float32),
        "yz": np.asarray(rng.integers(0, 256), np.uint8),
    }
    bias: dict[str, np.ndarray] = {"b": rng.integers(-9999, 9999, width).astype(np.int32)}
    first: dict[str, np.ndarray] = {"xs": scales(), "xz": zero, "w": w, "ws": w_scale, "wz": w_zero}
    of_kind: dict[str, dict[str, np.ndarray]] = {
        "QLinearConv": first | result | bias,
        "QLinearMatMul": first | result,
        "QGemm": first | bias | (result if rng.integers(2) else {}),
        "MatMulIntegerToFloat": {
            "w": w,
            "xs": scales(),
            "ws": w_scale,
            "xz": zero,
            "wz": w_zero,
            "b": rng.normal(0, 9, width).astype(np.float32),
        },
    }
    constants = of_kind[kind]
    domain = "com.microsoft" if kind in ("QGemm", "MatMulIntegerToFloat") else ""
    node = helper.make_node(kind, ["x", *constants], ["y"], name="node", domain=domain, **keys)
    graph = helper.make_graph(
        [node],
        kind,
        [helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, x.shape)],
        [
            helper.make_tensor_value_info(
                "y", onnx.TensorProto.UINT8 if "yz" in constants else onnx.TensorProto.FLOAT, None
            )
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8), x


def compare_file(path: Path, images: np.ndarray) -> None:
    real, emulated = OnnxRuntimeSession(path), SaturatingSession(path)
    different = 0
    for start in range(0, len(images), BATCH):
        feed = {"image": images[start : start + BATCH]}
        (there,), (here,) = (session.run(feed).values() for session in (real, emulated))
        different += int((there != here).sum())
    print(
        f"{path.name}: {len(emulated.emulated)} nodes can saturate; of {10 * len(images)} logits of {len(images)} "
        f"images {different} differ",
        flush=True,
    )


# --- here


def print_accuracy(folder: Path, test: Split, emulated: bool) -> None:
    how = "emulated" if emulated else "real"
    print(f"\non this CPU, {len(test)} test images, ONNX Runtime {onnxruntime.__version__}\n")
    print(f"| file | without saturation | with saturation ({how}) | lost by it in points, 95 % | answers that differ |")
    print("|---|---|---|---|---|")
    labels = labels_of(test)
    plain = scores_of(METRICS["accuracy"], predict(OnnxRuntimeSession(folder / "float.onnx"), test, BATCH), labels)
    print(f"| float | {100 * plain.mean():.2f} % | - | - | - |")
    for bits in BITS:
        path = folder / f"{bits}-bit.onnx"
        saturating = SaturatingSession(path) if emulated else OnnxRuntimeSession(path)
        outputs = [predict(session, test, BATCH) for session in (OnnxRuntimeSession(path, exact=True), saturating)]
        found = [scores_of(METRICS["accuracy"], each, labels) for each in outputs]
        drop = paired_drop(METRICS["accuracy"], found[0], found[1], 0.95)
        first, second = (each["logits"].argmax(1) for each in outputs)
        print(
            f"| weights of {bits} bits | {100 * found[0].mean():.2f} % | {100 * found[1].mean():.2f} % "
            f"| {100 * drop.value:.2f} ({100 * drop.low:.2f} to {100 * drop.high:.2f}) "
            f"| {int((first != second).sum())} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
