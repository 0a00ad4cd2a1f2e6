"""Recipes: what they accept, what they say about what they do not, and that they survive a round trip."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, ClassVar

import pytest

from edgesmith.compressor import recipe as recipes
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.core.errors import ExitCode, RecipeError

GOOD: dict[str, Any] = {
    "task": "task.py",
    "stages": [{"use": "prune", "macs_ratio": 0.5}, {"use": "export"}, {"use": "quantize"}],
    "limits": {"drop": 0.01},
}


def build(overrides: tuple[str, ...] = (), **changes: Any) -> recipes.Recipe:
    return recipes.from_mapping({**GOOD, **changes}, folder=Path(), overrides=overrides)


def refusal(overrides: tuple[str, ...] = (), **changes: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        build(overrides, **changes)
    assert caught.value.exit_code == ExitCode.USAGE
    return str(caught.value)


def test_defaults_are_filled_in() -> None:
    recipe = build()
    assert [stage.id for stage in recipe.stages] == ["prune", "export", "quantize"]
    assert recipe.targets == ("onnxruntime-cpu",)
    assert recipe.measure.batch_sizes == (1, 32)
    assert isinstance(recipe.stages[0], Prune) and recipe.stages[0].importance == "magnitude-l2"


def test_resolved_recipe_reads_back_as_the_same() -> None:
    recipe = build(
        stages=[
            {
                "use": "prune",
                "id": "a",
                "macs_ratio": 0.5,
                "keep": ['we"ird.*'],
                "allocation": "per-group",
                "intensity": {"a.*": 2.0},
            },
            {"use": "export"},
        ]
    )
    again = recipes.from_mapping(tomllib.loads(recipe.to_toml()), folder=Path())
    assert again == recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine(Prune):
    """As a user's own stage; its name is in no table, or in it for another class."""

    name: ClassVar[str] = "prune"


def test_a_stage_of_the_users_own_is_written_by_where_it_stands() -> None:
    own = f"{__name__}:Mine"
    recipe = build(stages=[{"use": own, "macs_ratio": 0.5}, {"use": "export"}])
    assert recipe.stages[0].id == "Mine"
    assert type(recipe.stages[0]) is Mine and f'use = "{own}"' in recipe.to_toml()
    assert recipes.from_mapping(tomllib.loads(recipe.to_toml()), folder=Path()) == recipe


