"""A module as the graph that torch.export sees: what of its inputs may change stays so."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.int8.qat import QuantizationAwareTraining
from edgesmith.compressor.int8.traced import trace
from edgesmith.core.task import ArraySplit, Task
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession
from edgesmith.exporters.targets.onnxruntime_cpu import OnnxRuntimeCpu

from ..conftest import make_context
from .results import file_of


class Attends(nn.Module):
    """A block of a transformer over token ids `(N, tokens)` of any length up to its 24 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(12, 16), nn.LayerNorm(16)
        self.places = nn.Parameter(torch.linspace(-1, 1, 24)[:, None])
        self.qkv, self.out, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        n, tokens, width = *ids.shape, 16
        x = self.embed(ids) + self.places[:tokens]
        q, k, v = self.qkv(self.norm(x)).reshape(n, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width))
        return self.head(x.mean(1))


def split(tokens: int) -> ArraySplit:
    generator = np.random.default_rng(tokens)
    return ArraySplit({"ids": generator.integers(0, 12, (96, tokens))}, generator.integers(0, 4, 96))


def attending() -> Task:
    """The splits differ in length, as they may."""
    return Task(
        name="ids",
        model=Attends,
        loss="cross-entropy",
        outputs=("logits",),
        dynamic_axes={"ids": {1: "tokens"}},
        train=split(9),
        validation=split(12),
        test=split(14),
    )


def test_a_traced_graph_takes_every_length() -> None:
    module, task = Attends(), attending()
    traced = trace(module, {"ids": split(12).inputs["ids"]}, task.input_specs(), task.outputs)
    for tokens in (1, 7, 20):
        ids = torch.tensor(split(tokens).inputs["ids"])
        torch.testing.assert_close(traced(ids)[0], module(ids))


def test_lengths_that_differ_from_split_to_split_are_trained_and_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task, module = attending(), Attends()
    example = {"ids": torch.tensor(split(9).inputs["ids"][:2])}
    original = Candidate(factory=Attends, example=example, edits=(), weights=state_of(module))
    context = make_context(task, tmp_path / "work", {"original": original})
    graph = QuantizationAwareTraining(id="q", epochs=1, samples=64).run(original, context)
    assert graph.trained is not None
    target = OnnxRuntimeCpu(name="with VNNI", cpu="x86-vnni")  # weights of 8 bits, as they were trained
    whole, session = (
        OnnxRuntimeSession(path, exact=True) for path in (graph.trained, file_of(graph, target, tmp_path))
    )
    for tokens in (9, 20):
        feed = split(tokens).inputs
        trained, found = whole.run(feed)["logits"], session.run(feed)["logits"]
        assert np.square(trained - found).sum() < 0.001 * np.square(trained).sum()
