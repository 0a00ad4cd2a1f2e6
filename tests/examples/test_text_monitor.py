"""The monitor: its chart keeps to its own noise, and the program reads a stream through a model file and a tokenizer."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy import stats
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.examples_at import EXAMPLES, example

WORDS = ("[PAD]", "[UNK]", "bad", "good", "film", "product", "news", "tweet")


@pytest.fixture(scope="module")
def monitor() -> ModuleType:
    return example("text_monitor", "monitor")


def test_the_topics_are_in_the_order_the_network_learnt_them(monitor: ModuleType) -> None:
    assert tuple(example("text_sentiment", "sentences").SOURCES) == monitor.TOPICS


@pytest.mark.parametrize("share", [0.002, 0.02, 0.1, 0.3, 0.5])
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
    assert false <= 1
    assert np.median(late) < 250 and max(late) < 2000


def test_a_long_stream_alerts_no_more_often_where_negative_texts_are_rare(monitor: ModuleType) -> None:
    """100,000 texts, of which every look is one: single negative ones among few are not a rise."""
    for share, seed in ((0.005, 0), (0.05, 1)):
        chart = monitor.Chart()
        rare = np.random.default_rng(seed).random(100_000) < share
        assert not any(chart.add(negative) for negative in rare.tolist())


def test_the_statistic_is_the_root_of_twice_the_likelihood_ratio(monitor: ModuleType) -> None:
    """30 of 99 against 100 of 500, by scipy: G of the two by two table."""
    chart = monitor.Chart(usual=100 / 500, average=30 / 99)
    found = stats.chi2_contingency([[30, 69], [100, 400]], correction=False, lambda_="log-likelihood")
    assert chart.beyond() == pytest.approx(float(found.statistic) ** 0.5)
    chart.average = 10 / 99
    assert chart.beyond() < -2
    for usual, average in ((0.0, 0.0), (1.0, 1.0), (1.0, 1 - 1e-16), (0.0, 5e-324)):
        assert abs(monitor.Chart(usual=usual, average=average).beyond()) < 1e-6


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


def read(folder: Path, texts: bytes, *options: str) -> subprocess.CompletedProcess[str]:
    """What the program says of a stream, in the plainest of locales."""
    command = [sys.executable, str(EXAMPLES / "text_monitor" / "monitor.py"), str(folder), *options]
    done = subprocess.run(command, input=texts, capture_output=True, check=False, env={**os.environ, "LC_ALL": "C"})
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_the_program_says_which_topic_turned_when(tmp_path: Path) -> None:
    """Films stay as they are; of the products, every second text, all are bad from text 301 on."""
    words_to_answers(tmp_path)
    rng = np.random.default_rng(0)
    lines = []
    for number in range(1, 501):
        topic = ("film", "product")[number % 2]
        bad = rng.random() < 0.3 or (topic == "product" and number > 300)
        lines += [f"{'bad' if bad else 'good'} {topic}", ""]
    done = read(tmp_path, "\n".join(lines).encode(), "--learn", "100")
    assert done.returncode == 0
    alerts = [json.loads(line) for line in done.stdout.splitlines()]
    assert [alert["alert"] for alert in alerts] == ["product", "all"]
    assert 600 < alerts[0]["text"] < alerts[1]["text"] < 800  # lines, the empty ones counted
    assert alerts[0]["last"] == "bad product"
    assert 4.5 <= alerts[0]["beyond"] < 5
    assert "film: 250 texts, usually " in done.stderr


def test_bytes_that_are_no_text_do_not_end_it(tmp_path: Path) -> None:
    """Of another encoding, with a mark of byte order, other ends of lines, and with nothing to read in them."""
    words_to_answers(tmp_path)
    odd = "\ufeffgood film\r\n".encode() + b"caf\xe9 good film\n \r\n\0\n" + "\u200b\n???\n".encode()
    done = read(tmp_path, odd + b"good film\n" * 48 + "bad film é€\n".encode() * 60, "--learn", "50")
    assert (done.returncode, done.stderr) == (
        0,
        "all: 110 texts, usually 0.0% negative\nfilm: 110 texts, usually 0.0% negative\n",
    )
    alerts = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(alert["alert"], alert["last"]) for alert in alerts] == [("all", "bad film é€"), ("film", "bad film é€")]


def test_what_is_not_watched_yet_is_said(tmp_path: Path) -> None:
    words_to_answers(tmp_path)
    done = read(tmp_path, b"good film\nbad news\n" * 3, "--learn", "4")
    assert done.stderr == (
        "all: 6 texts, usually 50.0% negative\n"
        "film: 3 texts, usually 0.0% negative (4 texts say what is usual: not watched yet)\n"
        "news: 3 texts, usually 100.0% negative (4 texts say what is usual: not watched yet)\n"
    )
    assert read(tmp_path, b"").returncode == 0


def test_it_ends_quietly_when_nobody_reads_its_alerts(tmp_path: Path) -> None:
    words_to_answers(tmp_path)
    command = [sys.executable, str(EXAMPLES / "text_monitor" / "monitor.py"), str(tmp_path), "--learn", "50"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdin and program.stdout and program.stderr
        program.stdout.close()
        program.stdin.write(b"good film\n" * 50 + b"bad film\n" * 100)
        program.stdin.close()
        assert (program.stderr.read(), program.wait()) == (b"", 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--learn", "0"), "argument --learn: '0' is no whole number from 1 on"),
        (("--batch", "-1"), "argument --batch: '-1' is no whole number from 1 on"),
        (("--limit", "nan"), "argument --limit: 'nan' is no number above 0"),
        ((), "{folder}/tokenizer.json: no such file"),
    ],
)
def test_what_it_cannot_work_with_is_said(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    words_to_answers(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    done = read(tmp_path, b"good film\n", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == f"monitor.py: error: {message.format(folder=tmp_path)}"


def test_another_model_is_refused(tmp_path: Path) -> None:
    words_to_answers(tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    del model.graph.output[1]
    onnx.save(model, tmp_path / "model.onnx")
    done = read(tmp_path, b"good film\n")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"monitor.py: error: {tmp_path}/model.onnx: outputs and their columns are {{'sentiment': 2}}; wanted are "
        "'sentiment' and 'topic', which has 4"
    )