def test_overrides_change_stage_limits_and_measure() -> None:
    recipe = build(("prune.macs_ratio=0.25", "prune.importance=taylor", "limits.drop=0.02", "measure.batch_sizes=[8]"))
    assert isinstance(recipe.stages[0], Prune)
    assert recipe.stages[0].macs_ratio == 0.25
    assert recipe.stages[0].importance == "taylor"
    assert recipe.limits.drop == 0.02
    assert recipe.measure.batch_sizes == (8,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stags": []}, "recipe: unknown 'stags'; did you mean 'stages'? known: against, build, limits, measure, stages, targets, task"),
        ({"stages": [{"use": "prun"}]}, "recipe: stages[0].use: unknown 'prun'; did you mean 'prune'? known: combine, distill, export, finetune, fuse, merge, prune, prune-blocks, qat, quantize"),
        ({"stages": [{"macs_ratio": 0.5}]}, "recipe: stages[0]: 'use' is missing; it names what the stage does: combine, distill, export, finetune, fuse, merge, prune, prune-blocks, qat, quantize"),
        ({"task": "task.py:ta\0sk"}, "recipe: 'task.py:ta\\x00sk' holds a NUL character"),
        ({"stages": "prune"}, "recipe: 'stages' must be a list of tables; write each as [[stages]]"),
        ({"stages": [{"use": "prune", "macs_ratio": 1.5}]}, "recipe: stages[0].macs_ratio: input should be less than 1, got 1.5"),
        ({"stages": [{"use": "prune", "macs_ratio": 0.0}]}, "recipe: stages[0].macs_ratio: input should be greater than 0, got 0.0"),
        ({"stages": [{"use": "prune", "macs_ratio": 0.5, "intensity": {"a": -1.0}}]}, "recipe: stages[0].intensity.a: input should be greater than or equal to 0, got -1.0"),
        ({"stages": [{"use": "prune", "steps": "two"}]}, 'recipe: stages[0].steps: input should be a valid integer, got "two"'),
        ({"limits": {"drop": "small"}}, 'recipe: limits.drop: input should be a valid number, got "small"'),
        ({"targets": ["onnxruntime"]}, "recipe: targets[0]: unknown 'onnxruntime'; did you mean 'onnxruntime-x86'? known: onnxruntime-arm, onnxruntime-cpu, onnxruntime-cuda, onnxruntime-openvino, onnxruntime-tensorrt, onnxruntime-x86, openvino, tensorrt"),
        ({"measure": {"restarts": 4}}, "recipe: measure.restarts: 4 cannot give an interval at 95% confidence; use at least 5"),
        ({"stages": [{"use": "export"}, {"use": "export"}]}, "recipe: stages[1].id: 'export' is taken; give each stage an id of its own"),
        ({"stages": [{"use": "export", "id": "a/b"}]}, "recipe: stages[0].id: 'a/b' may hold only letters, digits, '-' and '_'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(changes: dict[str, Any], message: str) -> None:
    assert refusal(**changes) == message


def test_an_unknown_key_gets_a_suggestion() -> None:
    message = refusal(stages=[{"use": "prune", "mac_ratio": 0.5}])
    assert message.startswith(
        "recipe: stages[0]: unknown key 'mac_ratio'; did you mean 'macs_ratio'? known: id, macs_ratio,"
    )


def test_limits_that_judge_nothing_are_refused() -> None:
    assert refusal(limits={}).startswith(
        "limits: nothing is judged; set at least one of drop, metric, negative_flips, class_drop, slice_"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prune.macs_ratio", "--set prune.macs_ratio: write it as stage.key=value, for example prune.macs_ratio=0.5"),
        ("prnue.steps=2", "--set prnue.steps=2: unknown 'prnue'; did you mean 'prune'? known: build, export, limits, measure, prune, quantize"),
    ],
)  # fmt: skip
def test_an_override_that_fits_nothing_is_refused(text: str, message: str) -> None:
    assert refusal((text,)) == message


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (["prune", "quantize"], "stages[1] 'quantize': quantize takes a graph, but 'prune' gives a candidate; put an 'export' stage before it"),
        (["export", "prune"], "stages[1] 'prune': prune takes a candidate, but 'export' gives a graph; put it before the 'export' stage"),
        (["qat", "prune"], "stages[1] 'prune': prune takes a candidate, but 'qat' gives a graph; put it before the 'qat' stage"),
        (["qat", "quantize"], "stages[1] 'quantize': the model is INT8 since 'qat', and quantize would find its ranges anew; take one of the two out"),
        (["prune"], "stages: the last one leaves a candidate, which no target runs; end with an 'export' stage"),
    ],
)  # fmt: skip
def test_stages_that_do_not_chain_are_refused(stages: list[str], message: str) -> None:
    recipe = build(stages=[{"use": use} for use in stages])
    with pytest.raises(RecipeError) as caught:
        recipes.check_chain(recipe, "candidate")
    assert str(caught.value) == message


def test_a_source_needs_nothing_before_it() -> None:
    distill = {"use": "distill", "student": "small", "teacher": "original"}
    recipes.check_chain(build(stages=[distill, {"use": "export"}]), "graph")
    again = [{"use": "qat"}, distill, {"use": "export"}, {"use": "quantize"}]
    recipes.check_chain(build(stages=again), "candidate")  # the student was never quantized


def test_a_missing_file_and_bad_syntax_are_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    with pytest.raises(RecipeError, match=r"recipe\.toml: cannot read the recipe: No such file or directory"):
        recipes.load(path)
    path.write_text("task = \n")
    with pytest.raises(RecipeError, match=r"recipe.toml: not valid TOML: Invalid value \(at line 1, column 8\)"):
        recipes.load(path)
