"""Bias correction: what quantization adds to the mean of a layer's output is taken from its bias."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from ...exporters.int8.layer import Layer


def correct_bias(layer: Layer) -> Layer:
    """Subtract the expected error of each output channel, `b - E[y~ - y]`.

    The empirical form of Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (ICCV
    2019), appendix D: layer by layer, y~ with all layers before corrected, in front of the activation. A MatMul without
    an Add behind it has nowhere to put it and stays.
    """
    if layer.bias is None:
        return layer
    shift = _means(layer.run(layer.quantized, layer.bias), layer.channel_axis) - _means(
        layer.wanted, layer.channel_axis
    )
    return dataclasses.replace(layer, bias=(layer.bias - shift).astype(np.float32))


def _means(batches: Iterable[np.ndarray], axis: int) -> np.ndarray:
    """Mean of each channel over all batches, `(channels,)`, float64."""
    total, count = np.zeros(()), 0
    for values in batches:
        rows = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
        total, count = total + rows.sum(0, dtype=np.float64), count + len(rows)
    return np.asarray(total / count)
