"""Low-rank adapters, trained in the place of the layers' own weights and folded into them, through PEFT.

LoRA: Hu et al., 2021. AdaLoRA, whose layers share a budget of ranks: Zhang et al., 2023.
"""

import copy
import dataclasses
import fnmatch
import importlib.util
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from accelerate.utils import set_seed
from pydantic import Field
from torch import nn

from ...core.errors import RecipeError
from ...core.tables import did_you_mean
from ...exporters.sessions.torch_session import copied, forward
from ..int8 import neural_compressor
from .frozen import share_trained
from .layer_groups import Example, layer_groups
from .training import Regime, Training
from .transfer import TransferKeys

_LAYERS = (nn.Linear, nn.Conv2d)
_TOLERANCE = 1e-4  # of the largest output: what folding may change, by rounding
_FEWEST_STEPS = 10  # of AdaLoRA: it has to see what a rank is good for before it takes it away
# With their defaults.
_OF_THE_WHOLE: dict[str, Any] = {"freeze": (), "layer_rates": {}, "layer_decay": None, "unfreeze": "at-once"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterKeys:
    """Recipe keys for adapters: only they and the head learn, and what comes out is a network without them."""

    adapter: Literal["lora", "adalora"] | None = None
    adapter_rank: Annotated[int, Field(ge=1)] = 8  # of every layer; adalora: on average, in the end
    adapter_alpha: Annotated[float, Field(gt=0)] = 16.0  # what an adapter adds is scaled by alpha / rank
    adapter_targets: tuple[str, ...] = ()  # globs of layers; empty: all below the head that an adapter is smaller than

    def check_adapter(self, keys: TransferKeys, training: Training, where: str) -> None:
        """Refuse what is missing, and keys that contradict each other.

        Raises:
            RecipeError: names the key.
        """
        if self.adapter is None:
            for name in ("adapter_rank", "adapter_alpha", "adapter_targets"):
                if getattr(self, name) != getattr(AdapterKeys, name):
                    raise RecipeError(f"{where}.{name}: nothing reads it without adapter")
            return
        for name, default in _OF_THE_WHOLE.items():
            if getattr(keys, name) != default:
                raise RecipeError(f"{where}.{name}: with an adapter, only it and the head learn; leave it out")
        if self.adapter == "adalora" and training.minutes is not None:
            raise RecipeError(f"{where}.adapter: 'adalora' shares out ranks by steps; set epochs, not minutes")
        if importlib.util.find_spec("peft") is None:
            raise RecipeError(f"{where}.adapter: '{self.adapter}' needs peft: pip install \"edgesmith[lora]\"")

    def check_steps(self, steps: int, where: str, key: str = "epochs") -> None:
        """Refuse optimizer steps that are too few for what is learnt by the step.

        Args:
            key: that sets how long they last.

        Raises:
            RecipeError: how many it takes, and there are.
        """
        if self.adapter == "adalora" and steps < _FEWEST_STEPS:
            raise RecipeError(
                f"{where}.adapter: 'adalora' needs {_FEWEST_STEPS} steps to share out ranks, and there are {steps}; "
                f"set {key} higher, or batch_size or accumulation lower"
            )

    def targets(self, module: nn.Module, example: Example, outputs: Sequence[str], where: str) -> list[str]:
        """The layers that get an adapter, each of which was tried: folding one in changes nothing.

        Raises:
            RecipeError: a glob that matches no layer, a layer that cannot have one, none at all.
        """
        called, heard = _called(module, example, outputs)
        layers = {name: part for name, part in module.named_modules() if _matrix(part) is not None and name}
        refused = {name: why for name, part in layers.items() if (why := _misfit(name, part, module, called, heard))}
        head = _modules_of(layer_groups(module, example, outputs)[-1])
        chosen = [name for name in layers if name not in head and self._is_smaller(layers[name])]
        if self.adapter_targets:
            chosen = list(dict.fromkeys(n for g in self.adapter_targets for n in _matching(g, layers, where)))
        chosen = [name for name in chosen if self.adapter_targets or name not in refused]
        refused |= self._unfoldable(module, example, outputs, [name for name in chosen if name not in refused])
        for name in chosen:
            if self.adapter_targets and name in refused:
                raise RecipeError(f"{where}.adapter_targets: '{name}' {refused[name]}; leave it out")
        chosen = [name for name in chosen if name not in refused]
        if not chosen:
            raise RecipeError(
                f"{where}.adapter: no layer below the head can have an adapter of rank {self.adapter_rank} that is "
                "smaller than itself; lower adapter_rank, or name layers in adapter_targets"
            )
        return chosen

    def adapted(
        self, module: nn.Module, example: Example, outputs: Sequence[str], steps: int, seed: int, where: str
    ) -> "Adapter":
        """Put adapters into the network, in place; `steps` optimizer steps will follow."""
        self.check_steps(steps, where)
        names = self.targets(module, example, outputs, where)
        head = layer_groups(module, example, outputs)[-1]
        parameters = dict(module.named_parameters())
        own = [name for name in head if name.rpartition(".")[0] not in names]
        full = [parameters[name] for name in own if parameters[name].requires_grad]
        set_seed(seed)  # where adapters start must not depend on what ran before
        return Adapter(self._tuner(module, names, steps), full, len(names))

    def _is_smaller(self, layer: nn.Module) -> bool:
        matrix = _matrix(layer)
        assert matrix is not None
        rows, columns = matrix.flatten(1).shape
        return self.adapter_rank * (rows + columns) < rows * columns

    def _tuner(self, module: nn.Module, names: Sequence[str], steps: int) -> Any:
        if importlib.util.find_spec("neural_compressor") is not None:
            neural_compressor.load()  # PEFT imports it wherever it is installed; so it does that without side effects
        import peft

        models: Any = peft  # half of it is typed

        keys: dict[str, Any] = {
            "target_modules": "|".join(re.escape(name) for name in names),
            "lora_alpha": self.adapter_alpha,
        }
        if self.adapter == "lora":
            return models.LoraModel(module, models.LoraConfig(r=self.adapter_rank, **keys), "default")
        start = self.adapter_rank + max(1, self.adapter_rank // 2)  # half more than the budget, as in the paper
        keys |= {"init_r": start, "target_r": self.adapter_rank, "total_step": steps}
        keys |= {"tinit": steps // 10, "tfinal": steps * 3 // 10, "deltaT": max(1, steps // 100)}
        return models.AdaLoraModel(module, models.AdaLoraConfig(**keys), "default")

    def _unfoldable(
        self, module: nn.Module, example: Example, outputs: Sequence[str], names: list[str]
    ) -> dict[str, str]:
        """Layers whose adapter computes something else once it is folded in, tried with random ones; and why.

        A class that reads a layer's weight past the layer, as `nn.MultiheadAttention` does, never asks the adapter.
        """
        if not names or self._folds(module, example, outputs, names):
            return {}
        why = "has a weight that is read past the layer, so that an adapter on it would not be heard"
        return {name: why for name in names if not self._folds(module, example, outputs, [name])}

    def _folds(self, module: nn.Module, example: Example, outputs: Sequence[str], names: list[str]) -> bool:
        trial = copy.deepcopy(module).eval()
        tuner = self._tuner(trial, names, 100)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in trial.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            apart = forward(trial, copied(example), outputs)
            folded = forward(tuner.merge_and_unload(), copied(example), outputs)
        return all(
            float((apart[n] - folded[n]).abs().max()) <= _TOLERANCE * max(1.0, float(folded[n].abs().max()))
            for n in outputs
        )


class Adapter(Regime):
    """Adapters in a network that is being trained; `fold` ends them."""

    def __init__(self, tuner: Any, full: Sequence[nn.Parameter], layers: int) -> None:
        self._tuner, self._module, self._layers = tuner, tuner.model, layers
        for parameter in full:
            parameter.requires_grad_(True)
        self._share = share_trained(self._module)
        self._config = tuner.peft_config["default"]
        self._ranks = getattr(tuner, "rankallocator", None)

    def after_step(self, step: int) -> None:
        """See `Regime.after_step`: AdaLoRA weighs its ranks by the gradients."""
        if self._ranks is not None:
            self._tuner.update_and_allocate(step)

    def penalty(self) -> torch.Tensor | float:
        """AdaLoRA's regularization, which keeps singular vectors orthogonal.

        The mean of the Frobenius norms, as PEFT has it; equation 4 of the paper adds up their squares.
        """
        if self._ranks is None:
            return 0.0
        bases = [p if ".lora_A." in name else p.T for name, p in self._module.named_parameters() if _is_basis(name)]
        gaps = [torch.linalg.norm(basis @ basis.T - torch.eye(len(basis), device=basis.device)) for basis in bases]
        weight = float(self._config.orth_reg_weight)  # PEFT adds it to the loss of Hugging Face's own heads only
        return weight * torch.stack(gaps).mean()

    def state(self) -> dict[str, Any]:
        """See `Regime.state`."""
        if self._ranks is None:
            return {}
        scores = {name: getattr(self._ranks, name) for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")}
        return {**scores, "rank_pattern": self._config.rank_pattern}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Regime.restore`."""
        if self._ranks is not None:
            device = next(self._tuner.parameters()).device
            self._config.rank_pattern = state["rank_pattern"]
            for name in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
                setattr(self._ranks, name, {key: tensor.to(device) for key, tensor in state[name].items()})

    def fold(self) -> nn.Module:
        """The network with all adapters added to its weights: its own class and parameters again."""
        folded: nn.Module = self._tuner.merge_and_unload()
        for parameter in folded.parameters():
            parameter.requires_grad_(True)
        return folded

    def note(self) -> str:
        """For the ledger: "adapters of rank 8 in 36 layers, 1.5% of the parameters learn (...)"."""
        if self._ranks is None:
            return f"adapters of rank {self._config.r} in {self._layers} layers, {self._share}"
        kept = [sum(pattern) for pattern in (self._config.rank_pattern or {}).values()]
        spread = (
            f"{min(kept)} to {max(kept)}, {sum(kept) / len(kept):.1f} on average," if kept else f"{self._config.init_r}"
        )
        return f"adapters of rank {spread} in {self._layers} layers, {self._share}"


def _is_basis(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _matrix(module: nn.Module) -> torch.Tensor | None:
    """The module's own weight, if it has one of two axes or more."""
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, nn.Parameter) and weight.ndim > 1 else None


def _misfit(name: str, layer: nn.Module, module: nn.Module, called: set[str], heard: set[str]) -> str:
    """Why a layer can have no adapter, as far as it can be seen, or an empty text."""
    if not isinstance(layer, _LAYERS) or (isinstance(layer, nn.Conv2d) and layer.groups != 1):
        grouped = "grouped " if isinstance(layer, _LAYERS) else ""
        return f"is a {grouped}{type(layer).__name__}; an adapter is for Linear and ungrouped Conv2d"
    others = [
        each.removesuffix(".weight")
        for each, parameter in module.named_parameters(remove_duplicate=False)
        if parameter is layer.weight and each != f"{name}.weight"
    ]
    if others:
        return f"shares its weight with '{others[0]}', which folding an adapter in would change too"
    if name not in called:
        return "is not called in a pass, so that an adapter on it would learn nothing"
    return "" if name in heard else "has no say in the outputs, so that an adapter on it would learn nothing"


def _called(module: nn.Module, example: Example, outputs: Sequence[str]) -> tuple[set[str], set[str]]:
    """The layers that a pass calls; and those its outputs hang on: an encoder's unread pooler is none."""
    called: set[str] = set()
    parts = dict(module.named_modules())
    handles = [part.register_forward_pre_hook(lambda *_, name=name: called.add(name)) for name, part in parts.items()]
    weights = {name: matrix for name, part in parts.items() if (matrix := _matrix(part)) is not None}
    learns = {name: matrix.requires_grad for name, matrix in weights.items()}
    try:
        for matrix in weights.values():
            matrix.requires_grad_(True)
        answers = forward(module.eval(), copied(example), outputs)
        total = torch.stack([answers[name].float().sum() for name in outputs]).sum()
        slopes = torch.autograd.grad(total, list(weights.values()), allow_unused=True) if weights else ()
    finally:
        for name, matrix in weights.items():
            matrix.requires_grad_(learns[name])
        for handle in handles:
            handle.remove()
    return called, {name for name, slope in zip(weights, slopes, strict=True) if slope is not None}


def _modules_of(parameters: Sequence[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in parameters}


def _matching(glob: str, layers: dict[str, nn.Module], where: str) -> list[str]:
    found = [name for name in layers if fnmatch.fnmatchcase(name, glob)]
    if not found:
        hint = did_you_mean(glob, layers) or f"; layers are called like '{', '.join(list(layers)[:2])}'"
        raise RecipeError(f"{where}.adapter_targets: '{glob}' matches no layer with weights{hint}")
    return found
