"""What of a trained network learns a new task, how fast, and from when on: freezing, rates per layer, unfreezing."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from ...core.errors import RecipeError
from .frozen import freeze, matching
from .layer_groups import Example, layer_groups
from .training import Regime, Training


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferKeys:
    """Recipe keys for training on from somebody's weights. Globs are of parameters, or of modules above them."""

    freeze: tuple[str, ...] = ()  # globs of what stays as it is, batch-norm statistics included
    layer_rates: Mapping[str, Annotated[float, Field(gt=0)]] = dataclasses.field(default_factory=dict)  # glob -> factor
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None  # factor from each layer group to the one below it
    unfreeze: Literal["at-once", "gradual"] = "at-once"  # gradual: the top group first, one more with every epoch
    probe_epochs: Annotated[int, Field(ge=0)] = 0  # of the head alone, before all epochs of the rest
    probe_learning_rate: Annotated[float, Field(gt=0)] | None = None  # of these; None: learning_rate

    def check_transfer(self, training: Training, where: str) -> None:
        """Refuse keys that contradict each other.

        Raises:
            RecipeError: names the key.
        """
        if self.layer_rates and self.layer_decay is not None:
            raise RecipeError(f"{where}: set layer_rates or layer_decay, not both")
        if self.unfreeze == "gradual" and training.minutes is not None:
            raise RecipeError(f"{where}.unfreeze: 'gradual' counts epochs; set epochs in the place of minutes")
        if self.probe_learning_rate is not None and not self.probe_epochs:
            raise RecipeError(f"{where}.probe_learning_rate: nothing reads it without probe_epochs")

    def regime(self, module: nn.Module, example: Example, outputs: Sequence[str], epochs: int, where: str) -> Regime:
        """Freeze what is to be frozen, in place, and say what happens in which epoch, and at which rate.

        What does not learn when it starts, by the function that builds the network, never does.

        Raises:
            RecipeError: a glob that matches nothing, nothing that is left to learn, more groups than epochs.
        """
        names = [name for name, _ in module.named_parameters()]
        frozen = {name for glob in self.freeze for name in matching(glob, names, f"{where}.freeze")}
        freeze(module, frozen)
        rates = {
            name: factor
            for glob, factor in self.layer_rates.items()  # where several match, the last one counts
            for name in matching(glob, names, f"{where}.layer_rates")
        }
        learning = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        if not learning:
            raise RecipeError(f"{where}.freeze: nothing is left to train; {len(names)} of {len(names)} are frozen")
        for glob in self.layer_rates:
            if not set(matching(glob, names, where)) & set(learning):
                raise RecipeError(f"{where}.layer_rates: '{glob}' matches frozen parameters alone; leave it out")
        groups: list[tuple[str, ...]] = [tuple(learning)]
        if self.layer_decay is not None or self.unfreeze == "gradual":
            every = layer_groups(module, example, outputs)
            rates |= self._decayed(every)
            groups = [kept for group in every if (kept := tuple(name for name in group if name in learning))]
        if self.unfreeze == "gradual" and len(groups) > epochs:
            raise RecipeError(
                f"{where}.unfreeze: {len(groups)} groups of layers learn, one more with every epoch, and there are "
                f"{epochs} epochs; set epochs to {len(groups)} or more, or freeze the lower layers"
            )
        return _Transfer(module, rates, groups, self.unfreeze == "gradual")

    def _decayed(self, groups: list[tuple[str, ...]]) -> dict[str, float]:
        """The factor falls from the head, which has 1, towards the input (Howard & Ruder, 2018)."""
        if self.layer_decay is None:
            return {}
        return {name: self.layer_decay**depth for depth, group in enumerate(reversed(groups)) for name in group}


def probe(module: nn.Module, example: Example, outputs: Sequence[str], where: str) -> Regime:
    """The head alone learns, in place: the linear probe before fine-tuning (LP-FT; Kumar et al., 2022).

    Raises:
        RecipeError: the network is all head.
    """
    groups, parameters = layer_groups(module, example, outputs), dict(module.named_parameters())
    if len(groups) < 2:
        raise RecipeError(f"{where}.probe_epochs: the network is one group of layers, so there is no head to probe")
    if not any(parameters[name].requires_grad for name in groups[-1]):
        raise RecipeError(f"{where}.probe_epochs: the head is frozen by the task's model function; nothing would learn")
    freeze(module, {name for group in groups[:-1] for name in group})
    return _Transfer(module, {}, [groups[-1]], gradual=False)


class _Transfer(Regime):
    """Rates by name; groups that learn from some epoch on."""

    def __init__(
        self, module: nn.Module, rates: Mapping[str, float], groups: Sequence[tuple[str, ...]], gradual: bool
    ) -> None:
        self._module, self._rates, self._groups, self._gradual = module, rates, groups, gradual

    def rate(self, parameter: str) -> float:
        """See `Regime.rate`."""
        return self._rates.get(parameter, 1.0)

    def before_epoch(self, epoch: int, done: float) -> None:
        """See `Regime.before_epoch`."""
        if self._gradual:
            for depth, group in enumerate(reversed(self._groups)):
                for name in group:
                    self._module.get_parameter(name).requires_grad_(depth <= epoch)
