"""How OpenVINO's CPU plugin is set, by itself and inside ONNX Runtime. A device runs this very file."""

from __future__ import annotations


def for_latency(threads: int) -> dict[str, str]:
    """Compiled for latency, with `threads` of an inference, not pinned to cores, as sessions take turns on them.

    Float layers compute in float32: left to itself OpenVINO takes BF16 where the CPU has it.
    """
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": "NO",
    }
