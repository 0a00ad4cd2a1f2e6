"""AdaRound: each weight is rounded to the neighbour that keeps the layer's output, not to the nearest one."""

import dataclasses

import numpy as np
import torch

from ...exporters.int8.layer import Layer
from .recover_rows import Rows, as_matrix, draw, from_matrix

_STEPS, _BATCH, _RATE = 400, 256, 0.02
_WARM_UP = 0.2  # share of the steps without regularization
_BETA = (20.0, 2.0)  # annealed from where only the middle is pushed to where everything is
_WEIGHT = 1.0  # of the regularization, per input, against the error relative to nearest rounding
_LOW, _HIGH = -0.1, 1.1  # of the stretched sigmoid
_HELD_OUT = 4  # every fourth row judges


def round_weights(layer: Layer) -> Layer:
    """Learn for every weight whether it goes up or down on its grid, layer by layer.

    Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization (ICML 2020), equations 21 to 25: the
    output of the float layer behind its activation is reconstructed from inputs that carry the error of the layers
    before. An output channel keeps its nearest rounding unless the learned one is closer on rows it was not learned
    from. A weight that several nodes read stays: what is right for one need not be for the other.
    """
    if layer.tied:
        return layer
    rows = draw(layer, np.random.default_rng(0))
    integers = _learned(layer, rows)
    return dataclasses.replace(layer, weight=(from_matrix(integers, layer) * layer.scale).astype(np.float32))


def _learned(layer: Layer, rows: Rows) -> np.ndarray:
    """The integers of the weight as `(groups, outputs, inputs)`."""
    exact = as_matrix(layer.weight / np.broadcast_to(layer.scale, layer.weight.shape).astype(np.float64), layer)
    down = np.clip(np.floor(exact), -layer.limit, layer.limit - 1)
    nearest = as_matrix(layer.integers, layer)
    problem = _Problem(layer, rows)
    error = problem.error(nearest)
    up = problem.learn(down, exact - down, error)
    learned = down + up
    better = problem.error(learned) < error
    return np.where(better[..., None], learned, nearest)


class _Problem:
    """One layer's reconstruction in torch, every output channel for itself."""

    def __init__(self, layer: Layer, rows: Rows) -> None:
        bias = (
            np.zeros(layer.weight.shape[layer.axis])
            if layer.bias is None or layer.node.op_type == "MatMul"
            else layer.bias
        )
        groups = len(rows.inputs)
        self._low, self._high = layer.low, layer.high
        self._scale = _tensor(as_matrix(np.broadcast_to(layer.scale, layer.weight.shape), layer)[..., :1])
        self._bias = _tensor(bias.reshape(groups, 1, -1))
        self._inputs, self._wanted = _tensor(rows.inputs), self._activated(_tensor(rows.wanted))
        judging = torch.arange(self._inputs.shape[1]) % _HELD_OUT == 0
        self._judging, self._learning = judging.nonzero()[:, 0], (~judging).nonzero()[:, 0]

    def error(self, integers: np.ndarray) -> np.ndarray:
        """Mean squared error per output channel on the rows that judge, `(groups, outputs)`."""
        with torch.no_grad():
            return self._error(_tensor(integers), self._judging).numpy().astype(np.float64)

    def learn(self, down: np.ndarray, share: np.ndarray, error: np.ndarray) -> np.ndarray:
        """1 where a weight goes up, 0 where it goes down.

        Args:
            down: integers below the weights.
            share: how far above them the weights lie, 0 to 1.
            error: of nearest rounding; makes channels alike.
        """
        generator = torch.Generator().manual_seed(0)
        base, relative = _tensor(down), 1 / _tensor(np.maximum(error, 1e-12 * max(float(error.max()), 1e-30)))
        logits = _inverse(_tensor(share).clamp(0, 1)).requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=_RATE)
        for step in range(_STEPS):
            chosen = self._learning[torch.randint(len(self._learning), (_BATCH,), generator=generator)]
            up = _stretched(logits)
            loss = (self._error(base + up, chosen) * relative).sum()
            if step >= _WARM_UP * _STEPS:
                loss = loss + _WEIGHT * (1 - (2 * up - 1).abs() ** _beta(step)).mean(-1).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
            optimizer.step()
        return (_stretched(logits.detach()) >= 0.5).numpy().astype(np.float64)

    def _error(self, integers: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        weight = (integers * self._scale).transpose(1, 2)
        made = torch.baddbmm(self._bias, self._inputs[:, chosen], weight)
        return (self._activated(made) - self._wanted[:, chosen]).square().mean(1)

    def _activated(self, values: torch.Tensor) -> torch.Tensor:
        return values.clamp(self._low, self._high)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.ascontiguousarray(array, np.float32))


def _beta(step: int) -> float:
    start, end = _BETA
    done = max(0.0, (step / _STEPS - _WARM_UP) / (1 - _WARM_UP))
    return float(end + (start - end) * 0.5 * (1 + np.cos(done * np.pi)))


def _stretched(logits: torch.Tensor) -> torch.Tensor:
    return (torch.sigmoid(logits) * (_HIGH - _LOW) + _LOW).clamp(0, 1)


def _inverse(share: torch.Tensor) -> torch.Tensor:
    return -torch.log((_HIGH - _LOW) / (share - _LOW) - 1)
