"""Merging: one set of weights from several models of the same architecture, at the cost of one."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from ...core.errors import RecipeError
from ...core.tables import resolve
from ...core.task import Task
from ...exporters.sessions.torch_session import TorchSession
from ..candidate import Candidate
from ..compare import compare
from ..data import batches, calibration_split, reestimate_batch_norm
from ..evaluation import evaluate, task_metrics
from ..schema import parse
from ..stage import Context, Graph, Probe, Stage
from .align import align, permutable
from .merge_statistics import fisher, grams
from .mergeable import parameter_names, require_alike, require_finite
from .merging import MERGES, Mix, State, averaged

_GRAMS_AT_ONCE = 64  # samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merge(Stage):
    """Merge the weights of models of one architecture by a rule; batch-norm statistics are re-estimated afterwards."""

    name: ClassVar[str] = "merge"
    accepts: ClassVar[Literal["candidate", "graph", "nothing"]] = "nothing"
    returns: ClassVar[Literal["candidate", "graph"]] = "candidate"

    members: tuple[str, ...] = ()  # "original", ids of earlier stages, names in the task's models
    rule: str = "soup"  # in `merging.MERGES`
    rule_options: Mapping[str, float] = dataclasses.field(default_factory=dict)
    weights: tuple[Annotated[float, Field(gt=0)], ...] = ()  # how much each member counts; empty: the same
    base: str = "original"  # the checkpoint all members started from, for rules on what each has learnt since
    align: bool = False  # permute each member's hidden channels to match the first's, before anything else
    samples: Annotated[int, Field(ge=2)] = 512  # for batch norms, and for rules that need data
    batch_size: Annotated[int, Field(ge=2)] = 64

    def check(self, task: Task, where: str) -> None:
        """See `Stage.check`."""
        rule = self._rule(where)
        exactly = getattr(rule, "exactly", None)
        if len(self.members) < 2 or (exactly is not None and len(self.members) != exactly):
            wanted = "at least two" if exactly is None else str(exactly)
            raise RecipeError(f"{where}.members: '{self.rule}' merges {wanted} models; got {list(self.members)}")
        if len(set(self.members)) != len(self.members):
            raise RecipeError(f"{where}.members: {list(self.members)} names one twice")
        if self.weights and len(self.weights) != len(self.members):
            raise RecipeError(f"{where}.weights: {len(self.weights)} weights for {len(self.members)} members")
        if self.base != "original" and rule.needs != "base":
            raise RecipeError(f"{where}.base: '{self.rule}' reads no base; leave it out")
        if self.align and rule.needs == "base":
            raise RecipeError(f"{where}.align: members that share a base are aligned as they are; leave it out")
        if task.calibration is None:
            task.split("train", f"{where}: re-estimating batch norms (no 'calibration' split is set)")

    def needs(self) -> tuple[str, ...]:
        """See `Stage.needs`."""
        with_base = getattr(MERGES.get(self.rule), "needs", "base") == "base"
        return (*self.members, self.base) if with_base else self.members

    def rehearse(self, value: Any, context: Context) -> Candidate:
        """See `Stage.rehearse`: names, shapes and classes agree, and there are channels to align."""
        models = self._models(context)
        if self.align:
            self._groups(models[self.members[0]], context)
        return models[self.members[0]]

    def estimate(self, task: Task, probe: Probe) -> float:
        """See `Stage.estimate`."""
        passes = (
            self.samples * (probe.forward + probe.backward) + len(task.split("validation", self.name)) * probe.forward
        )
        return 2.0 + 2 * len(self.members) * passes

    def run(self, value: Any, context: Context) -> Candidate:
        """See `Stage.run`."""
        models = self._models(context)
        require_finite(models, f"{context.where}.members")
        if self.align:
            models = self._aligned(models, context)
        members = [models[name] for name in self.members]
        weights = self.weights or (1.0,) * len(members)
        shares = [weight / sum(weights) for weight in weights]
        rule = self._rule(context.where)
        mix = self._mix(rule, models, shares, context)
        merged = self._finished(rule(mix), members, shares, context)
        context.notes.extend(mix.notes)
        context.notes.append(self._note(merged, members, context))
        return merged

    def _rule(self, where: str) -> Any:
        return parse(resolve(self.rule, MERGES, f"{where}.rule"), self.rule_options, f"{where}.rule_options")

    def _models(self, context: Context) -> dict[str, Candidate]:
        """Members, and the base where the rule reads one."""
        models = {}
        for name in self.needs():
            model = context.named(name)
            if isinstance(model, Graph):
                raise RecipeError(f"{context.where}.members: '{name}' is an ONNX file, whose weights are not merged")
            models[name] = model
        require_alike(models, f"{context.where}.members")
        return models

    def _groups(self, model: Candidate, context: Context) -> Any:
        groups = permutable(model.module(), model.example)
        if not groups:
            raise RecipeError(f"{context.where}.align: no channels of this network may change their order")
        return groups

    def _aligned(self, models: Mapping[str, Candidate], context: Context) -> dict[str, Candidate]:
        first = models[self.members[0]]
        groups = self._groups(first, context)
        total = sum(group.channels for group in groups)
        aligned = {self.members[0]: first}
        for name in self.members[1:]:
            weights, moved = align(models[name].weights, first.weights, groups)
            aligned[name] = dataclasses.replace(models[name], weights=weights)
            context.notes.append(f"{name} aligned with {self.members[0]}: {moved} of {total} channels change places")
        return aligned

    def _mix(self, rule: Any, models: Mapping[str, Candidate], shares: list[float], context: Context) -> Mix:
        members = [models[name] for name in self.members]
        modules = {name: model.module() for name, model in models.items()}
        names = parameter_names(modules[self.members[0]])

        def parameters(model: Candidate) -> State:
            return {name: model.weights[name].double() for name in dict.fromkeys(names.values())}

        def judge(state: State) -> float:
            return self._score(self._finished(state, members, shares, context), context)

        own = [modules[name] for name in self.members]
        return Mix(
            members=[parameters(member) for member in members],
            shares=shares,
            names=self.members,
            base=parameters(models[self.base]) if rule.needs == "base" else {},
            fishers=[self._fisher(module, context) for module in own] if rule.needs == "fisher" else (),
            grams=[self._grams(module, context) for module in own] if rule.needs == "gram" else (),
            judge=judge,
            generator=torch.Generator().manual_seed(context.machine.seed),
        )

    def _fisher(self, module: nn.Module, context: Context) -> State:
        task, generator = context.task, torch.Generator().manual_seed(context.machine.seed)
        samples = batches(context, calibration_split(task), self.samples, 1)
        found = fisher(module.to(context.machine.device), samples, task, task.outputs[0], generator)
        every = {name: torch.zeros_like(p) for name, p in module.named_parameters()} | found
        return {name: value.cpu().double() for name, value in every.items()}

    def _grams(self, module: nn.Module, context: Context) -> State:
        """Of layers whose weights are theirs alone; tied ones are averaged."""
        samples = batches(context, calibration_split(context.task), self.samples, _GRAMS_AT_ONCE)
        found, names = grams(module.to(context.machine.device), samples), list(parameter_names(module).values())
        return {layer: gram for layer, gram in found.items() if names.count(f"{layer}.weight") == 1}

    def _finished(self, state: State, members: list[Candidate], shares: list[float], context: Context) -> Candidate:
        """The merged parameters with averaged buffers and batch norms that fit them."""
        first = members[0].weights
        names = parameter_names(members[0].module())
        buffers = [{n: t.double() for n, t in m.weights.items() if n not in names and _real(t)} for m in members]
        every = {**first, **{name: state[under] for name, under in names.items()}, **averaged(buffers, shares)}
        weights = {name: tensor.to(first[name].dtype) for name, tensor in every.items()}
        module = dataclasses.replace(members[0], weights=weights).module()
        reestimate_batch_norm(module, context, self.samples, self.batch_size)
        return Candidate.of(module, members[0])

    def _score(self, candidate: Candidate, context: Context) -> float:
        """The main metric on validation, such that higher is better."""
        metric, task = task_metrics(context.task)[0], context.task
        session = TorchSession(candidate.module().to(context.machine.device), task.input_specs(), task.outputs)
        value = evaluate(session, task.split("validation", context.where), (metric,))[metric.name]
        return value if metric.higher_is_better else -value

    def _note(self, merged: Candidate, members: list[Candidate], context: Context) -> str:
        """Members and result on validation, and the paired gain over the best member."""
        metric = task_metrics(context.task)[0]
        sign = 1 if metric.higher_is_better else -1
        scores = [self._score(member, context) for member in members]
        mean = sum(scores) / len(scores)
        best = max(range(len(scores)), key=scores.__getitem__)
        found = compare(merged, members[best], context)
        each = ", ".join(f"{name} {sign * score:.4f}" for name, score in zip(self.members, scores, strict=True))
        versus = "better" if sign * found.values[0] > mean else "not better"
        return (
            f"{metric.name} on validation: {each}; merged {found.values[0]:.4f} is {versus} than the members' mean, "
            f"{sign * mean:.4f}; gain over the best, {self.members[best]}, {found.shown('merged')}"
        )


def _real(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point()
