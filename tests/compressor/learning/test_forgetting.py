"""Not forgetting: clothes first, then shoes and bags; what is left of the clothes, by each way of keeping them."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgesmith.cli import main
from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.data import any_inputs, batches
from edgesmith.compressor.evaluation import evaluate, old_metric, task_metrics
from edgesmith.compressor.fusion.merge_statistics import fisher
from edgesmith.compressor.learning.finetune import Finetune
from edgesmith.compressor.learning.forgetting import consolidated, without_forgetting
from edgesmith.compressor.task_file import check_data, load_task
from edgesmith.core.errors import DataError, ExitCode, RecipeError, TaskError
from edgesmith.core.task import ArraySplit, Task
from edgesmith.exporters.sessions.torch_session import TorchSession, forward

from ..conftest import Killed, kill_training, make_context

TASK = """
import numpy as np
import torch
from torch import nn

import edgesmith

stored = np.load({slice!r})
images = (stored["images"][:, None] / 255).astype(np.float32)
labels = stored["labels"].astype(np.int64)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(32 * 49, 64), nn.ReLU(),
        )
        self.clothes, self.others = nn.Linear(64, 5), nn.Linear(64, 5)

    def forward(self, x):
        x = self.trunk(x)
        return {{"clothes": self.clothes(x), "others": self.others(x)}}


def splits(first):
    \"\"\"Of every class from `first` to `first + 4`: 26 to train, 12 to choose, the rest to judge.\"\"\"
    parts = {{"train": slice(26), "validation": slice(26, 38), "test": slice(38, None)}}
    of_class = [np.flatnonzero(labels == first + each) for each in range(5)]
    chosen = {{name: np.concatenate([each[part] for each in of_class]) for name, part in parts.items()}}
    return {{name: edgesmith.ArraySplit({{"image": images[i]}}, labels[i] - first) for name, i in chosen.items()}}


def learn_clothes(model):
    optimizer, data = torch.optim.AdamW(model.parameters(), 2e-3), splits(0)["train"]
    x, y = torch.tensor(data.inputs["image"]), torch.tensor(data.labels)
    for step in range(80):
        chosen = torch.randperm(len(y), generator=torch.Generator().manual_seed(step))[:32]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[chosen])["clothes"], y[chosen]).backward()
        optimizer.step()


def clothes():
    return edgesmith.Task(
        name="clothes", model=TwoHeads, load_weights=learn_clothes, outputs=("clothes",), **splits(0)
    )


def task():
    return edgesmith.Task(
        name="others", model=TwoHeads, load_weights=learn_clothes, outputs=("others", "clothes"), old=clothes(), **splits(5)
    )
"""
RECIPE = """
task = "task.py"
targets = ["tensorrt"]  # which is not timed here
[[stages]]
use = "finetune"
epochs = 20
batch_size = 32
learning_rate = 5e-3
keep = "lwf"
[[stages]]
use = "export"
[limits]
metric = 0.5
"""
SLICE = str(Path(__file__).parents[2] / "data" / "fashion_mnist_512.npz")
KEYS: dict[str, Any] = {"id": "t", "epochs": 20, "batch_size": 32, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Shoes and bags, with the clothes as the old task."""
    folder = tmp_path_factory.mktemp("others")
    (folder / "task.py").write_text(TASK.format(slice=SLICE))
    return load_task("task.py", folder)


@pytest.fixture(scope="module")
def knows_clothes(others: Task) -> Candidate:
    torch.manual_seed(0)
    module = others.model()
    others.load_weights(module)
    example = {name: torch.tensor(array) for name, array in any_inputs(others, 2).items()}
    return Candidate(factory=others.model, example=example, edits=(), weights=state_of(module))


def scores(candidate: Candidate, task: Task) -> tuple[float, float]:
    """Accuracy on the validation data of the new task and of the old one."""
    session = TorchSession(candidate.module(), task.input_specs(), task.outputs)
    new, old = task_metrics(task)[0], old_metric(task)
    assert old is not None
    assert task.old is not None
    return (
        evaluate(session, task.validation, (new,))["accuracy"],
        evaluate(session, task.old.validation, (old,))["clothes: accuracy"],
    )


