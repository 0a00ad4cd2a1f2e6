"""What every entry of the compressor's tables has to keep: stages, importances, allocations, losses, schedules."""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from edgesmith.compressor.learning.distillation import DISTILLATIONS
from edgesmith.compressor.learning.losses import LOSSES
from edgesmith.compressor.learning.optimizers import OPTIMIZERS, SCHEDULES
from edgesmith.compressor.pruning.allocation import ALLOCATIONS, Facts
from edgesmith.compressor.pruning.importance import IMPORTANCES, Rows
from edgesmith.compressor.recipe import from_mapping
from edgesmith.compressor.schema import parse, plain
from edgesmith.compressor.stage import Stage
from edgesmith.compressor.stages import STAGES

GUIDE = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()


@pytest.mark.parametrize("name", sorted(STAGES))
class TestStage:
    def test_it_says_what_it_is(self, name: str) -> None:
        stage = STAGES[name]
        assert issubclass(stage, Stage)
        assert stage.name == name
        assert stage.accepts in ("candidate", "graph", "nothing")
        assert stage.returns in ("candidate", "graph")
        assert stage.__doc__

    def test_its_fields_are_recipe_keys_with_defaults(self, name: str) -> None:
        required = [
            field.name
            for field in dataclasses.fields(STAGES[name])
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ]
        assert required == ["id"]
        with pytest.raises(dataclasses.FrozenInstanceError):
            parse(STAGES[name], {"id": "x"}, "w").id = "y"  # type: ignore[misc]  # frozen: that is the point

    def test_it_survives_a_recipe_file(self, name: str) -> None:
        import tomllib

        data = {"task": "t.py", "stages": [{"use": name}], "limits": {"drop": 0.1}}
        recipe = from_mapping(data, folder=Path())
        assert from_mapping(tomllib.loads(recipe.to_toml()), folder=Path()) == recipe
        assert parse(STAGES[name], plain(recipe.stages[0]), "w") == recipe.stages[0]

    def test_every_key_is_in_the_guide(self, name: str) -> None:
        keys = {field.name for field in dataclasses.fields(STAGES[name])} - {"id"}
        assert {key for key in keys if f"`{key}`" not in GUIDE} == set()


def rows(kind: Any, weight: torch.Tensor) -> Rows:
    return Rows(
        kind=kind,
        weight=weight,
        taylor=weight.square().sum(1),
        activation=weight.abs().mean(1) if kind == "in" else None,
        energy=weight.square().mean(1) if kind == "in" else None,
        curvature=weight.square().sum(1),
        generator=torch.Generator().manual_seed(0),
    )


@pytest.mark.parametrize("name", sorted(IMPORTANCES))
def test_an_importance_scores_each_row_or_says_nothing(name: str) -> None:
    spoke = False
    for kind, width in (("out", 9), ("in", 9), ("norm", 1)):
        values = IMPORTANCES[name].rule(rows(kind, torch.randn(6, width)))
        if values is not None:
            spoke = True
            assert values.shape == (6,)
            assert bool((values >= 0).all())
    assert spoke


@pytest.mark.parametrize("name", sorted(IMPORTANCES.keys() - {"random", "fpgm"}))
def test_a_dead_row_is_the_least_important(name: str) -> None:
    # Not so for fpgm: what it finds is a filter that others can stand in for, however large.
    for kind, width in (("out", 9), ("in", 9), ("norm", 1)):
        weight = torch.rand(6, width) + 0.1
        weight[3] = 0
        values = IMPORTANCES[name].rule(rows(kind, weight))
        assert values is None or int(values.argmin()) == 3


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
def test_an_allocation_keeps_all_at_zero_and_less_and_less(name: str) -> None:
    scores = {"a": torch.rand(16) + 0.5, "b": torch.rand(8) + 0.5}
    kept = [ALLOCATIONS[name](scores, step / 10, Facts()) for step in range(11)]
    assert kept[0] == {"a": 16.0, "b": 8.0}
    totals = [sum(counts.values()) for counts in kept]
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] == 0
    assert all(0 <= counts["a"] <= 16 and 0 <= counts["b"] <= 8 for counts in kept)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_loss_is_least_where_the_student_is_right(name: str) -> None:
    loss, outputs = LOSSES[name], torch.randn(8, 4)
    right: torch.Tensor = outputs.argmax(1) if loss.classes else loss.as_label(outputs)
    wrong = (right + 1) % 4 if loss.classes else loss.as_label(outputs + 1)
    assert float(loss.hard(outputs, right)) < float(loss.hard(outputs, wrong))
    assert loss.classes == (right.ndim == 1)


@pytest.mark.parametrize("name", sorted(DISTILLATIONS))
def test_a_distillation_loss_is_least_where_the_student_answers_as_the_teacher(name: str) -> None:
    """NKD pulls the own class up whatever the teacher says; there it is sure, and the others' order is what counts."""
    teacher = torch.randn(8, 5)
    classes = torch.arange(8) % 5
    teacher[torch.arange(8), classes] += 8.0
    loss = DISTILLATIONS[name]()
    same = float(loss(teacher, teacher, classes, 2.0))
    for seed in range(5):
        noise = torch.randn(8, 5, generator=torch.Generator().manual_seed(seed)) * torch.logspace(0, -0.5, 5)[seed]
        assert float(loss(teacher + noise, teacher, classes, 2.0)) > same
    options = {field.name: 1.0 for field in dataclasses.fields(loss)}
    assert f'"{name}"' in GUIDE or f"`{name}`" in GUIDE
    assert {key for key in options if f"`{key}`" not in GUIDE} == set()


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_a_schedule_starts_at_one_and_never_grows(name: str) -> None:
    factors = [SCHEDULES[name](step / 100) for step in range(101)]
    assert factors[0] == 1
    assert all(0 <= later <= earlier + 1e-12 for earlier, later in itertools.pairwise(factors))
    assert not math.isnan(factors[-1])


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_an_optimizer_goes_downhill(name: str) -> None:
    point = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = OPTIMIZERS[name]([{"params": [point], "weight_decay": 0.0}], 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        point.square().sum().backward()
        optimizer.step()
    assert float(point.detach().abs().max()) < 0.2
