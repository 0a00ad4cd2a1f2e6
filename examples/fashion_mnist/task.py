"""Fashion-MNIST as edgesmith sees it: one function per original. The checkpoints come from train.py."""

import functools
from collections.abc import Callable
from typing import Any

from images import augment, splits
from members import trained
from networks import LeNet, MobileNet, ResNet20, SmallResNet
from torch import nn
from train import load

import edgesmith


def resnet20() -> edgesmith.Task:
    """The ResNet is the original; a LeNet is there to be taught."""
    return _task("resnet20", ResNet20, models={"lenet": LeNet})


def mobilenet() -> edgesmith.Task:
    """The MobileNet is the original; the ResNet may teach."""
    return _task("mobilenet", MobileNet, models={"resnet20": _trained_resnet})


def lenet() -> edgesmith.Task:
    """The LeNet, as the ResNet taught it, is the original."""
    return _task("lenet", LeNet)


def untrained_lenet() -> edgesmith.Task:
    """A LeNet at its random start; the ResNet may teach."""
    return _task("lenet", LeNet, load_weights=None, models={"resnet20": _trained_resnet})


def ensemble() -> edgesmith.Task:
    """The first of five networks is the original; the other four started elsewhere."""
    return of_members("ensemble", "seed0", [f"seed{i}" for i in range(1, 5)])


def tuned() -> edgesmith.Task:
    """The checkpoint is the original; five networks went on from it, each in its own way."""
    return of_members("tuned", "shared", [f"tuned{i}" for i in range(5)])


def of_members(name: str, original: str, others: list[str]) -> edgesmith.Task:
    """One network of members.py is the original, others may teach."""
    models = {other: functools.partial(trained, other) for other in others}
    return _task(name, SmallResNet, load_weights=functools.partial(load, f"members/{original}"), models=models)


def _task(name: str, model: Callable[[], nn.Module], **more: Any) -> edgesmith.Task:
    return edgesmith.Task(
        name=f"fashion-mnist-{name}",
        model=model,
        loss="cross-entropy",
        metrics=("accuracy",),
        outputs=("logits",),
        augment=augment,
        **splits(),
        **{"load_weights": functools.partial(load, name), **more},
    )


def _trained_resnet() -> nn.Module:
    module = ResNet20()
    load("resnet20", module)
    return module
