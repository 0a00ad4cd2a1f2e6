"""A pruned model is a file without pickle: it reopens on the original class and gives the same bits."""

import dataclasses
import functools
import inspect
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from edgesmith.compressor.candidate import Candidate, check_finite, load_model, state_of
from edgesmith.compressor.edit import ChannelEdit
from edgesmith.compressor.pruning import coupling
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.stage import Context
from edgesmith.core.errors import ArtifactError, DataError
from edgesmith.core.task import Task


def outputs(candidate: Candidate, task: Task) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = candidate.module()(torch.tensor(task.validation.batch(np.arange(32))[0]["image"])).numpy()
    return logits


def test_a_pruned_model_reopens_bit_equal(original: Candidate, context: Context, task: Task, tmp_path: Path) -> None:
    pruned = Prune(id="p", macs_ratio=0.5).run(original, context)
    pruned.save(tmp_path / "pruned.safetensors")
    again = Candidate.load(tmp_path / "pruned.safetensors", original.factory, original.example)
    assert again.edits == pruned.edits
    assert again.digest() == pruned.digest()
    np.testing.assert_array_equal(outputs(again, task), outputs(pruned, task))


def test_a_reopened_model_prunes_further(original: Candidate, context: Context, tmp_path: Path) -> None:
    once = Prune(id="p", macs_ratio=0.6, round_to=1).run(original, context)
    once.save(tmp_path / "once.safetensors")
    again = Candidate.load(tmp_path / "once.safetensors", original.factory, original.example)
    twice = Prune(id="p", macs_ratio=0.6, round_to=1).run(again, context)
    assert len(twice.edits) > len(once.edits)
    assert twice.parameters() < once.parameters() < original.parameters()


class TwoInputs(nn.Module):
    """Token ids and a mask: what it is fed is not all of one type."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.hidden = nn.Linear(16, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.hidden(self.embedding(tokens))) * mask.unsqueeze(-1)
        logits: torch.Tensor = self.head(x.mean(1))
        return logits


def test_another_process_opens_the_file_with_the_class_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = {"tokens": torch.randint(0, 50, (2, 7)), "mask": torch.ones(2, 7)}
    module = TwoInputs().eval()
    edits = (ChannelEdit(layer="hidden", remove=(3, 5, 30)),)
    coupling.remove(module, example, edits)
    Candidate(factory=TwoInputs, example=example, edits=edits, weights=state_of(module)).save(
        tmp_path / "m.safetensors"
    )
    with torch.no_grad():
        np.save(tmp_path / "expected.npy", module(**example).numpy())
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom torch import nn\n\n\n" + textwrap.dedent(inspect.getsource(TwoInputs)), encoding="utf-8"
    )
    code = f"""
import numpy as np, torch, edgesmith
from nets import TwoInputs
module = edgesmith.load_model("m.safetensors", TwoInputs)
tokens = torch.tensor({example["tokens"].tolist()})
logits = module(tokens, torch.ones(2, 7))
print(np.array_equal(logits.detach().numpy(), np.load("expected.npy")), module.hidden.out_features, module.training)
logits.sum().backward()
torch.optim.SGD(module.parameters(), lr=0.1).step()
print(np.array_equal(module(tokens, torch.ones(2, 7)).detach().numpy(), np.load("expected.npy")))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["True 29 False", "False"]


def test_an_opened_model_is_the_model_of_another_task(original: Candidate, context: Context, tmp_path: Path) -> None:
    path = tmp_path / "once.safetensors"
    once = Prune(id="p", macs_ratio=0.6, round_to=1).run(original, context)
    once.save(path)
    factory = functools.partial(load_model, path, original.factory)
    opened = Candidate(factory=factory, example=original.example, edits=(), weights=state_of(factory()))
    twice = Prune(id="p", macs_ratio=0.6, round_to=1).run(opened, context)
    assert twice.parameters() < once.parameters()


