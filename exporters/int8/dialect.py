"""How one target wants its Q/DQ pairs written."""

import dataclasses
from typing import Literal

Activations = Literal["s8", "u8", "u8-asymmetric", "s8-shifted", "s8-asymmetric"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialect:
    """A way to write one set of QuantParams. What is fused, and so how fast a file is, hangs on these choices.

    Activations:
        `s8`              signed, zero point 0: what TensorRT takes.
        `u8`              unsigned; zero point 0 where a tensor is never negative, 128 elsewhere, scale as for `s8`:
                          the same numbers as `s8` up to 127, and what x86 has kernels for. Behind a Clip from zero the
                          scale is at most its bound / 255, else the Clip would stay and nothing be fused around it.
        `u8-asymmetric`   unsigned; scale and zero point from the tensor's own low and high.
        `s8-shifted`      `u8` with 128 less of every integer, and so signed: the same numbers, as Arm multiplies them.
        `s8-asymmetric`   `u8-asymmetric` with 128 less.
    """

    name: str
    activations: Activations
    int32_bias: bool  # bias as INT32 with scale input * weight; else it stays float
    pair_after_last: tuple[str, ...]  # operators that run in INT8 only with a pair behind them, at a graph output too
    float_results: bool = False  # the runtime's INT8 layers give floats as well: no pair where only float nodes read
    weight_bits: Literal[7, 8] = 8  # 7 where the CPU adds products in 16 bits and would saturate
    transposed: bool = False  # the runtime has INT8 kernels for transposed convolutions
    dynamic: bool = False  # products with a constant matrix find the range of their input at run time; u8, asymmetric
