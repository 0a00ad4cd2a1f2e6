"""Optimizers and learning-rate schedules by name."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Groups = list[dict[str, Any]]

OPTIMIZERS: dict[str, Callable[[Groups, float], torch.optim.Optimizer]] = {
    "adamw": lambda groups, rate: torch.optim.AdamW(groups, lr=rate),
    "adam": lambda groups, rate: torch.optim.Adam(groups, lr=rate),
    "sgd": lambda groups, rate: torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True),
}

# share of the training done, 0 to 1 -> factor of the learning rate
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}


def parameter_groups(
    module: nn.Module, weight_decay: float, learning_rate: float, rate: Callable[[str], float] = lambda name: 1.0
) -> Groups:
    """Trained parameters by what they share: decay on weights (two axes or more), none on biases and norms; their rate.

    Args:
        weight_decay: of weights.
        learning_rate: of a parameter whose factor is 1.
        rate: qualified name -> factor of the learning rate.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            key = learning_rate * rate(name), weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]
