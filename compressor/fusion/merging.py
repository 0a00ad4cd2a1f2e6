"""Rules that make one set of weights from those of several models of the same architecture, by name.

Each is a frozen dataclass whose fields are what `rule_options` may set; it is called with a `Mix` and returns the
merged parameters. Buffers are not its business: the stage averages them, and re-estimates batch-norm statistics.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

State = Mapping[str, torch.Tensor]
_Share = Annotated[float, Field(gt=0, le=1)]
_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)  # tried on validation; of the mean task vector
_FLOOR = 1e-6  # of the mean Fisher information: a weight that matters to no member is averaged
_RIDGE = 1e-8  # of a Gram matrix's mean diagonal: an input that was always zero is averaged


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix:
    """What a rule may use. All tensors are float64 on the CPU."""

    members: Sequence[State]  # parameter name -> tensor
    shares: Sequence[float]  # how much each member counts; they add up to 1
    names: Sequence[str]  # of the members, for the notes
    base: State = dataclasses.field(default_factory=dict)  # the checkpoint all members started from
    fishers: Sequence[State] = ()  # of each member: diagonal of the Fisher information, by parameter
    grams: Sequence[
        State
    ] = ()  # of each member: layer -> mean of x x^T, `(groups, D, D)`, see `merge_statistics.grams`
    judge: Callable[[State], float] = lambda state: 0.0  # main metric of these weights on validation; higher is better
    generator: torch.Generator = dataclasses.field(default_factory=torch.Generator)
    notes: list[str] = dataclasses.field(default_factory=list)  # what the ledger should say

    def vectors(self) -> list[State]:
        """Task vectors: what each member learnt, `theta_i - base` (Ilharco et al., 2023)."""
        return [{name: member[name] - self.base[name] for name in member} for member in self.members]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soup:
    """`sum_i share_i theta_i`: the uniform soup (Wortsman et al., 2022), or with shares a weighted one."""

    needs: ClassVar[Literal["", "base", "fisher", "gram"]] = ""

    def __call__(self, mix: Mix) -> State:
        return averaged(mix.members, mix.shares)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GreedySoup:
    """Members join in the order of their validation metric, each if the soup gets no worse (Wortsman et al., 2022).

    So the result is never worse on validation than the best member, judged alike.
    """

    needs: ClassVar[Literal["", "base", "fisher", "gram"]] = ""

    def __call__(self, mix: Mix) -> State:
        alone = [mix.judge(member) for member in mix.members]
        order = sorted(range(len(alone)), key=lambda i: -alone[i])
        chosen, best = order[:1], alone[order[0]]

        def soup(of: list[int]) -> State:
            return averaged([mix.members[i] for i in of], [mix.shares[i] for i in of])

        for index in order[1:]:
            value = mix.judge(soup([*chosen, index]))
            if value >= best:
                chosen, best = [*chosen, index], value
        mix.notes.append(f"greedy soup of {', '.join(mix.names[index] for index in chosen)}")
        return soup(chosen)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slerp:
    """`sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b` on each tensor (Shoemake, 1985); t is b's share, w the angle.

    Between tensors of the same norm it keeps the norm, as a straight line does not; for parallel ones it is the line.
    """

    needs: ClassVar[Literal["", "base", "fisher", "gram"]] = ""
    exactly: ClassVar[int] = 2  # members

    def __call__(self, mix: Mix) -> State:
        (a, b), t = mix.members, mix.shares[1]
        return {name: _between(a[name], b[name], t) for name in a}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskArithmetic:
    """`base + scale * sum_i share_i tau_i` (Ilharco et al., 2023); the paper's lambda is `scale / n`."""

    needs: ClassVar[Literal["", "base", "fisher", "gram"]] = "base"
    scale: float | None = None  # None: the best of several on validation, as in the paper

    def __call__(self, mix: Mix) -> State:
        return _moved(mix, averaged(mix.vectors(), mix.shares), self.scale)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ties:
    """Trim, elect signs, and average what agrees (Yadav et al., 2023).

    Of each task vector the `density` of largest magnitude stays. The sign of a weight is that of the sum over members;
    what is left of members with that sign is averaged.
    """

    needs: ClassVar[Literal["", "base", "fisher", "gram"]] = "base"
    density: _Share = 0.2
    scale: float | None = 1.0

    def __call__(self, mix: Mix) -> State:
        trimmed = [_trimmed(vector, self.density) for vector in mix.vectors()]
        merged = {}
        for name in mix.base:
            stack, shares = _stacked(trimmed, mix.shares, name)
            elected = (stack * shares).sum(0).sign()
            agrees = shares * ((stack.sign() == elected) & (stack != 0))
            merged[name] = (stack * agrees).sum(0) / agrees.sum(0).clamp(min=1e-12)
        return _moved(mix, merged, self.scale)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dare:
    """Drop and rescale: of each task vector a random `density` stays, divided by it (Yu et al., 2024, eq. 2-3).

    The expectation is the task vector itself; what the drops leave is added up as in task arithmetic.
    """

    needs: ClassVar[Literal["", "base", "fisher", "gram"]] = "base"
    density: _Share = 0.5
    scale: float | None = 1.0

    def __call__(self, mix: Mix) -> State:
        dropped = [{name: self._dropped(tau, mix.generator) for name, tau in tau.items()} for tau in mix.vectors()]
        return _moved(mix, averaged(dropped, mix.shares), self.scale)

    def _dropped(self, tau: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return tau * torch.bernoulli(torch.full_like(tau, self.density), generator=generator) / self.density


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fisher:
    """`sum_i share_i F_i theta_i / sum_i share_i F_i`, weight by weight (Matena & Raffel, 2022, eq. 2).

    F is the diagonal of the Fisher information: each member counts where its outputs depend on the weight.
    """

    needs: ClassVar[Literal["", "base", "fisher", "gram"]] = "fisher"

    def __call__(self, mix: Mix) -> State:
        every = torch.cat([value.flatten() for fisher in mix.fishers for value in fisher.values()])
        floor = max(_FLOOR * float(every.mean()), 1e-30)
        merged = {}
        for name in mix.members[0]:
            stack, shares = _stacked(mix.members, mix.shares, name)
            weights = shares * (torch.stack([fisher[name] for fisher in mix.fishers]) + floor)
            merged[name] = (weights * stack).sum(0) / weights.sum(0)
        return merged


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegMean:
    """`(sum_i G_i)^-1 sum_i G_i W_i` with `G = X^T X` of a layer's inputs (Jin et al., 2023, eq. 2).

    The layer whose outputs differ least, in squares, from each member's on that member's inputs. Off-diagonals of G are
    scaled by `alpha`, as in the paper. A convolution is linear in its unfolded inputs, a bias a weight of an input that
    is always 1. Parameters of other layers are averaged.
    """

    needs: ClassVar[Literal["", "base", "fisher", "gram"]] = "gram"
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.9

    def __call__(self, mix: Mix) -> State:
        merged = dict(averaged(mix.members, mix.shares))
        for layer in mix.grams[0]:
            grams = [share * self._scaled(gram[layer]) for gram, share in zip(mix.grams, mix.shares, strict=True)]
            total = torch.stack(grams).sum(0)
            groups, size = total.shape[:2]
            ridge = (total.diagonal(dim1=1, dim2=2).mean() * _RIDGE + 1e-30) * torch.eye(size, dtype=total.dtype)
            wanted = ridge @ _matrix(merged, layer, groups)
            for gram, member in zip(grams, mix.members, strict=True):
                wanted = wanted + gram @ _matrix(member, layer, groups)
            merged |= _parted(torch.linalg.solve(total + ridge, wanted), merged, layer)
        return merged

    def _scaled(self, gram: torch.Tensor) -> torch.Tensor:
        return self.alpha * gram + (1 - self.alpha) * torch.diag_embed(gram.diagonal(dim1=1, dim2=2))


MERGES: dict[str, type[Any]] = {
    "soup": Soup,
    "greedy-soup": GreedySoup,
    "slerp": Slerp,
    "task-arithmetic": TaskArithmetic,
    "ties": Ties,
    "dare": Dare,
    "fisher": Fisher,
    "regmean": RegMean,
}


def averaged(states: Sequence[State], shares: Sequence[float]) -> State:
    """`sum_i share_i theta_i / sum_i share_i`."""
    total = sum(shares)
    return {
        name: functools.reduce(
            torch.add, (state[name] * (share / total) for state, share in zip(states, shares, strict=True))
        )
        for name in states[0]
    }


def _stacked(states: Sequence[State], shares: Sequence[float], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One parameter of all members `(n, ...)`, and their shares in a shape that multiplies it."""
    stack = torch.stack([state[name] for state in states])
    return stack, torch.tensor(shares, dtype=stack.dtype).reshape(-1, *[1] * (stack.ndim - 1))


def _moved(mix: Mix, vector: State, scale: float | None) -> State:
    """`base + scale * vector`."""

    def at(factor: float) -> State:
        return {name: mix.base[name] + factor * vector[name] for name in vector}

    if scale is None:
        scale = max(_SCALES, key=lambda factor: mix.judge(at(factor)))
        mix.notes.append(f"scale {scale:g} of {', '.join(f'{each:g}' for each in _SCALES)} is best on validation")
    return at(scale)


def _trimmed(vector: State, density: float) -> State:
    """The share of largest magnitude over the whole vector, as the paper has it; zero elsewhere."""
    sizes = torch.cat([tensor.abs().flatten() for tensor in vector.values()])
    kept = torch.zeros_like(sizes)
    kept[sizes.topk(int(density * len(sizes))).indices] = 1
    parts = torch.split(kept, [tensor.numel() for tensor in vector.values()])
    return {
        name: tensor * part.reshape(tensor.shape) for (name, tensor), part in zip(vector.items(), parts, strict=True)
    }


def _between(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    lengths = a.norm() * b.norm()
    angle = torch.arccos(((a * b).sum() / lengths.clamp(min=1e-30)).clamp(-1, 1))
    if float(lengths * torch.sin(angle)) <= 1e-6 * float(
        lengths
    ):  # parallel, opposite or zero: there is no arc between them
        return (1 - t) * a + t * b
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def _matrix(state: State, layer: str, groups: int) -> torch.Tensor:
    """A layer's weights as `(groups, D, outputs of a group)`; a bias is the last row."""
    weight = state[f"{layer}.weight"]
    rows = weight.reshape(groups, len(weight) // groups, -1)
    if f"{layer}.bias" in state:
        rows = torch.cat([rows, state[f"{layer}.bias"].reshape(groups, -1, 1)], 2)
    return rows.transpose(1, 2)


def _parted(matrix: torch.Tensor, like: State, layer: str) -> dict[str, torch.Tensor]:
    """The inverse of `_matrix`."""
    rows, weight, bias = matrix.transpose(1, 2), like[f"{layer}.weight"], like.get(f"{layer}.bias")
    found = {f"{layer}.weight": (rows if bias is None else rows[:, :, :-1]).reshape(weight.shape)}
    return found if bias is None else found | {f"{layer}.bias": rows[:, :, -1].reshape(bias.shape)}
