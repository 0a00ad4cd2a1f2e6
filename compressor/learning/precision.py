"""The numbers a training computes in: float32, or half as wide where the device has the instructions for it."""

from typing import Literal

import torch

from ...benches.timing.environment import features

Precision = Literal["no", "fp16", "bf16"]
_BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # x86, x86 tiles, Arm; as /proc/cpuinfo calls them


def chosen(asked: Precision | Literal["auto"], device: str) -> Precision:
    """What `mixed_precision` means on this device: `auto` is bf16 where that is computed, not emulated."""
    if asked != "auto":
        return asked
    return "bf16" if computes_bf16(device) else "no"


def computes_bf16(device: str) -> bool:
    """Whether the device multiplies bfloat16 itself; emulated, a step was seen to take as long as twenty in float32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(features(_BF16))
