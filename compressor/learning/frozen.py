"""What of a network does not learn: found by glob, counted, and kept as it is."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...core.errors import RecipeError
from ...core.tables import did_you_mean


def freeze(module: nn.Module, names: Iterable[str]) -> None:
    """Parameters with these qualified names learn nothing from here on, in place."""
    for name in names:
        module.get_parameter(name).requires_grad_(False)


def share_trained(module: nn.Module) -> str:
    """For the ledger: "0.9% of the parameters learn (221,184 of 22,713,216)"."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    total, learning = sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)
    return f"{learning / total:.1%} of the parameters learn ({learning:,} of {total:,})"


def still_norms(module: nn.Module) -> Mapping[str, nn.Module]:
    """Put batch norms into eval mode where nothing learns: in the innermost part around them that has parameters.

    Returns:
        These, by all their names.
    """
    found = {}
    for name, part in module.named_modules(remove_duplicate=False):
        if isinstance(part, _BatchNorm):
            around = (module.get_submodule(each) for each in (*_above(name), ""))
            own = next((list(each.parameters()) for each in around if any(True for _ in each.parameters())), [])
            if not any(parameter.requires_grad for parameter in own):
                found[name] = part.eval()
    return found


def matching(glob: str, names: Sequence[str], where: str) -> list[str]:
    """The parameters that a glob matches, or that are below a module it matches.

    Raises:
        RecipeError: none; names the nearest.
    """
    found = [name for name in names if any(fnmatch.fnmatchcase(each, glob) for each in _above(name))]
    if not found:
        known = dict.fromkeys(each for name in names for each in _above(name))
        hint = did_you_mean(glob, known) or f"; parameters are called like '{names[0]}', '{names[-1]}'"
        raise RecipeError(f"{where}: '{glob}' matches no parameter{hint}")
    return found


def _above(name: str) -> list[str]:
    """A parameter's name, and the names of the modules it is in: "a.b.weight", "a.b", "a"."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
