"""The linter against NVIDIA: TensorRT for RTX parses and builds every graph of `lint_cases`; where they differ is a table."""

from pathlib import Path

import onnx
import pytest

from edgesmith.exporters.graph.graph_view import views
from edgesmith.exporters.linting import tensorrt_operators as operators
from edgesmith.exporters.linting.lint import check, refusals
from edgesmith.exporters.linting.lint_file import compare
from edgesmith.exporters.linting.lint_fix import fix
from edgesmith.exporters.linting.lint_tensorrt import RULES

from .lint_cases import CASES, FALSE_ACCEPTS, FALSE_REJECTS
from .lint_graphs import input_as_output
from .lint_truth import labels, refusing

pytestmark = pytest.mark.slow  # some hundred engines


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return labels({name: case.graph() for name, case in CASES.items()}, tmp_path_factory.mktemp("truth"))


def test_the_linter_says_what_the_table_says() -> None:
    assert {name: refusing(case.graph()) for name, case in CASES.items()} == {
        name: tuple(sorted(case.rules)) for name, case in CASES.items()
    }


def test_every_finding_is_of_its_own_rule() -> None:
    for case in CASES.values():
        for view in views(case.graph()):
            for name, rule in RULES.items():
                assert {finding.rule for finding in rule.check(view)} <= {name}


def test_there_are_enough_of_both_kinds() -> None:
    assert sum(not case.rules for case in CASES.values()) >= 50
    assert sum(bool(case.rules) for case in CASES.values()) >= 50
    tried = {rule for case in CASES.values() for rule in case.rules}
    assert {rule for rule, entry in RULES.items() if rule not in tried} == RISKY_ONLY


# They never refuse: nothing in them is wrong in every version of TensorRT.
RISKY_ONLY = {
    "scale-type",
    "activation-granularity",
    "weight-axis",
    "grouped-transposed",
    "grouped-convolution",
}


def test_nvidia_says_so_too_but_for_what_is_explained(found: dict[str, str]) -> None:
    rejects = {case for entry in FALSE_REJECTS for case in entry.cases}
    accepts = {case for entry in FALSE_ACCEPTS for case in entry.cases}
    assert {name for name, step in found.items() if step == "engine" and CASES[name].rules} == rejects
    assert {name for name, step in found.items() if step != "engine" and not CASES[name].rules} == accepts


def test_where_it_ends(found: dict[str, str]) -> None:
    """Not all is said by the parser: a lint that only parsed would take these."""
    assert {name for name, step in found.items() if step == "crash"} == {"scale-from-data"}
    assert {name for name, step in found.items() if step == "build"} == {
        "zero-point-from-data",
        "loop-without-end",
        "fp8",
    }


def test_what_is_fixed_builds_and_computes_the_same(tmp_path: Path) -> None:
    fixed = {}
    for name, case in CASES.items():
        model = case.graph()
        if any(finding.fixable for finding in refusals(check(model, RULES))):
            result = fix(model, lambda candidate: check(candidate, RULES))
            assert result.changes and refusals(check(result.model, RULES)) == (), name
            difference, not_compared = compare(model, result.model, seed=0)
            assert (difference is None) == bool(not_compared) and (difference is None or difference.largest == 0), name
            fixed[name] = result.model
    assert len(fixed) == 21
    assert set(labels(fixed, tmp_path).values()) == {"engine"}


def test_what_the_engine_calls_an_input_that_is_an_output() -> None:
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(input_as_output().SerializeToString())
    assert (network.get_input(0).name, [network.get_output(i).name for i in range(2)]) == ("__x", ["y", "x"])


def test_the_tables_of_operators_are_the_parsers() -> None:
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    own = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    unknown = {name for name in own if not parser.supports_operator(name)}
    assert unknown == {*operators.INTEGER, *operators.UNSUPPORTED, "DeformConv"}
    assert {*operators.PLUGINS} <= own, "it says that it has the others, and then wants a plugin: see FALSE_ACCEPTS"
    assert all(parser.supports_operator(name) for name in operators.FOREIGN)
    assert not any(parser.supports_operator(name) for name in operators.QUANTIZED_FOREIGN)
    assert not own & {*operators.FOREIGN, *operators.QUANTIZED_FOREIGN}
