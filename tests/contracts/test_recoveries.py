"""Every entry of RECOVERIES keeps what the rest rests on: the function, the names, the graph it was given."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgesmith.compressor.int8.recover import RECOVERIES, Folding, PerLayer, after_ranges, before_ranges, chosen
from edgesmith.core.errors import RecipeError
from edgesmith.core.values import QuantParams
from edgesmith.exporters.int8.placement import place
from edgesmith.exporters.int8.qdq import weight_params, write_qdq
from tests.exporters.graphs import S8, calibrate, decibels, graph, node, random, run

GUIDE = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()
FEED = {"x": random(64, 3, 6, 6)}


def network() -> onnx.ModelProto:
    """Two convolutions, a normalization and a product: something for each of them to change."""
    nodes = [
        node("Conv", "x w b", "c"), node("Relu", "c", "r"), node("Conv", "r v", "d"), node("Flatten", "d", "f"),
        node("LayerNormalization", "f gain", "z"), node("Gemm", "z u a", "y"),
    ]  # fmt: skip
    gain = np.where(np.arange(20) == 3, 30, 1).astype(np.float32)
    channels = np.array([30, 0.1, 1, 5], np.float32)
    weights = {"w": random(4, 3, 3, 3) * channels.reshape(4, 1, 1, 1), "b": random(4), "gain": gain}
    weights |= {"v": random(5, 4, 3, 3), "u": random(20, 6), "a": random(6)}
    return graph(nodes, weights, {"x": ["n", 3, 6, 6]}, {"y": None})


def coarse(model: onnx.ModelProto) -> dict[str, QuantParams]:
    """One scale per weight tensor, so that there is something to recover."""
    return calibrate(model, FEED) | weight_params(model, place(model), per_tensor=True)


def batches() -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, 64, 16):
        yield {"x": FEED["x"][start : start + 16]}


@pytest.mark.parametrize("name", RECOVERIES)
class TestRecovery:
    def test_it_keeps_names_function_and_input(self, name: str) -> None:
        model = network()
        params, placed = coarse(model), place(model)
        folded, notes = before_ranges([name], model, batches, "cpu", "here")
        if isinstance(RECOVERIES[name], Folding):
            params = coarse(folded)
            expected, actual = run(model, FEED)["y"], run(folded, FEED)["y"]
            assert np.abs(expected - actual).max() <= 1e-5 * np.abs(expected).max()
            assert len(notes) == 1
        changed, more = after_ranges([name], folded, placed, params, S8, batches, "cpu", "here")
        assert bool(more) == isinstance(RECOVERIES[name], PerLayer)
        assert model == network(), "what it is given stays"
        assert [made.name for made in changed.graph.node] == [made.name for made in model.graph.node]
        assert [made.output for made in changed.graph.node] == [made.output for made in model.graph.node]
        assert place(changed) == placed
        assert decibels(run(model, FEED)["y"], run(write_qdq(changed, params, S8), FEED)["y"]) > 20

    def test_equal_gains_and_biases_may_be_stored_once(self, name: str) -> None:
        """As exporters do it: four layers read one vector of ones, and still each of them is changed alone."""
        nodes = [
            node("LayerNormalization", "x one one", "z"), node("Gemm", "z w one", "h"), node("Relu", "h", "r"),
            node("Gemm", "r v one", "s"), node("LayerNormalization", "s one one", "t"), node("MatMul", "t u", "y"),
        ]  # fmt: skip
        sizes = np.geomspace(1e-2, 10, 8).astype(np.float32)
        weights = {"w": random(8, 8) * sizes, "v": random(8, 8, seed=1), "u": random(8, 4, seed=2) * sizes[:, None]}
        model = graph(nodes, {**weights, "one": np.ones(8, np.float32)}, {"x": ["n", 8]}, {"y": None})
        feed = {"x": random(64, 8, seed=3)}
        folded, notes = before_ranges([name], model, lambda: iter([feed]), "cpu", "here")
        params = calibrate(folded, feed)
        changed, _ = after_ranges([name], folded, place(folded), params, S8, lambda: iter([feed]), "cpu", "here")
        assert notes == {"equalize": ["equalized 1 pairs of layers"], "smooth": ["smoothed 2 normalizations"]}.get(
            name, []
        )
        if isinstance(RECOVERIES[name], Folding):
            np.testing.assert_allclose(run(changed, feed)["y"], run(model, feed)["y"], rtol=1e-4, atol=1e-4)
        assert decibels(run(model, feed)["y"], run(write_qdq(changed, params, S8), feed)["y"]) > 15

    def test_nothing_to_do_is_no_error(self, name: str) -> None:
        model = graph([node("Neg", "x", "y")], {}, {"x": ["n", 3, 6, 6]}, {"y": None})
        folded, _ = before_ranges([name], model, batches, "cpu", "here")
        changed, _ = after_ranges([name], folded, place(model), {}, S8, batches, "cpu", "here")
        assert changed == model

    def test_it_is_in_the_guide(self, name: str) -> None:
        assert f"`{name}`" in GUIDE


def test_they_are_applied_in_the_tables_order() -> None:
    assert chosen(["bias-correction", "round", "equalize"], "here") == [
        RECOVERIES["equalize"],
        RECOVERIES["round"],
        RECOVERIES["bias-correction"],
    ]


def test_an_unknown_one_is_refused() -> None:
    with pytest.raises(RecipeError) as raised:
        chosen(["equalise"], "stages[0] 'quantize'.recover")
    assert str(raised.value) == (
        "stages[0] 'quantize'.recover: unknown 'equalise'; did you mean 'equalize'? "
        "known: bias-correction, equalize, round, smooth"
    )


ANOTHER = PerLayer(rule=lambda layer: layer)


def test_one_from_elsewhere_comes_last_and_has_to_be_one() -> None:
    elsewhere = f"{__name__}:ANOTHER"
    assert chosen([elsewhere, "smooth"], "here") == [RECOVERIES["smooth"], ANOTHER]
    with pytest.raises(RecipeError) as raised:
        chosen(["math:pi"], "stages[0] 'quantize'.recover")
    assert str(raised.value) == (
        "stages[0] 'quantize'.recover: 'math:pi' is a float; a recovery is a Folding or a PerLayer of recover.py"
    )
