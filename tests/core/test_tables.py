"""Names in literal tables: what resolves, and the exact words for what does not."""

import doctest
from pathlib import Path

import pytest

from edgesmith.core import tables
from edgesmith.core.errors import ExitCode, RecipeError

IMPORTANCES = {"taylor": 1, "magnitude-l1": 2, "magnitude-l2": 3, "random": 4}
WHERE = "recipe.toml: stages[0].importance"


def refused(name: str) -> str:
    with pytest.raises(RecipeError) as caught:
        tables.resolve(name, IMPORTANCES, WHERE)
    assert caught.value.exit_code == ExitCode.USAGE
    return str(caught.value)


def test_a_known_name_is_its_entry() -> None:
    assert tables.resolve("magnitude-l2", IMPORTANCES, WHERE) == 3


def test_module_and_attribute_is_what_it_points_at() -> None:
    assert tables.resolve("math:tau", {"random": 1.0}, WHERE) == pytest.approx(6.283185307)
    assert tables.resolve("os:path.join", {}, WHERE)("a", "b") == "a/b"


def test_a_table_entry_wins_over_a_module() -> None:
    assert tables.resolve("math:tau", {"math:tau": 0.0}, WHERE) == 0.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "tailor",
            f"{WHERE}: unknown 'tailor'; did you mean 'taylor'? known: magnitude-l1, magnitude-l2, random, taylor",
        ),
        ("hessian", f"{WHERE}: unknown 'hessian'; known: magnitude-l1, magnitude-l2, random, taylor"),
        ("", f"{WHERE}: unknown ''; known: magnitude-l1, magnitude-l2, random, taylor"),
        (
            "Taylor",
            f"{WHERE}: unknown 'Taylor'; did you mean 'taylor'? known: magnitude-l1, magnitude-l2, random, taylor",
        ),
        (
            "no_such_module:score",
            f"{WHERE}: cannot import 'no_such_module:score': ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ("math:tao", f"{WHERE}: cannot import 'math:tao': AttributeError: module 'math' has no attribute 'tao'"),
        (":tau", f"{WHERE}: cannot import ':tau': ValueError: Empty module name"),
        (
            ".math:tau",
            f"{WHERE}: cannot import '.math:tau': TypeError: the 'package' argument is required to perform a relative"
            " import for '.math'",
        ),
    ],
)
def test_what_cannot_be_resolved_is_said_in_full(name: str, message: str) -> None:
    assert refused(name) == message


@pytest.mark.parametrize(
    ("source", "error"),
    [("1 / 0", "ZeroDivisionError: division by zero"), ("def f(:", "SyntaxError: "), ("import nope", "nope")],
)
def test_a_module_that_raises_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, error: str
) -> None:
    (tmp_path / "broken_scores.py").write_text(source + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = refused("broken_scores:score")
    assert message.startswith(f"{WHERE}: cannot import 'broken_scores:score': ")
    assert error in message


def test_did_you_mean_stays_silent_about_strangers() -> None:
    assert tables.did_you_mean("macs_ration", ["macs_ratio", "params_ratio"]) == "; did you mean 'macs_ratio'?"
    assert tables.did_you_mean("zebra", ["macs_ratio", "params_ratio"]) == ""
    assert tables.did_you_mean("zebra", []) == ""


def test_the_examples_in_the_docstrings_are_true() -> None:
    result = doctest.testmod(tables)
    assert result.attempted >= 1
    assert result.failed == 0


class Lone:
    """Not as the classes below."""


class Stage:
    run = None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os:getcwd", f"{WHERE}: 'os:getcwd' is no class; see how prune is made"),
        (f"{__name__}:Lone", f"{WHERE}: '{__name__}:Lone' is a class without run; see how prune is made"),
    ],
)
def test_what_is_not_as_the_classes_of_the_table(name: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        tables.resolve(name, {"prune": Stage}, WHERE)
    assert str(error.value) == message
    assert tables.resolve(f"{__name__}:Stage", {"prune": Stage}, WHERE) is Stage