def test_plain_training_forgets_and_both_ways_keep_more(others: Task, knows_clothes: Candidate, tmp_path: Path) -> None:
    """The weights of the best epoch for the new task, on all images that neither training has seen."""
    assert others.old is not None
    unseen = dataclasses.replace(
        others, validation=both(others), old=dataclasses.replace(others.old, validation=both(others.old))
    )

    def trained(keep: str | None) -> tuple[float, float]:
        context = make_context(others, tmp_path / str(keep), {})
        return scores(Finetune(**KEYS, keep=keep).run(knows_clothes, context), unseen)

    before, plain, lwf, ewc = scores(knows_clothes, unseen), trained(None), trained("lwf"), trained("ewc")
    assert before[1] > 0.7
    assert plain[1] < before[1] - 0.2
    assert min(lwf[1], ewc[1]) > plain[1] + 0.15
    assert min(plain[0], lwf[0], ewc[0]) > 0.75  # and the new task is learnt


def test_lwf_asks_nothing_at_the_start_and_the_old_output_alone_later(
    others: Task, knows_clothes: Candidate, tmp_path: Path
) -> None:
    """T^2 * KL of the softened answers, by hand."""
    added = without_forgetting(knows_clothes, 3.0, make_context(others, tmp_path, {}))
    inputs = {"image": torch.tensor(others.train.batch(np.arange(8))[0]["image"])}
    with torch.no_grad():
        answers = forward(knows_clothes.module(), inputs, others.outputs)
    assert float(added(inputs, answers)) == pytest.approx(0, abs=1e-6)
    moved = {"clothes": answers["clothes"] + torch.arange(5.0), "others": answers["others"] + 7 * torch.arange(5.0)}
    t, s = ((each["clothes"] / 2).softmax(1).double() for each in (answers, moved))
    assert float(added(inputs, moved)) == pytest.approx(3 * 4 * float((t * (t / s).log()).sum(1).mean()), rel=1e-4)


def test_ewc_pulls_on_what_the_old_task_hangs_on(others: Task, knows_clothes: Candidate, tmp_path: Path) -> None:
    module = knows_clothes.module()
    added = consolidated(module, knows_clothes, 10.0, 32, make_context(others, tmp_path, {}))

    def moved(parameter: nn.Parameter, by: float) -> float:
        with torch.no_grad():
            before = parameter.clone()
            parameter += by
            found = float(added({}, {}))
            parameter.copy_(before)
        return found

    assert float(added({}, {}).detach()) == 0
    once, twice = moved(module.clothes.weight, 0.1), moved(module.clothes.weight, 0.2)
    assert once > 0
    assert twice == pytest.approx(4 * once, rel=1e-3)  # quadratic
    assert moved(module.others.weight, 0.1) == 0  # no answer to the old task depends on it
    seen = dataclasses.replace(others.old, outputs=others.outputs)  # type: ignore[type-var]  # it names an old task
    single = batches(make_context(seen, tmp_path / "again", {}), "train", 32, 1)
    found = fisher(knows_clothes.module(), single, seen, "clothes", torch.Generator().manual_seed(0))
    assert once == pytest.approx(float(10 / 2 * 0.1**2 * found["clothes.weight"].sum()), rel=1e-3)


