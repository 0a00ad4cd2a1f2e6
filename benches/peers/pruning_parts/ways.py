"""The ways to prune that are compared, and the networks they are tried on."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

_HERE = "edgesmith.benches.peers.pruning_parts"
Stages = list[dict[str, Any]]
_SGD = {"batch_size": 128, "optimizer": "sgd", "weight_decay": 5e-4, "channels_last": True, "mixed_precision": "auto"}
_ADAM = {"batch_size": 128, "optimizer": "adamw", "weight_decay": 0.05, "mixed_precision": "auto"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Net:
    """A trained network of int8_parts, and how everything that is left of it learns."""

    name: str
    epochs: int
    seeds: tuple[int, ...]
    training: Mapping[str, Any]


NETS = (
    Net(name="resnet20", epochs=6, seeds=(0, 1, 2), training=_SGD | {"learning_rate": 0.05}),
    Net(name="mobilenet", epochs=6, seeds=(0, 1, 2), training=_SGD | {"learning_rate": 0.05}),
    Net(name="densenet", epochs=6, seeds=(0,), training=_SGD | {"learning_rate": 0.05}),
    Net(name="vit", epochs=6, seeds=(0,), training=_ADAM | {"learning_rate": 1e-3}),
    Net(name="resnet20-wide", epochs=1, seeds=(0,), training=_SGD | {"learning_rate": 0.02}),
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Way:
    """One way, at several levels."""

    name: str
    levels: tuple[float, ...]  # shares of the time, the MACs, or the time in its own table
    prune: Callable[[float, int], Stages]  # (level, rounding) -> its stages
    roundings: tuple[int, ...] = (0,)  # that are tried before anything is trained; the fastest file decides
    teaching: str | None = "finetune"
    int8: bool = True  # False: deployed in float, so that what is pruned for is the float file's time

    def stages(self, net: Net, level: float, rounding: int, epochs: int) -> Stages:
        """Of a whole run; with no epochs nothing is trained: the file's time can be had, its accuracy not."""
        train = [{"use": self.teaching, "epochs": epochs, **net.training}] if epochs and self.teaching else []
        quantize = [{"use": "quantize"}] if self.int8 else []
        return [*self.prune(level, rounding), *train, {"use": "export"}, *quantize]


def _torch_pruning(importance: str) -> Callable[[float, int], Stages]:
    use = f"{_HERE}.torch_pruning_stage:TorchPruning"
    return lambda level, rounding: [
        {"use": use, "id": "prune", "importance": importance, "macs_ratio": level, "round_to": rounding}
    ]


def _to_latency(level: float, _: int) -> Stages:
    return [{"use": "prune", "latency_ratio": level, "importance": "taylor"}]


def _tried(level: float, rounding: int) -> Stages:
    (prune,) = _to_latency(level, rounding)
    return [{**prune, "trial_epochs": 1}]


def _sized(level: float, rounding: int) -> Stages:
    """As small as the file of a tenth: 0.29 of ResNet-20's parameters in INT8, and what names and scales take."""
    (prune,) = _tried(level, rounding)
    return [{**prune, "params_ratio": 0.29}]


def _halp(level: float, _: int) -> Stages:
    return [{"use": f"{_HERE}.halp_stage:Halp", "id": "prune", "latency_ratio": level}]


WAYS = (
    Way(name="not pruned", levels=(1.0,), prune=lambda level, rounding: [], teaching=None),
    Way(name="edgesmith", levels=(0.6, 0.4, 0.28), prune=_to_latency, teaching="distill"),
    Way(name="edgesmith, plans tried", levels=(0.5, 0.4, 0.28), prune=_tried, teaching="distill"),
    Way(name="edgesmith, time and size", levels=(0.28,), prune=_sized, teaching="distill"),
    Way(name="edgesmith, in float", levels=(0.5, 0.25), prune=_to_latency, teaching="distill", int8=False),
    Way(name="edgesmith, labels alone", levels=(0.28,), prune=_to_latency),
    Way(
        name="Torch-Pruning, group norm",
        levels=(0.5, 0.25),
        prune=_torch_pruning("group-norm"),
        roundings=(1, 8, 16),
    ),
    Way(
        name="Torch-Pruning, Taylor",
        levels=(0.5, 0.25),
        prune=_torch_pruning("taylor"),
        roundings=(1, 8, 16),
    ),
    Way(name="HALP", levels=(0.75,), prune=_halp),  # at 0.6 no widths of ResNet-20 are fast enough in INT8
)
