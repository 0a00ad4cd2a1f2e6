"""Export: a batch axis that is really dynamic, a file that is proven to compute the same, and no file otherwise."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgesmith.core.errors import ExportError, RunDirectoryError
from edgesmith.core.values import TensorSpec
from edgesmith.exporters import from_torch
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession

from .conftest import Network
from .graphs import random

X = TensorSpec(name="x", dtype="float32", shape=("batch", 4))
SAMPLES = {"x": random(8, 4)}


def export(
    module: nn.Module,
    path: Path,
    samples: Mapping[str, np.ndarray] = SAMPLES,
    inputs: tuple[TensorSpec, ...] = (X,),
    outputs: tuple[str, ...] = ("y",),
) -> OnnxRuntimeSession:
    from_torch.export(module, samples, inputs, outputs, path)
    return OnnxRuntimeSession(path)


def refusal(module: nn.Module, folder: Path) -> str:
    with pytest.raises(ExportError) as raised:
        export(module, folder / "model.onnx")
    assert not list(folder.iterdir()), "nothing may be left behind"
    return str(raised.value)


class Does(nn.Module):
    """A module whose forward is any function."""

    def __init__(self, forward: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self._forward = forward

    def forward(self, x: torch.Tensor) -> object:
        return self._forward(x)


class Embeds(nn.Module):
    """Values inside are called "embedding", "mean", "linear" and "linear_1"."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.first, self.second = nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = self.words(x).mean(1)
        return self.second(self.first(mean)), mean


@pytest.mark.parametrize(
    ("name", "outputs"),
    [("x", ("embedding", "mean")), ("x", ("linear", "embedding")), ("linear", ("logits", "mean"))],
)
def test_names_of_a_task_may_be_those_of_operators(name: str, outputs: tuple[str, str], tmp_path: Path) -> None:
    samples = {name: np.random.default_rng(0).integers(0, 10, (8, 5))}
    spec = TensorSpec(name=name, dtype="int64", shape=("batch", 5))
    session = export(Embeds(), tmp_path / "model.onnx", samples, (spec,), outputs)
    assert [each.name for each in session.outputs] == list(outputs)
    assert [session.run(samples)[each].shape for each in outputs] == [(8, 3), (8, 4)]


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 64])
def test_batch_is_dynamic(digits: Network, batch: int) -> None:
    session = OnnxRuntimeSession(digits.path)
    assert session.inputs[0].shape == ("batch", 1, 8, 8) and session.outputs[0].shape == ("batch", 10)
    with torch.no_grad():
        expected = digits.module(torch.tensor(digits.feed["image"][:batch])).numpy()
    actual = session.run({"image": digits.feed["image"][:batch]})["logits"]
    np.testing.assert_allclose(actual, expected, atol=1e-4)


