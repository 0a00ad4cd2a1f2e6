"""bfloat16 where the device has instructions for it, and nowhere else unless it is asked for by name."""

import dataclasses

import pytest
import torch

from edgesmith.compressor.candidate import Candidate
from edgesmith.compressor.learning import precision
from edgesmith.compressor.learning.finetune import Finetune
from edgesmith.compressor.stage import Context


@pytest.mark.parametrize(
    ("has", "device", "asked", "found"),
    [
        ([], "cpu", "auto", "no"),
        (["avx512_bf16"], "cpu", "auto", "bf16"),
        (["bf16"], "cpu", "auto", "bf16"),
        ([], "cpu", "bf16", "bf16"),
        (["amx_bf16"], "cpu", "no", "no"),
        (["avx512_bf16"], "cuda", "auto", "no"),  # a GPU that emulates it, in a machine whose CPU does not
        ([], "cpu", "fp16", "fp16"),
    ],
)
def test_auto_is_what_the_device_computes(
    has: list[str], device: str, asked: precision.Precision, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "features", lambda wanted: [each for each in wanted if each in has])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert precision.chosen(asked, device) == found


@pytest.mark.parametrize(
    ("computes", "asked", "said"),
    [
        (True, "auto", ", in bf16"),
        (False, "auto", ", in float32: this device does not compute in bfloat16"),
        (False, "no", ""),
    ],
)
def test_a_training_says_what_it_computed_in(
    original: Candidate,
    context: Context,
    computes: bool,
    asked: precision.Precision,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: set[bool] = set()
    monkeypatch.setattr(precision, "computes_bf16", lambda device: computes)
    told = dataclasses.replace(context, notes=[])
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *_: seen.add(torch.is_autocast_enabled("cpu")) if module.training else None
    )
    try:
        Finetune(id="f", epochs=1, mixed_precision=asked).run(original, told)
    finally:
        handle.remove()
    assert seen == {said == ", in bf16"}
    assert any(note.startswith("best epoch") and note.endswith(said) for note in told.notes), told.notes
