"""Networks of every kind: pruned, reopened, exported, pruned again, quantized; what cannot leave is named and why."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.data import any_inputs
from edgesmith.compressor.edit import AttentionEdit, ChannelEdit
from edgesmith.compressor.export import Export
from edgesmith.compressor.int8.quantize import Quantize
from edgesmith.compressor.pruning import blocks, coupling, dry_run, open_attention, other_weights
from edgesmith.compressor.pruning.coupling import Layout
from edgesmith.compressor.pruning.prune import Prune
from edgesmith.compressor.pruning.prune_blocks import PruneBlocks
from edgesmith.compressor.pruning.silenced import silenced
from edgesmith.compressor.stage import Graph
from edgesmith.compressor.structure import measure
from edgesmith.core.task import ArraySplit, Task
from edgesmith.exporters.graph import onnx_file
from edgesmith.exporters.graph.canonical import canonicalise
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession
from edgesmith.exporters.sessions.torch_session import TorchSession
from edgesmith.exporters.targets.targets import TARGETS

from ..conftest import make_context
from . import architectures as nets

RNG = np.random.default_rng(0)
COUNT = 8  # samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A network, and what of it is no row of a layer: root -> how its channels are laid out."""

    make: Callable[[], nn.Module]
    layouts: Mapping[str, Layout] = dataclasses.field(default_factory=dict)
    refused: tuple[str, ...] = ("head",)  # because they are the output
    tokens: bool = False
    quantized: bool = False


def vit(block: Callable[[int], nn.Module]) -> nn.Module:
    return nets.VisionTransformer(block)


HEADS = Layout(inner=4)
BERT = "bert.encoder.layer.{}.attention.self.value"
CASES: dict[str, Case] = {
    "residual": Case(make=nets.Residual, quantized=True),
    "frozen norms": Case(make=nets.frozen_norms, quantized=True),
    "depthwise": Case(make=nets.Depthwise),
    "grouped": Case(make=nets.Grouped, layouts={"stem": Layout(outer=4), "grouped": Layout(outer=4)}, quantized=True),
    "transposed": Case(
        make=nets.Transposed, layouts={"up1": Layout(outer=2), "up2": Layout(outer=2)}, refused=("last",)
    ),
    "dense concat": Case(make=nets.Dense),
    "u-net": Case(make=nets.UNet, refused=("last",)),
    "squeeze-excite": Case(make=nets.SqueezeExcite),
    "excited concat": Case(make=nets.ExcitedConcat),
    "pixel shuffle": Case(make=nets.PixelShuffle, layouts={"widen": Layout(inner=4)}, refused=("last",)),
    "pixel unshuffle": Case(make=nets.PixelUnshuffle),
    "channel shuffle": Case(
        make=nets.ChannelShuffle,
        layouts={"stem": Layout(outer=2), "first": Layout(outer=4), "second": Layout(outer=2)},
    ),
    "group norm": Case(make=nets.GroupNormed, layouts={"stem": Layout(outer=4), "first": Layout(outer=2)}),
    "layer norm": Case(make=nets.LayerNormed),
    "vit, torch's attention": Case(
        make=functools.partial(vit, nets.MultiheadBlock),
        layouts={f"blocks.{index}.attention.value": HEADS for index in (0, 1)},
        quantized=True,
    ),
    "vit, fused attention": Case(
        make=functools.partial(vit, nets.FusedBlock),
        layouts={f"blocks.{index}.attention.qkv": Layout(outer=3, inner=4) for index in (0, 1)},
    ),
    "bert": Case(
        make=nets.bert,
        layouts={BERT.format(index): HEADS for index in (0, 1)},
        refused=("classifier",),
        tokens=True,
        quantized=True,
    ),
    "convnext": Case(make=nets.convnext, refused=("classifier",)),
}


