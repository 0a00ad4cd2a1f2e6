"""Reads texts, one a line, and says when more of them turn negative than chance explains.

`python monitor.py FOLDER < texts.txt`: FOLDER holds model.onnx and tokenizer.json, as `edgesmith compress` leaves them.
On the device this needs numpy, onnxruntime and tokenizers, and this file.
"""

import argparse
import collections
import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FILES = ("model.onnx", "tokenizer.json")
TOPICS = ("film", "product", "news", "tweet")  # in the order of the model's columns
NEGATIVE = 0  # column of the sentiment


@dataclasses.dataclass
class Chart:
    """An exponentially weighted moving average of a share, and how far chance alone moves it (Roberts, 1959).

    The first `learn` answers say what is usual; how well they can say it is part of the noise. An alert is given once,
    and again only after the average was back within half the limit. Texts are taken to be independent.
    """

    learn: int = 500
    weight: float = 0.02  # of each new answer: the average looks back over some 2 / weight of them
    limit: float = 4.5  # standard deviations
    seen: int = 0
    usual: float = 0.0
    average: float = 0.0
    alerting: bool = False

    def beyond(self) -> float:
        """By how many standard deviations the average is above what is usual; below it, negative.

        The signed root of the likelihood ratio of two shares, which is near normal where a difference over its own
        deviation is not: of rare negative texts two or three in a row are no rise yet. The average stands for as many
        answers as have its variance.
        """
        recent = (2 - self.weight) / self.weight
        both = (recent * self.average + self.learn * self.usual) / (recent + self.learn)
        ratio = recent * _divergence(self.average, both) + self.learn * _divergence(self.usual, both)
        return math.copysign(math.sqrt(2 * max(0.0, ratio)), self.average - self.usual)

    def add(self, negative: bool) -> bool:
        """Take up one answer.

        Returns:
            Whether it gives an alert.
        """
        self.seen += 1
        if self.seen <= self.learn:
            self.usual += (negative - self.usual) / self.seen
            self.average = self.usual
            return False
        self.average += self.weight * (negative - self.average)
        beyond = self.beyond()
        alert = beyond > self.limit and not self.alerting
        self.alerting = beyond > (self.limit / 2 if self.alerting else self.limit)
        return alert


def _divergence(share: float, other: float) -> float:
    """Of one yes-or-no distribution from another (Kullback-Leibler)."""
    pairs = ((share, other), (1 - share, 1 - other))
    return sum(a * math.log(a / b) for a, b in pairs if a > 0 and b > 0)  # what rounds to 0 adds nothing


class Reader:
    """The compressed model: sentiment and topic of texts.

    Raises:
        ValueError: the folder lacks a file, or holds another model.
    """

    def __init__(self, folder: Path, tokens: int = 32, threads: int = 1) -> None:
        import onnxruntime
        import tokenizers

        for name in FILES:
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name}: no such file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, ["CPUExecutionProvider"])
        columns = {each.name: each.shape[-1] for each in self._session.get_outputs()}
        topics = columns.get("topic", 0)
        if "sentiment" not in columns or (isinstance(topics, int) and topics != len(TOPICS)):
            raise ValueError(
                f"{folder / 'model.onnx'}: outputs and their columns are {columns}; wanted are 'sentiment' and "
                f"'topic', which has {len(TOPICS)}"
            )
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(tokens)
        self._tokenizer.enable_padding()
        self._unknown = self._tokenizer.token_to_id("[UNK]")

    def read(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Whether each text is negative, its topic's column, and whether a word of it is known; `(N,)` each."""
        encoded = self._tokenizer.encode_batch(list(texts))
        feed = {
            "input_ids": np.array([each.ids for each in encoded], np.int64),
            "attention_mask": np.array([each.attention_mask for each in encoded], np.int64),
        }
        sentiment, topic = self._session.run(["sentiment", "topic"], feed)
        special = np.array([each.special_tokens_mask for each in encoded], bool)
        known = (~special & (feed["input_ids"] != self._unknown)).any(1)
        return sentiment.argmax(1) == NEGATIVE, topic.argmax(1), known


def alerts(texts: Iterable[str], reader: Any, charts: dict[str, Chart], batch: int = 16) -> Iterator[dict[str, Any]]:
    """Every alert, as it happens: the topic, which text it was, the share now and what was usual.

    Args:
        texts: the stream; empty lines are passed over, and texts in which no word is known.
        reader: what `read`s them.
        charts: topic -> its chart; "all" takes every text.
        batch: texts that are read at once; a live stream that must not wait takes 1.
    """
    for number, text, negative, topic in _read(texts, reader, batch):
        for name in ("all", TOPICS[topic]):
            chart = charts[name]
            if chart.add(negative):
                yield {
                    "alert": name,
                    "text": number,
                    "negative": round(chart.average, 3),
                    "usual": round(chart.usual, 3),
                    "beyond": round(chart.beyond(), 1),
                    "last": text,
                }


def _read(texts: Iterable[str], reader: Any, batch: int) -> Iterator[tuple[int, str, bool, int]]:
    waiting: list[tuple[int, str]] = []
    for number, line in enumerate(texts, 1):
        if line.strip():
            waiting.append((number, line.strip()))
        if len(waiting) == batch:
            yield from _answers(waiting, reader)
            waiting = []
    if waiting:
        yield from _answers(waiting, reader)


def _answers(waiting: list[tuple[int, str]], reader: Any) -> Iterator[tuple[int, str, bool, int]]:
    found = reader.read([text for _, text in waiting])
    for (number, text), negative, topic, known in zip(waiting, *found, strict=True):
        if known:
            yield number, text, bool(negative), int(topic)


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from 1 on")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no number above 0")
    return number


def _said(name: str, chart: Chart) -> str:
    known = "" if chart.seen > chart.learn else f" ({chart.learn} texts say what is usual: not watched yet)"
    return f"{name}: {chart.seen} texts, usually {chart.usual:.1%} negative{known}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with model.onnx and tokenizer.json")
    parser.add_argument(
        "--learn", type=_whole, default=500, help="texts that say what is usual, of each topic and of all"
    )
    parser.add_argument("--limit", type=_positive, default=4.5, help="standard deviations that are an alert")
    parser.add_argument("--batch", type=_whole, default=16, help="texts read at once; 1: a live stream does not wait")
    parser.add_argument("--threads", type=_whole, default=1)
    options = parser.parse_args()
    # Whatever the locale: a byte that is no UTF-8 costs a letter, not the monitor.
    sys.stdin.reconfigure(encoding="utf-8-sig", errors="replace")
    sys.stdout.reconfigure(encoding="utf-8")
    charts: dict[str, Chart] = collections.defaultdict(lambda: Chart(learn=options.learn, limit=options.limit))
    try:
        reader = Reader(options.folder, threads=options.threads)
    except ValueError as error:
        parser.error(str(error))
    try:
        for alert in alerts(sys.stdin, reader, charts, options.batch):
            print(json.dumps(alert, ensure_ascii=False), flush=True)
    except KeyboardInterrupt:
        pass  # a stream has no other end
    except BrokenPipeError:  # nobody reads the alerts any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at the end raises no second one
        return 1
    for name, chart in sorted(charts.items()):
        print(_said(name, chart), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
