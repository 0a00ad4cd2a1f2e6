"""What may leave a network, found by trying: on a copy with random weights, without one channel.

A channel may leave if the network without it still runs, gives outputs of the same shape, and computes what the whole
network computes with that channel silenced. What a channel is (a row; the same row of every group of a grouped
convolution; a pixel shuffle's square; a head) and which attributes count channels is searched for in the same way,
among the numbers that the layers themselves hold. No kind of network is known by name.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...core.errors import TaskError
from ..candidate import Candidate
from ..edit import AttentionEdit, ChannelEdit
from ..structure import measure
from . import confirmation, open_attention, regions
from .coupling import (
    Count,
    CoupledChannels,
    Example,
    Layout,
    Leaving,
    find,
    graph_of,
    kind_of,
    leaving,
    together,
)
from .joined import name_of
from .kept_trials import KeptTrials, key_of
from .layouts import bookkeeping_of, counts_of, layouts_of, names_of
from .other_weights import negated, scale, trial_of
from .regions import Region, Regions, lean_copy
from .silenced import silenced

_OUTPUT = "its channels are the model's output"
_DIFFERENT = (
    "without one of its channels the model runs, but computes something else: the forward pass knows channels by their "
    "number, or mixes all of them"
)
_COUPLED = "its rows leave only together, and no number that the layers hold says how"
_LOST = "several of its channels share one of {}, as the heads of a grouped-query attention do, which is not followed"
_SHARED = (
    "each of its channels is shared by several of {}, as heads of a grouped-query attention are, which is not followed"
)
_TWO_WAYS = (
    "the forward pass calls {} with some weights and not with others: control flow decides, and of the other way "
    "nothing is known; write that part with tensor operations"
)
_MOST_COUNTS = 8
_LEVELLING = ("Softmax", "LogSoftmax", "SafeSoftmax", "Logsumexp", "Exp")  # of large values all but one weigh nothing
_QUIET = 0.01  # factor of a group's own weights, where the network has any of these
_MOST_MACS = 1e9  # of the trial's samples in double precision, which tells more apart; above that in single


_kept = KeptTrials()


def prunable(
    module: nn.Module,
    example: Example,
    groups: Iterable[CoupledChannels] | None = None,
    factory: Callable[[], nn.Module] | None = None,
) -> tuple[list[CoupledChannels], dict[str, str]]:
    """Every group of coupled channels of `module`, with channels that can leave, in the order of its layers.

    Args:
        groups: of those that `find` gives; None: all.
        factory: what made the module; what is found is kept for the next that it makes and that is built alike.

    Returns:
        The groups, and root -> reason for those that must not be pruned: one whose removal changes the shape of an
        output (a classifier), breaks the forward pass, or makes it compute something else.

    Raises:
        TaskError: the forward pass returns no tensors.
    """
    graph = graph_of(module, example)
    groups = find(module, example, graph) if groups is None else list(groups)
    key = "" if factory is None else key_of(module, example, groups)
    if factory is not None and (known := _kept.get(factory, module, key)) is not None:
        return known
    trial = _Trial(module, example, graph, groups)
    found = trial.confirmed()
    if factory is not None and not trial.own_weights:
        _kept.put(factory, module, key, found)
    return found


def with_open_attention(value: Candidate) -> Candidate:
    """A candidate that computes the same, with every attention open that can be."""
    module = value.module()
    edits = [AttentionEdit(attention=name) for name in open_attention.find(module)]
    for edit in edits:
        open_attention.opened(module, edit.attention)
    return Candidate.of(module, value, (*value.edits, *edits)) if edits else value


class _Trial:
    """One module, to be tried without one channel of each group: first in the part that it runs through."""

    def __init__(self, module: nn.Module, example: Example, graph: Any, groups: Sequence[CoupledChannels]) -> None:
        self._module, self._example, self._graph, self._groups = module, example, graph, groups
        self._in_whole = False  # try in the whole network only
        generator = torch.Generator().manual_seed(1)
        inputs = {
            name: torch.randn(x.shape, generator=generator).to(x.dtype) if x.is_floating_point() else x
            for name, x in example.items()
        }
        count = len(next(iter(example.values())))
        large = count * measure(module, example, ()).macs > _MOST_MACS
        self._random, given, whole, self.own_weights = trial_of(module, inputs, not large)
        if not whole:
            raise TaskError("the model's forward returns no tensors")
        self._regions = Regions(self._random, given, whole, map(names_of, groups))
        self._sometimes = _sometimes_called([module, self._random, negated(self._random)], [inputs, given, given])
        self._levels_off = any(name_of(node.grad_fn).startswith(_LEVELLING) for node in graph.module2node.values())
        self._known: dict[tuple[str, int], Layout] = {}  # what fitted another group that is built alike
        self._samples: dict[tuple[str, Layout, tuple[Count, ...]], tuple[ChannelEdit, Leaving]] = {}
        self._generator = torch.Generator().manual_seed(2)

    def confirmed(self) -> tuple[list[CoupledChannels], dict[str, str]]:
        """What `prunable` returns: what passed by itself holds in the whole network too, or is refused."""
        if self._sometimes:
            return list(self._groups), {group.root: _TWO_WAYS.format(self._sometimes) for group in self._groups}
        fitted = {group.root: self.fitted(group) for group in self._groups}
        passed = [root for root, (_, reason) in fitted.items() if not reason]
        if again := confirmation.wrong(passed, functools.partial(self._together, fitted)):
            self._in_whole = True  # something outside the parts that were tried knows of their channels
            fitted |= {group.root: self.fitted(group) for group in self._groups if group.root in again}
            passed = [root for root, (_, reason) in fitted.items() if not reason]
            for root, reason in confirmation.wrong(passed, functools.partial(self._together, fitted)).items():
                fitted[root] = fitted[root][0], reason
        reasons = {root: reason for root, (_, reason) in fitted.items() if reason}
        return self._with_bookkeeping([group for group, _ in fitted.values()], reasons), reasons

    def _with_bookkeeping(self, groups: Sequence[CoupledChannels], reasons: Mapping[str, str]) -> list[CoupledChannels]:
        """With attributes that count channels and that nothing reads; what several groups may count stays as it is."""
        claims = Counter((each.module, each.attribute) for group in groups for each in counts_of(self._random, group))
        found = {
            group.root: [
                count
                for count in bookkeeping_of(self._random, group)
                if claims[count.module, count.attribute] == 1 and self._unread(count)
            ]
            for group in groups
            if group.root not in reasons
        }
        return [dataclasses.replace(group, counts=(*group.counts, *found.get(group.root, ()))) for group in groups]

    def _unread(self, count: Count) -> bool:
        """Whether the network computes the same without an attribute: a number that is read may mean something else."""
        holder = self._random.get_submodule(count.module)
        value = getattr(holder, count.attribute)
        delattr(holder, count.attribute)
        try:
            return not self._compared(self._random, self._regions.whole, self._regions.whole.outputs)
        finally:
            setattr(holder, count.attribute, value)

    def _together(self, fitted: Mapping[str, tuple[CoupledChannels, str]], roots: Sequence[str]) -> str:
        """Why the whole network is wrong without channels of all these groups, or an empty string."""
        try:
            samples, whole = [self._sample(fitted[root][0]) for root in roots], self._regions.whole
            left = together([left for _, left in samples])
            trial, expected = _without(self._random, whole, left, [edit for edit, _ in samples])
        except Exception as error:  # a foreign forward pass may raise anything
            return _broken(error)
        return self._compared(trial, whole, expected, share=1e-4)  # of what all together did

    def _sample(self, group: CoupledChannels) -> tuple[ChannelEdit, Leaving]:
        """Some channels of a group, the same ones whenever it is asked for."""
        key = group.root, group.layout, group.counts
        if key not in self._samples:
            edit = group.edit(confirmation.sample(group, self._generator))
            self._samples[key] = edit, leaving(self._module, self._example, edit, self._graph)
        return self._samples[key]

    def fitted(self, group: CoupledChannels) -> tuple[CoupledChannels, str]:
        """The group with the smallest channels that can leave, and an empty string; or as it was, and why none can."""
        if group.lost:
            return group, _LOST.format(group.lost)
        reason = "has a single channel" if group.channels < 2 else self._bound(group)
        if reason:
            return group, reason
        first = ""
        kind = kind_of(self._module, group), group.channels
        alone = len(leaving(self._module, self._example, group.edit([0]), self._graph).rows(group.root))
        layouts = [Layout(), *layouts_of(self._random, group, alone)]
        layouts.sort(key=lambda layout: layout != self._known.get(kind))
        for follow in (False, True):
            for layout in layouts:
                found, reason = self._tried(group.laid_out(layout), follow)
                if not reason:
                    self._known[kind] = layout
                    return found, ""
                first = reason if first in ("", _COUPLED) else first
                if reason == _OUTPUT:
                    return group, first
        return group, _SHARED.format(group.shared) if group.shared else first

    def _bound(self, group: CoupledChannels) -> str:
        """Why weights of a group cannot be cut by themselves, or an empty string."""
        names: dict[int, dict[nn.Module, str]] = {}  # one tensor -> the layers that hold it
        for name, layer in self._module.named_modules():
            for key, parameter in layer.named_parameters(recurse=False):
                names.setdefault(id(parameter), {})[layer] = f"{name}.{key}"
        everything = ChannelEdit(layer=group.root, remove=tuple(range(group.rows)))
        parts = leaving(self._module, self._example, everything, self._graph).parts
        cut = dict.fromkeys(name for name, kind, _, _ in parts if kind != "parameter")
        for name in cut:  # a closed attention, too, which is no member of a group
            layer = self._module.get_submodule(name)
            if nn.utils.parametrize.is_parametrized(layer):
                return f"the weights of {name} are parametrized; fold them with remove_parametrizations first"
            for parameter in layer.parameters(recurse=False):
                others = [other for holder, other in names[id(parameter)].items() if holder is not layer]
                if others:
                    return f"weights of {name} are tied to {', '.join(others)}; cutting them would untie them"
        return ""

    def _tried(self, group: CoupledChannels, follow: bool) -> tuple[CoupledChannels, str]:
        """The group with the attributes that have to follow, or why it cannot lose a channel.

        Args:
            follow: it may need attributes to follow.
        """
        counts = list(itertools.islice(counts_of(self._random, group), _MOST_COUNTS))
        if follow and not counts:
            return group, _COUPLED
        edit = group.edit([0])  # the first: whoever counts from one end takes others for what is behind it
        try:
            left = leaving(self._module, self._example, edit, self._graph)
        except Exception as error:  # see `_together`
            return group, _broken(error)
        if left.rows(edit.layer) != set(edit.remove):
            return group, _COUPLED
        part = self._regions.around(left.layers)
        if not self._in_whole and all(part.holds(count.module) for count in counts):
            found, reason = self._at(part, group, left, counts, follow)
            if not reason:
                return found, self._quietly(part, found, left)
        found, reason = self._at(self._regions.whole, group, left, counts, follow)
        return found, reason or self._quietly(self._regions.whole, found, left)

    def _quietly(self, part: Region, group: CoupledChannels, left: Leaving) -> str:
        """Why a group that fits is wrong where its channels have small values, or an empty string."""
        if not self._levels_off:
            return ""
        writers = [name for name, kind, *_ in left.parts if kind == "out"]
        try:
            quiet = lean_copy(self._random, part, left.layers)
            for name in writers:
                scale(quiet.get_submodule(name).parameters(recurse=False), _QUIET)
            before = part.answers(quiet)
            trial, expected = _without(quiet, part, left, [group.edit([0])])
        except Exception as error:  # see `_together`
            return _broken(error)
        return self._compared(trial, dataclasses.replace(part, outputs=before), expected)

    def _at(
        self, part: Region, group: CoupledChannels, left: Leaving, counts: Sequence[Count], follow: bool
    ) -> tuple[CoupledChannels, str]:
        """See `_tried`; in a part of the network."""
        trial = lean_copy(self._random, part, left.layers)
        try:
            left.cut(trial)
        except Exception as error:  # see `_together`
            return group, _broken(error)
        found, reason = self._answers(trial, part)
        if reason == _OUTPUT or (reason and not follow):
            return group, reason
        try:
            expected = part.answers(silenced(lean_copy(self._random, part, left.layers), trial, left))
        except Exception as error:  # see `_together`
            return group, _broken(error)
        reason = reason or _difference(found, expected, part.outputs)
        if not reason or not follow:
            return group, reason
        for tried in _subsets(counts):
            if self._holds(trial, part, expected, group, tried):
                return dataclasses.replace(group, counts=tried), ""
        return group, reason

    def _holds(
        self,
        trial: nn.Module,
        part: Region,
        expected: Sequence[torch.Tensor],
        group: CoupledChannels,
        counts: Sequence[Count],
    ) -> bool:
        """Whether a network without a channel is right when these attributes follow."""
        before = [(trial.get_submodule(count.module), count) for count in counts]
        values = [getattr(layer, count.attribute) for layer, count in before]
        for layer, count in before:
            setattr(layer, count.attribute, count.each * (group.channels - 1))
        try:
            return not self._compared(trial, part, expected)
        finally:
            for (layer, count), value in zip(before, values, strict=True):
                setattr(layer, count.attribute, value)

    def _answers(self, trial: nn.Module, part: Region) -> tuple[list[torch.Tensor], str]:
        try:
            found = part.answers(trial)
        except Exception as error:  # see `_together`
            return [], _broken(error)
        return found, "" if [x.shape for x in found] == [x.shape for x in part.outputs] else _OUTPUT

    def _compared(self, trial: nn.Module, part: Region, expected: Sequence[torch.Tensor], share: float = 1e-3) -> str:
        found, reason = self._answers(trial, part)
        return reason or _difference(found, expected, part.outputs, share)


def _without(
    module: nn.Module, part: Region, left: Leaving, edits: Sequence[ChannelEdit]
) -> tuple[nn.Module, list[torch.Tensor]]:
    """A copy of a network after these edits, which together take out `left`, and what it has to answer in `part`."""
    trial = lean_copy(module, part, left.layers)
    left.cut(trial)
    for name, attribute, value in (each for edit in edits for each in edit.attributes):
        setattr(trial.get_submodule(name), attribute, value)
    return trial, part.answers(silenced(lean_copy(module, part, left.layers), trial, left))


def _subsets(counts: Sequence[Count]) -> Iterator[tuple[Count, ...]]:
    """One attribute, two, all of them: those without which the network would not run come first."""
    for size in sorted({1, min(2, len(counts)), len(counts)}):
        yield from itertools.combinations(counts, size)


def _difference(
    found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], whole: Sequence[torch.Tensor], share: float = 1e-3
) -> str:
    """An empty string if a network gives what is expected: within a small share of what silencing did."""
    for ours, theirs, before in zip(found, expected, whole, strict=True):
        if theirs.is_floating_point():
            noise = 1e3 * torch.finfo(theirs.dtype).eps * float(theirs.abs().max())
            effect = float((theirs - before).abs().max())
            if not float((ours - theirs).abs().max()) <= max(share * effect, noise):
                return _DIFFERENT
    return ""


def _sometimes_called(modules: Sequence[nn.Module], inputs: Sequence[Example]) -> str:
    """A layer that not all of these copies of a network call, or an empty string."""
    found = []
    for module, given in zip(modules, inputs, strict=True):
        with contextlib.suppress(Exception):  # see `_together`; what it called before is no way through
            found.append(regions.calls(module, given))
    others = (name for calls in found for name in calls if not all(name in each for each in found))
    return next(others, "")


def _broken(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"the model breaks without one of its channels: {lines[0][:160]}"