def test_a_killed_run_ends_equal(
    others: Task, knows_clothes: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Finetune(**(KEYS | {"epochs": 2}), keep="ewc", keep_samples=16)
    whole = stage.run(knows_clothes, make_context(others, tmp_path / "whole", {}))
    kill_training(monkeypatch, at=6)
    with pytest.raises(Killed):
        stage.run(knows_clothes, make_context(others, tmp_path / "killed", {}))
    again = stage.run(knows_clothes, make_context(others, tmp_path / "killed", {}))
    assert all(torch.equal(again.weights[name], tensor) for name, tensor in whole.weights.items())


@pytest.mark.slow
def test_the_ledger_and_the_report_hold_the_old_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "task.py").write_text(TASK.format(slice=SLICE))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    assert main(["compress", "recipe.toml"]) == ExitCode.UNPROVEN
    report = json.loads(Path("runs/others/report.json").read_text())
    original, finetuned, exported = report["stages"]
    assert report["old_metric"] == "clothes: accuracy"
    assert original["old"] > 0.7 > 0.3 > original["accuracy"]
    assert finetuned["old"] == exported["old"] > original["old"] - 0.15
    stored = np.load("runs/others/predictions.npz", allow_pickle=False)
    right = (stored["old/final/clothes"].argmax(1) == stored["old/labels"]).mean()
    assert report["final"]["metrics"]["clothes: accuracy"]["value"] == pytest.approx(right)
    shown, before = re.sub(r" +", " ", capsys.readouterr().out), report["original"]["metrics"]["clothes: accuracy"]
    assert f"clothes: accuracy │ {100 * before['value']:.2f} %" in shown
    page = Path("runs/others/report.html").read_text()
    assert f'<td role="cell" data-label="clothes: accuracy">{100 * finetuned["old"]:.2f} %</td>' in page


def both(task: Task) -> ArraySplit:
    """What is not trained on."""
    parts = [split.batch(np.arange(len(split))) for split in (task.validation, task.test)]
    images = np.concatenate([inputs["image"] for inputs, _ in parts])
    return ArraySplit({"image": images}, np.concatenate([labels for _, labels in parts]))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"keep_weight": 2.0}, "s.keep_weight: nothing reads it without keep"),
        ({"keep_samples": 8}, 's.keep_samples: only keep = "ewc" reads it'),
        ({"keep": "lwf", "keep_samples": 8}, 's.keep_samples: only keep = "ewc" reads it'),
        (
            {"keep": "ewc", "adapter": "lora"},
            "s.keep: 'ewc' holds the weights themselves, and with adapter 'lora' those do not move; use keep = \"lwf\", "
            "or leave adapter out",
        ),
    ],
)
def test_keys_that_contradict_each_other(others: Task, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        Finetune(id="f", **keys).check(others, "s")
    assert str(error.value) == message


def test_what_the_task_has_to_say(others: Task) -> None:
    assert others.old is not None
    with pytest.raises(TaskError) as error:
        Finetune(id="f", keep="lwf").check(dataclasses.replace(others, old=None), "s")
    assert str(error.value) == "task 'others': s.keep has to know the old task; set old= to the Task that it was"
    without = dataclasses.replace(others, old=dataclasses.replace(others.old, train=None))
    Finetune(id="f", keep="lwf").check(without, "s")  # which needs no sample of it
    with pytest.raises(TaskError) as error:
        Finetune(id="f", keep="ewc").check(without, "s")
    assert str(error.value) == (
        "task 'clothes': s.keep: the Fisher information of the old task needs the 'train' split; set train= in the task"
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"outputs": ("logits",)},
            "its first output is 'logits', and the model gives others, clothes; name the one that answers the old task "
            "first in its outputs=",
        ),
        (
            {"test": ArraySplit({"image": np.zeros((2, 1, 8, 8), np.float32)}), "train": None, "validation": None},
            "which is measured beside the new one, needs the 'validation' split; set validation= in the task",
        ),
    ],
)
def test_an_old_task_that_the_model_cannot_be_asked_about(others: Task, changed: dict[str, Any], message: str) -> None:
    assert others.old is not None
    with pytest.raises(TaskError, match=re.escape(message)):
        check_data(dataclasses.replace(others, old=dataclasses.replace(others.old, **changed)))


def test_an_old_task_with_other_inputs(others: Task) -> None:
    assert others.old is not None
    small = ArraySplit({"image": np.zeros((2, 1, 8, 8), np.float32)}, np.zeros(2, np.int64))
    old = dataclasses.replace(others.old, train=None, validation=small, test=small)
    with pytest.raises(DataError) as error:
        check_data(dataclasses.replace(others, old=old))
    assert str(error.value) == (
        "task 'others': old task 'clothes': inputs are image float32 (1, 8, 8), those of the new one are image float32 "
        "(1, 28, 28); they must agree"
    )
