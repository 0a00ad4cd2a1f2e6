"""Everything a user can get wrong: the exit code, and a message that says what, where and what to do."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesmith.cli import main
from edgesmith.core.errors import ExitCode

Refuse = Callable[..., str]


@pytest.fixture
def refusal(project: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Run `compress`, expect exit code 2 (or another), return what it said; nothing may have been started."""

    def run(*options: str, recipe: str = "recipe.toml", code: int = ExitCode.USAGE, started: bool = False) -> str:
        assert main(["compress", recipe, *options]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert (project / "runs" / "small" / "stages").exists() == started
        return captured.err.strip().splitlines()[-1].replace(str(project), "DIR")

    return run


def edit(file: str, old: str, new: str) -> None:
    path = Path(file)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_missing_recipe(refusal: Refuse) -> None:
    assert (
        refusal(recipe="nothing.toml") == "RecipeError: nothing.toml: cannot read the recipe: No such file or directory"
    )


def test_toml_syntax(refusal: Refuse) -> None:
    Path("recipe.toml").write_text('task = "task.py\n')
    assert refusal().startswith("RecipeError: recipe.toml: not valid TOML: ")


def test_unknown_key(refusal: Refuse) -> None:
    edit("recipe.toml", "macs_ratio", "mac_ratio")
    assert refusal().startswith(
        "RecipeError: recipe.toml: stages[0]: unknown key 'mac_ratio'; did you mean 'macs_ratio'? known: "
    )


def test_wrong_type(refusal: Refuse) -> None:
    edit("recipe.toml", "epochs = 3", 'epochs = "three"')
    assert refusal() == 'RecipeError: recipe.toml: stages[1].epochs: input should be a valid integer, got "three"'


def test_unknown_choice(refusal: Refuse) -> None:
    message = refusal("--set", "prune.importance=tailor")
    assert message == (
        "RecipeError: stages[0] 'prune'.importance: unknown 'tailor'; did you mean 'taylor'? "
        "known: activation, bn-scale, fisher, fpgm, hessian, lamp, magnitude-l1, magnitude-l2, random, reconstruction, "
        "taylor"
    )


def test_stages_that_do_not_chain(refusal: Refuse) -> None:
    edit("recipe.toml", '[[stages]]\nuse = "export"\n', "")
    assert refusal() == (
        "RecipeError: stages[2] 'quantize': quantize takes a graph, but 'distill' gives a candidate; put an 'export' stage before it"
    )


def test_a_task_that_raises(refusal: Refuse) -> None:
    edit("task.py", "def task():\n", "def task():\n    {}['weights']\n")
    assert refusal() == "TaskError: DIR/task.py: task() raised KeyError: 'weights' (task.py, line 49)"


def test_a_task_without_the_data_a_stage_needs(refusal: Refuse) -> None:
    edit("task.py", "        validation=part(1000, 1300),\n", "")
    assert refusal() == "TaskError: task 'small': the ledger needs the 'validation' split; set validation= in the task"


def test_a_teacher_that_does_not_exist(refusal: Refuse) -> None:
    assert refusal("--set", "distill.teacher=orignal") == (
        "RecipeError: stages[1] 'distill': unknown 'orignal'; did you mean 'original'? known: original, prune"
    )


def test_outputs_that_do_not_fit_the_labels(refusal: Refuse) -> None:
    edit("task.py", "nn.Linear(32, 10)", "nn.Linear(32, 9)")
    message = refusal()
    assert message.startswith("DataError: task 'small': 'validation' split: ")
    assert "label 9" in message


def test_nan_in_data(refusal: Refuse) -> None:
    edit("task.py", "\n\nclass Net", "\nimages[1005, 0, 0, 0] = np.nan\n\n\nclass Net")
    assert refusal() == (
        "DataError: task 'small': 'validation' split: input 'image' holds NaN or infinity, first in sample 5; clean the data"
    )


def test_nan_in_weights(refusal: Refuse) -> None:
    edit("task.py", "    model.train()\n", "    model.head.weight.data[0, 0] = float('nan')\n    return\n")
    assert refusal(started=True) == (
        "DataError: task 'small': original model: weight 'head.weight' holds NaN or infinity; train or load the model again"
    )


def test_empty_calibration_set(refusal: Refuse) -> None:
    edit("task.py", "        train=", "        calibration=part(0, 0),\n        train=")
    assert refusal() == "TaskError: task 'small': the 'calibration' split is empty, and the task needs it"


def test_constant_calibration_set(refusal: Refuse) -> None:
    edit(
        "task.py",
        "        train=",
        "        calibration=edgesmith.ArraySplit({'image': images[:64] * 0}),\n        train=",
    )
    assert refusal() == (
        "DataError: calibration data: input 'image' is 0 everywhere in all 64 samples; no range can be found from it: "
        "give samples that look like what the model will see"
    )


def test_calibration_that_overlaps_the_test_split(refusal: Refuse) -> None:
    edit("task.py", "        train=", "        calibration=part(1298, 1302),\n        train=")
    message = refusal()
    assert message.startswith(
        "DataError: calibration data: 2 of 4 samples are also in the test split (first: calibration sample "
    )


def test_a_ratio_that_would_empty_a_layer(refusal: Refuse) -> None:
    message = refusal("--set", "prune.macs_ratio=0.01", code=ExitCode.LIMIT_MISSED)
    assert message.startswith(
        "UnreachableError: stages[0] 'prune'.macs_ratio: 0.01 cannot be reached without emptying a layer; the smallest here is "
    )


def test_a_glob_that_matches_nothing(refusal: Refuse) -> None:
    message = refusal("--set", 'prune.keep=["block*"]')
    assert (
        message == "RecipeError: stages[0] 'prune'.keep: 'block*' matches no layer; layers: conv1, conv2, conv3, head"
    )


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_a_model_that_cannot_be_exported(options: tuple[str, ...], refusal: Refuse) -> None:
    edit(
        "task.py",
        "        return self.head",
        "        if x.sum() > 1e9:\n            x = x * 2\n        return self.head",
    )
    message = refusal(*options, code=ExitCode.FAILED, started=not options)
    assert message.startswith("ExportError: the model cannot be exported to ONNX: ")
    assert message.endswith(
        "replace data-dependent control flow in forward() with tensor operations, or start from an ONNX file"
    )


def test_a_model_that_cannot_run_on_its_data(refusal: Refuse) -> None:
    edit("task.py", "self.conv1 = nn.Conv2d(1,", "self.conv1 = nn.Conv2d(3,")
    message = refusal()
    assert message.startswith("TaskError: task 'small': the model, on its own data, raised RuntimeError: ")
    assert message.endswith("(task.py, line 25)")


def onnx_model(data: TensorProto) -> onnx.ModelProto:
    node = helper.make_node("Add", ["image", data.name], ["logits"])
    shape = ["batch", 1, 8, 8]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "logits")]
    graph = helper.make_graph([node], "g", value[:1], value[1:], [data])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def use_onnx_file(name: str) -> None:
    edit("task.py", "model=Net,\n        load_weights=load,", f"model={name!r},")
    head = Path("recipe.toml").read_text().split('[[stages]]\nuse = "quantize"')[0]
    edit("recipe.toml", head, 'task = "task.py"\ntargets = ["onnxruntime-cpu", "tensorrt"]\n\n')


