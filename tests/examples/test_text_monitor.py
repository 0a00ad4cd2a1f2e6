"""The monitor: its chart keeps to its own noise, and the program reads a stream through a model file and a tokenizer."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.examples_at import EXAMPLES, example

WORDS = ("[PAD]", "[UNK]", "bad", "good", "film", "product", "news", "tweet")


@pytest.fixture(scope="module")
def monitor() -> ModuleType:
    return example("text_monitor", "monitor")


def test_the_topics_are_in_the_order_the_network_learnt_them(monitor: ModuleType) -> None:
    assert tuple(example("text_sentiment", "sentences").SOURCES) == monitor.TOPICS


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_a_share_that_stays_seldom_alerts_and_one_that_rises_always(share: float, monitor: ModuleType) -> None:
    rng = np.random.default_rng(0)
    false, late = 0, []
    for _ in range(40):
        chart = monitor.Chart()
        false += any(chart.add(bool(negative)) for negative in rng.random(3500) < share)
        chart = monitor.Chart()
        assert not any(chart.add(bool(negative)) for negative in rng.random(500) < share)  # it learns what is usual
        rises = (number for number, negative in enumerate(rng.random(2000) < share + 0.2) if chart.add(bool(negative)))
        late.append(next(rises, 2000))
    assert false <= 6
    assert np.median(late) < 250 and max(late) < 2000


def test_one_alert_for_one_rise(monitor: ModuleType) -> None:
    chart = monitor.Chart(learn=100)
    stream = [number % 4 == 0 for number in range(400)] + [True] * 300 + [number % 4 == 0 for number in range(800)]
    told = [number for number, negative in enumerate([*stream, *[True] * 100]) if chart.add(negative)]
    assert len(told) == 2  # the second rise comes after the share was usual again
    assert 400 < told[0] < 450 and 1500 < told[1] < 1550


def words_to_answers(folder: Path) -> None:
    """A model file that answers by single words, and its tokenizer."""
    table = np.zeros((len(WORDS), 6), np.float32)
    table[2, 0] = table[3, 1] = 1
    table[4:, 2:] = np.eye(4)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["sum"], keepdims=0),
        helper.make_node("Split", ["sum", "sizes"], ["sentiment", "topic"], axis=1),
    ]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["n", "t"]) for n in ("input_ids", "attention_mask")]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None]) for name in ("sentiment", "topic")]
    tensors = [numpy_helper.from_array(table, "table")]
    for name, value in (("last", [2]), ("middle", [1]), ("sizes", [2, 4])):
        tensors.append(numpy_helper.from_array(np.array(value, np.int64), name))
    graph = helper.make_graph(nodes, "words", inputs, outputs, tensors)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def test_the_program_says_which_topic_turned_when(tmp_path: Path) -> None:
    """Films stay as they are; of the products, every second text, all are bad from text 301 on."""
    words_to_answers(tmp_path)
    rng = np.random.default_rng(0)
    lines = []
    for number in range(1, 501):
        topic = ("film", "product")[number % 2]
        bad = rng.random() < 0.3 or (topic == "product" and number > 300)
        lines += [f"{'bad' if bad else 'good'} {topic}", ""]
    command = [sys.executable, str(EXAMPLES / "text_monitor" / "monitor.py"), str(tmp_path), "--learn", "100"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=True)
    alerts = [json.loads(line) for line in done.stdout.splitlines()]
    assert [alert["alert"] for alert in alerts] == ["product", "all"]
    assert 600 < alerts[0]["text"] < alerts[1]["text"] < 800  # lines, the empty ones counted
    assert alerts[0]["last"] == "bad product"
    assert alerts[0]["negative"] > alerts[0]["usual"] + 4.5 * alerts[0]["noise"] - 0.01
    assert "film: 250 texts, usually " in done.stderr