def inputs(case: Case) -> dict[str, np.ndarray]:
    if case.tokens:
        return {"input_ids": RNG.integers(0, 50, (COUNT, 6)), "attention_mask": np.ones((COUNT, 6), np.int64)}
    return {"image": RNG.standard_normal((COUNT, 3, 8, 8)).astype(np.float32)}


def loss(outputs: Mapping[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    return outputs["logits"].square().mean()


def task_of(case: Case) -> Task:
    split = ArraySplit(inputs(case), np.arange(COUNT) % 5)
    return Task(
        name="shapes", model=case.make, train=split, validation=split, test=split, outputs=("logits",), loss=loss
    )


def original_of(task: Task) -> Candidate:
    torch.manual_seed(0)
    assert callable(task.model)
    example = {name: torch.tensor(array) for name, array in any_inputs(task, 2).items()}
    return Candidate(factory=task.model, example=example, edits=(), weights=state_of(task.model().eval()))


def outputs_of(candidate: Candidate, task: Task) -> np.ndarray:
    return TorchSession(candidate.module(), task.input_specs(), task.outputs).run(any_inputs(task))["logits"]


@pytest.mark.parametrize("name", CASES)
def test_it_is_pruned_saved_exported_and_pruned_again(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    task = task_of(case)
    original = original_of(task)
    context = make_context(task, tmp_path, {"original": original})
    stage = Prune(id="p", macs_ratio=0.75, allocation="uniform", round_to=1, samples=COUNT, batch_size=4)
    pruned = stage.run(original, context)
    assert [note for note in context.notes if "not pruned" in note] == [
        f"not pruned: {root}: its channels are the model's output" for root in case.refused
    ]
    macs = [measure(each.module(), each.example, ()).macs for each in (dry_run.with_open_attention(original), pruned)]
    assert macs[1] <= 0.75 * macs[0]
    again = without_one_channel_each(pruned)
    assert again.parameters() < pruned.parameters()
    graph = reopens_and_exports(again, task, tmp_path)
    if case.quantized:
        runs_in_int8(graph, outputs_of(again, task), task, tmp_path)


@pytest.mark.parametrize("part", [slice(0, 8), slice(8, 16)])
def test_no_layer_is_emptied_of_its_part_of_a_group(part: slice) -> None:
    """Half of the channels leave, and all of the least important ones are one branch's."""
    module = nets.ExcitedConcat().eval()
    example = {"image": torch.zeros(2, 3, 8, 8)}
    (group,) = (each for each in coupling.find(module, example) if each.channels == 16)
    scores = torch.ones(16)
    scores[part] = torch.linspace(0.1, 0.2, 8)
    gone = group.least(scores, 8)
    assert gone == [*range(part.start, part.stop - 1), 1 if part.start else 9]  # the best of each branch stays
    coupling.remove(module, example, [group.edit(gone)])
    assert module(example["image"]).shape == (2, 5)


def without_one_channel_each(candidate: Candidate) -> Candidate:
    module = candidate.module()
    groups, reasons = dry_run.prunable(module, candidate.example)
    edits = [group.edit([0]) for group in groups if group.root not in reasons]
    coupling.remove(module, candidate.example, edits)
    return Candidate.of(module, candidate, (*candidate.edits, *edits))


def reopens_and_exports(candidate: Candidate, task: Task, work: Path) -> Graph:
    candidate.save(work / "model.safetensors")
    opened = Candidate.load(work / "model.safetensors", candidate.factory)
    np.testing.assert_array_equal(outputs_of(opened, task), outputs_of(candidate, task))
    context = make_context(task, work / "export", {})
    graph = Export(id="e").run(opened, context)  # compares with torch at three batch sizes
    np.testing.assert_allclose(
        OnnxRuntimeSession(context.work / "model.onnx").run(any_inputs(task))["logits"],
        outputs_of(candidate, task),
        atol=1e-4,
    )
    return graph


def runs_in_int8(graph: Graph, expected: np.ndarray, task: Task, work: Path) -> None:
    context = make_context(task, work / "int8", {})
    params = Quantize(id="q", samples=COUNT).run(graph, context)
    target = TARGETS["onnxruntime-cpu"]
    artifact = target.write(
        canonicalise(onnx_file.load(params.path)), params.params, target.dialects()[0], work / "int8.onnx"
    )
    found = OnnxRuntimeSession(artifact.path).run(any_inputs(task))["logits"]
    assert float(np.abs(found - expected).max()) < 0.1 * float(np.abs(expected).max())


LARGER: dict[str, Case] = {  # whose export takes long
    "llama": Case(
        make=functools.partial(nets.llama, 4),
        layouts={f"model.layers.{index}.self_attn.v_proj": HEADS for index in (0, 1)},
        refused=("score",),
        tokens=True,
    ),
}


@pytest.mark.parametrize("name", [*CASES, *LARGER])
def test_what_is_left_computes_what_it_did_beside_silent_channels(name: str) -> None:
    """Several channels of every group go, one group after the other; the dry run tried one."""
    case = {**CASES, **LARGER}[name]
    original = dry_run.with_open_attention(original_of(task_of(case)))
    module = other_weights.randomized(original.module()).double()
    example = {key: x.double() if x.is_floating_point() else x for key, x in original.example.items()}
    groups, reasons = dry_run.prunable(module.float(), original.example)
    module.double()
    assert set(reasons) == set(case.refused)
    assert {group.root: group.layout for group in groups if group.layout.size > 1} == dict(case.layouts)
    for group in groups:
        if group.root in reasons:
            continue
        edit = group.edit({0, group.channels - 2} if group.channels > 2 else {0})
        whole, left = copy.deepcopy(module), coupling.leaving(module, example, edit)
        coupling.remove(module, example, [edit])
        expected = other_weights.answers(silenced(whole, module, left), example)
        for ours, theirs in zip(other_weights.answers(module, example), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["residual", "vit, torch's attention"])
def test_blocks_leave_too(name: str, tmp_path: Path) -> None:
    task = task_of(CASES[name])
    original = original_of(task)
    context = make_context(task, tmp_path, {"original": original})
    names = blocks.find(original.module(), original.example)
    shorter = PruneBlocks(id="b", blocks=(names[-1],)).run(original, context)
    both = Prune(id="p", macs_ratio=0.75, round_to=1, samples=COUNT, batch_size=4).run(shorter, context)
    assert both.parameters() < shorter.parameters() < original.parameters()
    reopens_and_exports(both, task, tmp_path)


def without_heads(name: str, root: str) -> Candidate:
    original = dry_run.with_open_attention(original_of(task_of(CASES[name])))
    module = original.module()
    groups, _ = dry_run.prunable(module, original.example)
    (group,) = (group for group in groups if group.root == root)
    edit = group.edit([1])
    coupling.remove(module, original.example, [edit])
    return Candidate.of(module, original, (*original.edits, edit))


def test_a_head_leaves_bert_and_its_numbers_follow() -> None:
    pruned = without_heads("bert", BERT.format(1))
    assert pruned.edits == (
        ChannelEdit(
            layer=BERT.format(1),
            remove=(4, 5, 6, 7),
            attributes=(
                ("bert.encoder.layer.1.attention.self", "num_attention_heads", 3),
                ("bert.encoder.layer.1.attention.self", "all_head_size", 12),
            ),
        ),
    )
    whole, narrow = (pruned.module().bert.encoder.layer[index].attention for index in (0, 1))
    for layer, heads in ((whole.self, 4), (narrow.self, 3)):
        assert (layer.num_attention_heads, layer.attention_head_size, layer.all_head_size) == (heads, 4, heads * 4)
        assert (layer.query.out_features, layer.query.in_features) == (heads * 4, 16)
    assert (narrow.output.dense.in_features, narrow.output.dense.out_features) == (12, 16)


def test_a_head_leaves_queries_keys_and_values_in_one_layer() -> None:
    pruned = without_heads("vit, fused attention", "blocks.0.attention.qkv")
    attention = pruned.module().blocks[0].attention
    assert (attention.num_heads, attention.head_dim) == (3, 4)
    assert (attention.qkv.out_features, attention.proj.in_features) == (36, 12)
    assert pruned.edits[-1].remove == (4, 5, 6, 7, 20, 21, 22, 23, 36, 37, 38, 39)


def test_torchs_attention_is_opened_for_its_heads() -> None:
    pruned = without_heads("vit, torch's attention", "blocks.1.attention.value")
    assert pruned.edits[:2] == (
        AttentionEdit(attention="blocks.0.attention"),
        AttentionEdit(attention="blocks.1.attention"),
    )
    module = pruned.module()
    assert (module.blocks[1].attention.out_proj.in_features, module.blocks[1].attention.head_dim) == (12, 4)
    assert module.patch.out_channels == 16  # the width of the stream stays


def test_the_width_of_the_stream_leaves_and_the_heads_stay(tmp_path: Path) -> None:
    for name, only in (("vit, torch's attention", "patch"), ("vit, fused attention", "patch"), ("bert", "*.word_*")):
        task = task_of(CASES[name])
        original = original_of(task)
        context = make_context(task, tmp_path, {"original": original})
        pruned = Prune(id="p", channel_ratio=0.75, only=(only,), round_to=4, samples=COUNT).run(original, context)
        module = pruned.module()
        norms = [layer for layer in module.modules() if isinstance(layer, nn.LayerNorm)]
        assert {(norm.normalized_shape, norm.weight.shape[0]) for norm in norms} == {((12,), 12)}
        heads = [x.out_features for key, x in module.named_modules() if key.endswith(("value", "qkv"))]
        assert set(heads) <= {16, 48}


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"batch_first": True}, {"kdim": 6, "vdim": 10}])
@pytest.mark.parametrize("need_weights", [True, False])
def test_an_opened_attention_computes_the_same(options: dict[str, Any], need_weights: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, **options).eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    holder = nn.Sequential(attention)
    open_attention.opened(holder, "0")
    q, k, v = torch.randn(5, 5, 8), torch.randn(5, 5, attention.kdim), torch.randn(5, 5, attention.vdim)
    padding = torch.zeros(5, 5, dtype=torch.bool)
    padding[2, 3:] = True
    causal = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    minus = torch.zeros(5, 5).masked_fill(padding, float("-inf"))
    pairs = ((None, None), (causal, None), (None, padding), (causal, padding), (torch.randn(10, 5, 5), minus))
    for mask, missing in pairs:
        keys = {"key_padding_mask": missing, "attn_mask": mask, "need_weights": need_weights}
        expected, found = (each(q, k, v, **keys) for each in (attention, holder[0]))
        torch.testing.assert_close(found, expected)


def test_torchs_transformer_layers_call_an_opened_attention(tmp_path: Path) -> None:
    """Their fused path, which reads the weights of an attention directly, steps aside."""

    def make() -> nn.Module:
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        return nn.Sequential(nn.Linear(3, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))

    split = ArraySplit({"x": RNG.standard_normal((COUNT, 5, 3)).astype(np.float32)}, np.arange(COUNT))
    task = Task(name="t", model=make, train=split, validation=split, test=split, outputs=("logits",), loss=loss)
    original = original_of(task)
    context = make_context(task, tmp_path, {"original": original})
    opened = dry_run.with_open_attention(original)
    np.testing.assert_allclose(outputs_of(opened, task), outputs_of(original, task), atol=1e-5)
    pruned = Prune(id="p", channel_ratio=0.75, only=("*.value",), round_to=1, samples=COUNT).run(original, context)
    assert [layer.self_attn.query.out_features for layer in pruned.module()[1].layers] == [12, 12]
    reopens_and_exports(pruned, task, tmp_path)
