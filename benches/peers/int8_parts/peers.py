"""The quantizers that are compared, each with its recommended and its fastest settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

ONNXRUNTIME = "onnxruntime-cpu"
OPENVINO = "edgesmith.benches.peers.int8_parts.openvino_session:open_ir"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Peer:
    """One way to INT8."""

    name: str  # in the table and in file names
    tool: str  # key of `tools.TOOLS`
    says: str  # what it is, for the table's legend
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    session: str = ONNXRUNTIME  # what runs the file
    suffix: str = ".onnx"
    only: str = ""  # "transformer": for those alone

    @property
    def family(self) -> str:
        """Whose tool it is: the fastest file of each is timed where time is short."""
        return self.tool.split()[0]

    @property
    def threads(self) -> int | None:
        """That its file was chosen for, and is timed with; None: it is timed with any."""
        return self.settings.get("threads")


_FASTEST = {"prepare": True, "activations": "QUInt8", "per_channel": True}  # of ONNX Runtime's, on x86 with VNNI

PEERS: tuple[Peer, ...] = (
    Peer(name="edgesmith", tool="edgesmith", says="`edgesmith quantize`, default options, run by ONNX Runtime"),
    Peer(
        name="edgesmith-2-threads",
        tool="edgesmith",
        says="the same with `--threads 2`, quantized on two cores, timed with two threads",
        settings={"threads": 2},
    ),
    Peer(
        name="edgesmith-openvino",
        tool="edgesmith",
        says="`edgesmith quantize --target openvino`, run by OpenVINO",
        settings={"target": "openvino"},
        session=OPENVINO,
    ),
    Peer(name="ort", tool="onnxruntime static", says="`quantize_static`, default: S8, per tensor, min-max"),
    Peer(
        name="ort-channel",
        tool="onnxruntime static",
        says="the same, weights per channel",
        settings={"per_channel": True},
    ),
    Peer(
        name="ort-u8",
        tool="onnxruntime static",
        says="`quant_pre_process`, U8 activations, weights per channel: what its documentation advises for VNNI",
        settings=_FASTEST,
    ),
    Peer(
        name="ort-u8-tensor",
        tool="onnxruntime static",
        says="the same, weights per tensor: for old opsets, and for throughput by the same documentation",
        settings={**_FASTEST, "per_channel": False},
    ),
    Peer(
        name="ort-u8-7-bit",
        tool="onnxruntime static",
        says="as ort-u8, weights of 7 bits (`reduce_range`): what its documentation advises without VNNI",
        settings={**_FASTEST, "reduce_range": True},
    ),
    Peer(
        name="ort-u8-entropy",
        tool="onnxruntime static",
        says="as ort-u8, entropy",
        settings={**_FASTEST, "calibrate": "Entropy"},
    ),
    Peer(
        name="ort-u8-percentile",
        tool="onnxruntime static",
        says="as ort-u8, percentile 99.999",
        settings={**_FASTEST, "calibrate": "Percentile"},
    ),
    Peer(name="ort-dynamic", tool="onnxruntime dynamic", says="`quantize_dynamic`, default", only="transformer"),
    Peer(
        name="ort-dynamic-channel",
        tool="onnxruntime dynamic",
        says="the same, weights per channel",
        settings={"per_channel": True},
        only="transformer",
    ),
    Peer(name="nncf", tool="nncf", says="`nncf.quantize` on the ONNX graph, default: preset performance"),
    Peer(name="nncf-mixed", tool="nncf", says="the same, preset mixed", settings={"preset": "MIXED"}),
    Peer(
        name="modelopt",
        tool="model-optimizer",
        says="`modelopt.onnx.quantization`, default: entropy, the rest in FP16",
    ),
    Peer(
        name="modelopt-fp32",
        tool="model-optimizer",
        says="the same, max, the rest in FP32",
        settings={"calibration_method": "max", "high_precision_dtype": "fp32"},
    ),
    Peer(
        name="inc",
        tool="neural-compressor",
        says="3.x static quantization of the torch module, default; weights folded, written by torch",
    ),
    Peer(
        name="openvino",
        tool="openvino",
        says="`nncf.quantize` on OpenVINO's representation, run by OpenVINO",
        session=OPENVINO,
        suffix=".xml",
    ),
    Peer(
        name="openvino-float",
        tool="openvino",
        says="no INT8: the float model run by OpenVINO",
        settings={"float": True},
        session=OPENVINO,
        suffix=".xml",
    ),
)