def test_the_class_of_another_model_is_refused(original: Candidate, tmp_path: Path) -> None:
    original.save(tmp_path / "model.safetensors")
    with pytest.raises(ArtifactError) as caught:
        load_model(tmp_path / "model.safetensors", TwoInputs)
    assert str(caught.value) == (
        "the weights do not fit the architecture in 65 tensors, first 'embedding.weight': the file has no such tensor, "
        "the architecture (50, 16); is it another class, or was it changed?"
    )


def test_changing_a_module_does_not_change_the_candidate(original: Candidate) -> None:
    before = original.digest()
    module = original.module()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert original.digest() == before


def test_the_digest_sees_weights_and_edits(original: Candidate) -> None:
    weights = dict(original.weights)
    weights["head.bias"] = weights["head.bias"] + 1e-7
    assert dataclasses.replace(original, weights=weights).digest() != original.digest()
    assert dataclasses.replace(original, edits=(ChannelEdit(layer="stem", remove=(0,)),)).digest() != original.digest()


def test_a_truncated_file_is_refused(original: Candidate, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    original.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"model\.safetensors: cannot read the candidate: "):
        Candidate.load(path, original.factory, original.example)


def test_a_file_of_another_format_is_refused(original: Candidate, tmp_path: Path) -> None:
    import safetensors.torch

    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ArtifactError, match=r"not a candidate file: format is None, expected 'edgesmith\.candidate/1'"):
        Candidate.load(path, original.factory, original.example)


def test_edits_of_another_architecture_are_refused(original: Candidate) -> None:
    other = dataclasses.replace(original, edits=(ChannelEdit(layer="stage7.conv", remove=(0,)),))
    with pytest.raises(ArtifactError, match=r"edit of layer 'stage7\.conv': the architecture has no such layer"):
        other.module()
    wide = dataclasses.replace(original, edits=(ChannelEdit(layer="stem", remove=(99,)),))
    with pytest.raises(ArtifactError, match="edit of layer 'stem': it has no channel 99"):
        wide.module()


def test_nan_weights_are_named() -> None:
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight[0, 0] = float("nan")
    with pytest.raises(DataError, match="the original: weight 'weight' holds NaN or infinity; train or load the model"):
        check_finite(module.state_dict(), "the original")


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        ({"layer": "stem", "remove": []}, "edit of layer 'stem': () are no numbers of channels"),
        ({"layer": "stem", "remove": [-1]}, "edit of layer 'stem': (-1,) are no numbers of channels"),
        ({"layer": "stem", "remove": "12"}, "edit of layer 'stem': ('1', '2') are no numbers of channels"),
        (
            {"layer": "stem", "remove": [0], "attributes": [["m", "heads", 1e999]]},
            "edit of layer 'stem': (('m', 'heads', inf),) are no numbers of channels",
        ),
        ("stem", "'stem' is no edit"),
    ],
)
def test_edits_that_are_none_are_refused(edit: Any, text: str, original: Candidate, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = {"format": "edgesmith.candidate/1", "edits": json.dumps([edit]), "example": "[]"}
    path.write_bytes(safetensors.torch.save(dict(original.weights), metadata=header))
    with pytest.raises(ArtifactError) as caught:
        load_model(path, original.factory)
    assert str(caught.value) == f"{path}: cannot read the candidate: {text}"


def test_a_class_that_no_longer_runs_on_what_the_file_names_is_refused(original: Candidate, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    edit = ChannelEdit(layer="stem.0", remove=(1,))
    dataclasses.replace(original, edits=(edit,), example={"image": torch.zeros(2, 4, 8, 8)}).save(path)
    with pytest.raises(ArtifactError) as caught:
        load_model(path, original.factory)
    assert str(caught.value).startswith(f"{path}: the architecture does not run on what the file was made with: Given")
    assert str(caught.value).endswith("; was the class changed?")
