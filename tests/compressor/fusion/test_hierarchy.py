"""What is known of the labels, implications and exclusions: a digit that is a four is even, and a fusion that says otherwise is put right."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import KNeighborsRegressor

from edgesmith.compressor.fusion.exclusion import Exclusion
from edgesmith.compressor.fusion.fuse import Fuse
from edgesmith.compressor.fusion.hierarchy import Hierarchy
from edgesmith.core.errors import RecipeError
from edgesmith.core.task import ArraySplit, Task
from edgesmith.exporters.graph.compose import Nodes
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession
from tests.contracts.test_fusions import in_onnx

from ..conftest import make_context
from .digits_members import graphs

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LOOPS = ("zero", "six", "eight", "nine")
IMPLIES = dict.fromkeys(DIGITS[::2], ("even",)) | {"nine": ("loop",)}
IMPLIES |= {name: ("even", "loop") for name in LOOPS if name != "nine"}
MEMBERS = ("linear", "neighbours")


@pytest.fixture(scope="module")
def several(task: Task) -> Task:
    """Digits with twelve labels: which digit it is, whether it is even, whether it has a loop."""

    def part(split: Any) -> ArraySplit:
        one = np.eye(10)[split.labels]
        even, loop = one[:, ::2].sum(1), one[:, [DIGITS.index(name) for name in LOOPS]].sum(1)
        labels = np.column_stack([one, even, loop]).astype(np.float32)
        return ArraySplit({"pixels": split.inputs["image"].reshape(-1, 64)}, labels)

    train = part(task.train)
    x, y = train.inputs["pixels"][:300], train.labels[:300]  # type: ignore[index]  # an ArraySplit with labels
    models = {
        "linear": LinearRegression().fit(x, y),
        "neighbours": KNeighborsRegressor(5).fit(x, y),
    }
    return Task(
        name="several",
        model=models["linear"],
        models=models,
        validation=part(task.validation),
        test=part(task.test),
        outputs=("labels",),
        classes=(*DIGITS, "even", "loop"),
        loss="mse",
        metrics=("mse",),
    )


def fused(task: Task, folder: Path, **keys: Any) -> tuple[np.ndarray, list[str]]:
    """What the file gives for the test images, and the notes."""
    folder.mkdir(exist_ok=True)
    context = make_context(task, folder / "w", graphs(task, folder / "g"))
    stage = Fuse(id="f", members=MEMBERS, gives="numbers", **keys)
    stage.check(task, "w")
    graph = stage.run(None, context)
    inputs, _ = task.test.batch(np.arange(len(task.test)))
    return OnnxRuntimeSession(graph.path).run(inputs)["labels"], context.notes


def test_no_rule_is_broken_by_the_file_and_the_error_falls(several: Task, tmp_path: Path) -> None:
    """The truth keeps the rules, so that what is put right comes closer to it."""
    rules = Hierarchy.of(IMPLIES, several.classes, "w")
    free, _ = fused(several, tmp_path / "free")
    kept, notes = fused(several, tmp_path / "kept", implies=IMPLIES)
    assert rules.broken(free) > 100
    assert rules.broken(kept) == 0
    labels = several.test.batch(np.arange(len(several.test)))[1]
    assert ((kept - labels) ** 2).mean() < ((free - labels) ** 2).mean()
    np.testing.assert_allclose(kept, rules(free), atol=1e-5)
    said = notes[-1].split("; mse ")
    assert said[0].startswith("9 rules on 360 validation samples: ")
    assert said[0].endswith(" of 3,240 broken before, 0 after")
    before, after = (float(each.split()[0]) for each in said[1].split(", "))
    assert after < before


def test_rules_that_follow_from_others_are_kept_too() -> None:
    """A poodle is a dog, a dog is an animal."""
    rules = Hierarchy.of({"poodle": ("dog",), "dog": ("animal",)}, ("animal", "cat", "dog", "poodle"), "w")
    assert rules.rules == 3
    numbers = np.array([[0.5, 0.9, 0.4, 0.8], [0.9, 0.1, 0.8, 0.2]])
    assert rules.broken(numbers) == 2  # the poodle against both; the second row breaks none
    made = rules(numbers)
    np.testing.assert_allclose(made[1], numbers[1])  # and stays
    assert made[0, 1] == 0.9  # what no rule speaks of
    assert rules.broken(made) == 0
    np.testing.assert_allclose(in_onnx(rules, numbers), made, rtol=1e-6)


def test_two_that_contradict_each_other_meet_half_way() -> None:
    """The projection in squared error, by a search of the whole square."""
    rules = Hierarchy.of({"a": ("b",)}, ("a", "b"), "w")
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 201), np.linspace(0, 1, 201)), -1).reshape(-1, 2)
    grid = grid[grid[:, 0] <= grid[:, 1]]
    nearest = grid[((grid - [0.7, 0.2]) ** 2).sum(1).argmin()]
    np.testing.assert_allclose(rules(np.array([[0.7, 0.2]]))[0], nearest, atol=0.005)


def test_what_excludes_and_what_implies_hold_together(several: Task, tmp_path: Path) -> None:
    """No digit is two digits; what a digit implies is kept too, and takes nothing of that back."""
    one_digit, rules = Exclusion.of([DIGITS], several.classes, (), "w"), Hierarchy.of(IMPLIES, several.classes, "w")
    free, _ = fused(several, tmp_path / "free")
    kept, notes = fused(several, tmp_path / "kept", implies=IMPLIES, exclusive=(DIGITS,))
    assert one_digit.broken(free) > 50
    assert (one_digit.broken(kept), rules.broken(kept)) == (0, 0)
    labels = several.test.batch(np.arange(len(several.test)))[1]
    assert ((kept - labels) ** 2).mean() < ((free - labels) ** 2).mean()
    assert notes[-1].startswith("10 rules on 360 validation samples: ")
    assert " of 3,600 broken before, 0 after; mse " in notes[-1]


def test_excess_is_taken_from_all_that_have_some() -> None:
    """The projection in squared error, as a solver finds it; and the same as nodes."""
    rule = Exclusion.of([("a", "b", "c"), ("e", "f")], tuple("abcdef"), (), "w")
    numbers = np.random.default_rng(0).normal(0.4, 0.5, (40, 6))
    numbers[0] = [0.2, 0.3, 0.5, 7.0, 0.4, 0.4]  # such as keep it
    numbers[1] = [0.6, 0.6, 0.6, 7.0, 1.0, 1.0]  # and such as tie
    made = rule(numbers)
    np.testing.assert_array_equal(made[0], numbers[0])
    np.testing.assert_allclose(made[1], [1 / 3, 1 / 3, 1 / 3, 7.0, 0.5, 0.5])
    assert rule.broken(numbers) > 20
    assert rule.broken(made) == 0
    np.testing.assert_allclose(in_onnx(rule, numbers), made, atol=1e-6)
    for before, after in zip(numbers[:10, :3], made[:10, :3], strict=True):
        nearest = minimize(
            lambda x, point: ((x - point) ** 2).sum(),
            np.zeros(3),
            args=(before,),
            method="SLSQP",
            bounds=[(min(each, 0), None) for each in before],  # what is negative stays so
            constraints={"type": "ineq", "fun": lambda x: 1 - np.maximum(x, 0).sum()},
        ).x
        np.testing.assert_allclose(after, nearest, atol=2e-3)  # the solver stops at the kink


def test_it_is_a_few_plain_nodes() -> None:
    nodes = Nodes()
    Hierarchy.of(IMPLIES, (*DIGITS, "even", "loop"), "w").write(nodes, "x")
    assert len(nodes.nodes) == 7
    assert {node.op_type for node in nodes.nodes} == {"Unsqueeze", "Where", "ReduceMax", "ReduceMin", "Add", "Mul"}
    assert all(onnx.defs.has(node.op_type) for node in nodes.nodes)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"implies": {"for": ("even",)}}, "w.implies: unknown 'for'; did you mean 'four'? known: "),
        (
            {"implies": {"one": ("two",), "two": ("three",), "three": ("one",)}},
            "w.implies: 'one' implies itself, at once or through others; leave a rule out",
        ),
        (
            {"implies": {"one": ("one",)}},
            "w.implies: 'one' implies itself, at once or through others; leave a rule out",
        ),
        (
            {"gives": "logits", "implies": {"one": ("two",)}},
            "w.implies: a sample of one class is of no other that it could imply or exclude; this is for several labels, "
            'gives = "label-logits", or for "numbers"',
        ),
        ({"exclusive": (("one",),)}, "w.exclusive[0]: ['one']; labels exclude each other from two on"),
        (
            {"exclusive": (("one", "two"), ("tre", "four"))},
            "w.exclusive[1]: unknown 'tre'; did you mean 'three'? known: ",
        ),
        (
            {"exclusive": (("one", "two"), ("three", "one"))},
            "w.exclusive[1]: 'one' is named twice; a label may be in one group",
        ),
        (
            {"exclusive": (("one", "even"),), "implies": {"two": ("even",)}},
            "w.exclusive[0]: another label implies 'even' and raises it, so that it cannot give way to those it excludes; "
            "leave it out of the group, or out of implies",
        ),
    ],
)
def test_rules_that_cannot_be(keys: dict[str, Any], message: str, several: Task) -> None:
    with pytest.raises(RecipeError) as error:
        Fuse(id="f", **{"members": MEMBERS, "gives": "numbers"} | keys).check(several, "w")
    assert str(error.value).startswith(message)


def test_columns_without_a_name(several: Task) -> None:
    with pytest.raises(RecipeError) as error:
        Fuse(id="f", members=MEMBERS, gives="numbers", implies=IMPLIES).check(
            dataclasses.replace(several, classes=()), "w"
        )
    assert str(error.value) == (
        "w.implies: the task does not say what the columns are called; set classes= in the task"
    )