class Matching(nn.Module):
    """Token ids, a mask and features in; scores, a class and a flag out."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(11, 4), nn.BatchNorm1d(4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, x: torch.Tensor) -> dict[str, torch.Tensor]:
        words = (self.table(ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        scores = self.norm(words + x)
        return {"class": scores.argmax(1), "scores": scores, "extra": x, "sure": scores.amax(1) > 0.5}


def test_several_inputs_and_outputs_of_several_types(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = {
        "unused": np.zeros(8),
        "mask": np.ones((8, 5), np.float32),
        "ids": rng.integers(0, 11, (8, 5)),
        "x": random(8, 4),
    }
    inputs = (
        TensorSpec(name="ids", dtype="int64", shape=("batch", 5)),
        TensorSpec(name="mask", dtype="float32", shape=("batch", 5)),
        X,
    )
    module = Matching().train()
    session = export(module, tmp_path / "model.onnx", samples, inputs, ("scores", "class", "sure"))
    assert session.inputs == inputs
    assert [(spec.name, spec.dtype, spec.shape) for spec in session.outputs] == [
        ("scores", "float32", ("batch", 4)), ("class", "int64", ("batch",)), ("sure", "bool", ("batch",)),
    ]  # fmt: skip
    feed = {name: samples[name][:3] for name in ("ids", "mask", "x")}
    with torch.no_grad():
        expected = module.eval()(*(torch.tensor(array) for array in feed.values()))
    for name, actual in session.run(feed).items():
        np.testing.assert_allclose(actual, expected[name].numpy(), atol=1e-5)


def test_an_attention_mask_of_infinities_is_exported(tmp_path: Path) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.register_buffer("mask", torch.triu(torch.full((6, 6), float("-inf")), 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x, src_mask=self.mask)

    tokens = TensorSpec(name="x", dtype="float32", shape=("batch", 6, 8))
    session = export(Attention(), tmp_path / "model.onnx", {"x": random(8, 6, 8)}, (tokens,))
    x = random(3, 6, 8, seed=5)
    first = session.run({"x": x})["y"]
    x[:, 3:] = 0
    np.testing.assert_allclose(session.run({"x": x})["y"][:, :3], first[:, :3], atol=1e-5)


def test_the_file_is_one_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.onnx"
    path.parent.mkdir()
    path.write_text("old")
    export(nn.Linear(4, 3), path)
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    assert onnx_file.load(path).graph.output[0].name == "y"


def test_the_module_stays_what_it_was(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    export(module, tmp_path / "model.onnx")
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert all(weight.requires_grad and not weight.is_inference() for weight in module.parameters())


def test_export_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export(nn.Linear(4, 3), tmp_path / "model.onnx")
    (tmp_path / "model.onnx").unlink()
    refusal(Does(lambda x: x * 2 if x.sum() > 0 else x), tmp_path)
    assert capfd.readouterr() == ("", "")


# --- what differs is no export


class Counting(nn.Module):
    """Every call gives something else: a counter that the exporter freezes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        return x * 2, x * self.calls


@pytest.mark.parametrize("outputs", [("good", "bad"), ("first", "second")])
def test_an_output_that_differs_is_named(outputs: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ExportError) as raised:
        export(Counting(), tmp_path / "model.onnx", outputs=outputs)
    assert str(raised.value).startswith(f"output '{outputs[1]}': the exported file differs from torch by up to ")
    assert str(raised.value).endswith("; the exporter has changed what the model computes")
    assert not list(tmp_path.iterdir())


def test_random_numbers_differ(tmp_path: Path) -> None:
    text = refusal(Does(lambda x: x + torch.rand_like(x)), tmp_path)
    assert text.startswith("output 'y': the exported file differs from torch by up to 0.")
    assert "(batch of 1, allowed 0.000" in text


@pytest.mark.parametrize(
    ("expected", "actual", "text"),
    [
        ([1.0, 2.0], [1.0, 2.0001], None),
        ([1000.0, 1.0], [1000.0, 1.09], None),  # rounding in sums as large as the largest output
        (
            [1.0, 2.0], [1.0, 2.01],
            "output 'y': the exported file differs from torch by up to 0.01 (batch of 2, allowed 0.0002); "
            "the exporter has changed what the model computes",
        ),
        ([1.0], [np.nan], "output 'y': the exported file differs from torch by up to nan (batch of 1, allowed 0.0001); the exporter has changed what the model computes"),
        ([1.0], [1.0, 1.0], "output 'y': torch gives shape (1,), the exported file (2,)"),
        ([np.inf], [np.inf], "output 'y': torch itself gives NaN or infinity on the task's data; nothing can be compared"),
    ],
)  # fmt: skip
def test_comparison(expected: list[float], actual: list[float], text: str | None) -> None:
    arrays = np.array(expected, np.float32), np.array(actual, np.float32)
    if text is None:
        from_torch._compare("y", *arrays)
        return
    with pytest.raises(ExportError) as raised:
        from_torch._compare("y", *arrays)
    assert str(raised.value) == text


