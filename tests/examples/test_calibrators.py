"""Calibrators on every layer of the trained Fashion-MNIST networks, on the values themselves and the written grids."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch

from edgesmith.calibration.calibrators import CALIBRATORS
from edgesmith.calibration.observer import Observed
from edgesmith.compressor.int8.calibrate import calibrate
from edgesmith.core.values import QuantParams, TensorSpec
from edgesmith.exporters import from_torch
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.graph.canonical import canonicalise
from edgesmith.exporters.int8.dialect import Dialect
from edgesmith.exporters.int8.placement import Placement, place, tensors_to_observe
from edgesmith.exporters.int8.qdq import activation_grid, activation_params
from edgesmith.exporters.sessions import taps
from edgesmith.exporters.targets.targets import TARGETS
from tests.examples_at import example

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion_mnist"
NAMES = {"resnet20": "ResNet20", "mobilenet": "MobileNet"}
Network = tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]


@pytest.fixture(scope="module", params=sorted(NAMES))
def network(
    request: pytest.FixtureRequest, fashion_slice: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Network:
    """A trained network as a canonical graph, and 48 images, standardized as in training, in batches of 16."""
    module = getattr(example("fashion_mnist", "networks"), NAMES[request.param])().eval()
    module.load_state_dict(safetensors.torch.load_file(EXAMPLE / "checkpoints" / f"{request.param}.safetensors"))
    images = (fashion_slice["images"][np.random.default_rng(0).permutation(512)[:256], None] / 255 - 0.286) / 0.353
    images = images.astype(np.float32)
    path = tmp_path_factory.mktemp("network") / "model.onnx"
    spec = TensorSpec(name="image", dtype="float32", shape=("batch", 1, 28, 28))
    with torch.no_grad():
        from_torch.export(module, {"image": images[:4]}, (spec,), ("logits",), path)
    batches = [{"image": images[start : start + 16]} for start in range(0, 48, 16)]
    return canonicalise(onnx_file.load(path)), batches


def _error(
    values: np.ndarray, tensor: str, params: QuantParams, placed: Placement, dialects: tuple[Dialect, ...]
) -> float:
    """Mean squared error of really rounding the values as the dialects write them, in their mean."""
    errors = []
    for dialect in dialects:
        scale, zero = (np.float32(part) for part in activation_grid(params, tensor, placed, dialect))
        ends = np.iinfo(np.int8 if dialect.activations == "s8" else np.uint8)
        back = (np.clip(np.rint(values / scale) + zero, ends.min, ends.max) - zero) * scale
        errors.append(float(np.mean(np.square(values - back), dtype=np.float64)))
    return float(np.mean(errors))


@pytest.mark.long
def test_auto_reconstructs_every_tensor_no_worse_than_any_rule(network: Network) -> None:
    model, batches = network
    placed = place(model)
    tensors = tensors_to_observe(placed)
    seen, parts = taps.observe(model, batches, tensors), list(taps.running(model, batches, tensors, "cpu"))
    rules = [name for name in CALIBRATORS if name != "auto"]
    params = {(rule, tensor): _params(rule, seen[tensor]) for rule in rules for tensor in tensors}
    for target, kinds in (("onnxruntime-cpu", 3), ("tensorrt", 1)):
        dialects = TARGETS[target].dialects()
        found = calibrate(model, batches, "auto", dialects=dialects)
        taken = {each.tensor: each.rule for each in found.ranges}
        for tensor in tensors:
            values = np.concatenate([part[tensor].ravel() for part in parts])
            errors = {rule: _error(values, tensor, params[rule, tensor], placed, dialects) for rule in rules}
            assert found.params[tensor].scale == params[taken[tensor], tensor].scale
            assert errors[taken[tensor]] <= 1.002 * min(errors.values())  # closer than that bins cannot tell two rules
        assert len(set(taken.values())) >= kinds  # no single rule would have done for unsigned files


def _params(rule: str, seen: Observed) -> QuantParams:
    low, high = CALIBRATORS[rule](seen, 8, True)
    return activation_params(max(low, seen.low), min(high, seen.high), rule)
