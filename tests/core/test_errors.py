"""The exit codes that scripts read, and the tree that the module's docstring draws."""

import re

import pytest

from edgesmith.core import errors
from edgesmith.core.errors import EdgesmithError, ExitCode


def drawn() -> dict[str, tuple[str, int]]:
    """Class name -> (parent, exit code) as the docstring draws them; a class without a number has its parent's."""
    tree: dict[str, tuple[str, int]] = {}
    parents: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^ {4}((?:│ {3}| {4})*(?:[├└]── )?)(\w+Error)\s+(\d*)", line)
        if not found:
            continue
        depth = len(found[1]) // 4
        parent = parents[depth - 1] if depth else "Exception"
        tree[found[2]] = (parent, int(found[3]) if found[3] else tree[parent][1])
        parents[depth:] = [found[2]]
    return tree


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    classes = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, EdgesmithError)
    }
    actual = {name: (value.__bases__[0].__name__, int(value.exit_code)) for name, value in classes.items()}
    assert drawn() == actual
    assert len(actual) >= 13


@pytest.mark.parametrize(
    ("name", "code"),
    [("PASS", 0), ("FAILED", 1), ("USAGE", 2), ("LIMIT_MISSED", 3), ("UNPROVEN", 4), ("INTERRUPTED", 130)],
)
def test_exit_codes_never_change(name: str, code: int) -> None:
    assert ExitCode[name] == code
    assert len(ExitCode) == 6