def test_a_truncated_onnx_file(refusal: Refuse) -> None:
    data = onnx_model(numpy_helper.from_array(np.ones((1, 1, 8, 8), np.float32), "w")).SerializeToString()
    Path("model.onnx").write_bytes(data[:-40])
    use_onnx_file("model.onnx")
    message = refusal()
    assert message.startswith("ArtifactError: model.onnx: not ")
    assert message.endswith("export it again") or "valid ONNX model" in message


def test_an_onnx_file_that_points_outside_its_folder(refusal: Refuse) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 1, 8, 8], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    Path("model.onnx").write_bytes(onnx_model(tensor).SerializeToString())
    use_onnx_file("model.onnx")
    assert refusal() == (
        "ArtifactError: model.onnx: tensor 'w' points outside the model's folder ('../../etc/passwd'); "
        "such a file is not opened: put its weights beside it, or export it as one file"
    )


def test_an_output_directory_that_cannot_be_written(refusal: Refuse) -> None:
    Path("file").write_text("")
    assert refusal("--out", "file") == "RunDirectoryError: file: is a file; choose a directory with --out"
    message = refusal("--out", "file/run")
    assert (
        message
        == "RunDirectoryError: file/run: cannot write here (Not a directory); choose another directory with --out"
    )


def test_a_full_disk(refusal: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up while a stage's result is written; with space again the same command goes on."""
    real = os.fsync

    def full(descriptor: int) -> None:
        if Path("runs/small/stages/00-original").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    message = refusal(code=ExitCode.FAILED, started=True)
    assert message.startswith("StorageError: ")
    assert message.endswith("the disk is full; free some space and run the same command again: it goes on from here")
    assert not list(Path("runs").rglob("*.partial-*"))


def test_cuda_without_a_device(refusal: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert refusal("--device", "cuda") == "RecipeError: --device cuda: no CUDA device here; use --device cpu"


def test_a_hook_that_load_weights_leaves(refusal: Refuse) -> None:
    edit("task.py", "    model.train()\n", "    model.conv1.register_forward_hook(lambda *_: None)\n    return\n")
    assert refusal(started=True) == (
        "TaskError: task 'small': original model: load_weights has left a forward hook on 'conv1', which would be lost when "
        "the model is built again; register it in the task's model function (it is exported from there), or remove it"
    )


def test_errors_as_json(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "nothing.toml", "--json"]) == ExitCode.USAGE
    assert json.loads(capsys.readouterr().out) == {
        "error": "RecipeError",
        "message": "nothing.toml: cannot read the recipe: No such file or directory",
        "exit_code": 2,
    }


def test_bench_refuses_a_truncated_file(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = onnx_model(numpy_helper.from_array(np.ones((1, 1, 8, 8), np.float32), "w")).SerializeToString()
    Path("a.onnx").write_bytes(data)
    Path("b.onnx").write_bytes(data[: len(data) // 2])
    assert main(["bench", "a.onnx", "b.onnx"]) == ExitCode.USAGE
    assert capsys.readouterr().err.startswith("ArtifactError: b.onnx: ")
    assert main(["bench", "a.onnx"]) == ExitCode.USAGE


def test_limits_on_groups_that_are_not_there(refusal: Refuse) -> None:
    assert refusal("--set", "limits.slice_drop=0.1") == (
        "RecipeError: limits.slice_drop: task 'small' has no slices; set slices= in the task"
    )
    edit("task.py", 'outputs=("logits",)', 'outputs=("logits",), slices={"dark": np.ones(5, bool)}')
    assert refusal("--set", "limits.slice_drop=0.1") == (
        "TaskError: task 'small': slices['dark']: bool (5,); it must say True or False of each of the 497 test samples, "
        "bool (497,)"
    )
    edit("task.py", ', slices={"dark": np.ones(5, bool)}', ', texts=["a"]')
    assert refusal("--set", "limits.corruption_drop=0.1") == (
        "TaskError: task 'small': texts: set encode= too, what makes inputs of them (TextEncoder.encode)"
    )
    edit("task.py", ', texts=["a"]', ', metrics=("mse",)')
    edit("task.py", "labels[start:stop])", "np.eye(10, dtype=np.float32)[labels[start:stop]])")
    assert refusal("--set", "limits.negative_flips=0.1") == (
        "RecipeError: limits.negative_flips: by 'mse' of task 'small' no sample is right or wrong; give the task a main "
        "metric of the kind 'proportion', such as accuracy, or leave the limit out"
    )
    assert refusal("--set", "limits.class_drop=0.1") == (
        "RecipeError: limits.class_drop: the test labels of task 'small' are not one class (an integer) per sample; name "
        "the groups in the task's slices and set slice_drop"
    )
    assert refusal("--set", "limits.disparity=0.1") == (
        "RecipeError: limits.disparity: task 'small' has neither two classes (an integer label per test sample) nor two "
        "slices to compare; set slices= in the task"
    )
    edit("task.py", "images.reshape(-1, 1, 8, 8)", "images.reshape(-1, 1, 64)")
    edit("task.py", "def forward(self, x):", "def forward(self, x):\n        x = x.reshape(-1, 1, 8, 8)")
    assert refusal("--set", "limits.corruption_drop=0.1") == (
        "RecipeError: limits.corruption_drop: task 'small': no input holds images (float, four axes, two of them at "
        "least 4 long), and the task has no texts; for typing errors set texts= and encode= in the task"
    )