def test_integer_outputs_are_compared_as_numbers() -> None:
    ones = np.ones(3, np.int64)
    from_torch._compare("y", ones, ones)
    with pytest.raises(ExportError, match="differs from torch by up to 1 "):
        from_torch._compare("y", ones, np.array([1, 2, 1]))
    with pytest.raises(ExportError, match="differs from torch by up to 1 "):
        from_torch._compare("y", ones > 0, ones > np.array([0, 1, 0]))


def test_checked_on_real_samples_at_several_batch_sizes() -> None:
    feeds = list(from_torch._feeds({"x": np.arange(8)}))
    assert [feed["x"].tolist() for feed in feeds] == [[0], [1, 2], [3, 4, 5, 6, 7]]
    wrapped = list(from_torch._feeds({"x": np.arange(3)}))
    assert [feed["x"].tolist() for feed in wrapped] == [[0], [1, 2], [0, 1, 2, 0, 1]]


# --- what cannot be exported


HELP = "; replace data-dependent control flow in forward() with tensor operations, or start from an ONNX file"


def test_a_branch_on_a_value(tmp_path: Path) -> None:
    text = refusal(Does(lambda x: x * 2 if x.sum() > 0 else x), tmp_path)
    assert text.startswith("the model cannot be exported to ONNX: Could not guard on data-dependent expression ")
    assert text.endswith(HELP) and "\n" not in text


def test_an_operator_without_a_form_in_onnx(tmp_path: Path) -> None:
    text = refusal(Does(lambda x: torch.special.bessel_j0(x)), tmp_path)
    assert text.startswith(
        "the model cannot be exported to ONNX: DispatchError: No ONNX function found for <OpOverload("
    )
    assert text.endswith("; write that part with operations the exporter knows, or start from an ONNX file")


def test_a_forward_that_raises(tmp_path: Path) -> None:
    def raises(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("heads do not divide the width\nsecond line")

    assert refusal(Does(raises), tmp_path) == (
        "the model cannot be exported to ONNX: ValueError: heads do not divide the width; "
        "write that part with operations the exporter knows, or start from an ONNX file"
    )


@pytest.mark.parametrize("fixed", [lambda x: x.reshape(2, 4) * 1, lambda x: x + torch.ones(2, 4)])
def test_a_fixed_batch_size(fixed: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path) -> None:
    assert refusal(Does(fixed), tmp_path) == (
        "the exported file takes batches of 2 only: forward() fixes the batch size of input 'x', "
        "as a reshape to a number does; write x.shape[0] or -1 there"
    )


def test_nan_in_a_weight_and_in_an_output(tmp_path: Path) -> None:
    module = nn.Linear(4, 3)
    with torch.no_grad():
        module.weight[1, 2] = float("nan")
    assert refusal(module, tmp_path) == (
        "the exported file cannot be used: weight 'module.weight' holds NaN or infinity; train or export the model again"
    )
    assert refusal(Does(lambda x: torch.log(x - 100)), tmp_path) == (
        "output 'y': torch itself gives NaN or infinity on the task's data; nothing can be compared"
    )


def test_a_type_that_the_runtime_has_no_kernel_for(tmp_path: Path) -> None:
    module = nn.Conv1d(4, 4, 1).double()
    text = refusal(Does(lambda x: module(x.double()[:, :, None])), tmp_path)
    assert text.startswith("the exported file cannot be used: ONNX Runtime cannot load it: ")
    assert "NOT_IMPLEMENTED" in text


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"cannot write here \((Not a directory|File exists)\)"):
        export(nn.Linear(4, 3), tmp_path / "file" / "model.onnx")


@pytest.fixture(autouse=True)
def no_leftovers(tmp_path: Path) -> Iterator[None]:
    yield
    assert not [file for file in tmp_path.rglob("*") if file.name.startswith(".partial-")]
