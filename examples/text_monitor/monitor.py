"""Reads texts, one a line, and says when more of them turn negative than chance explains.

`python monitor.py FOLDER < texts.txt`: FOLDER holds model.onnx and tokenizer.json, as `edgesmith compress` leaves them.
On the device this needs numpy, onnxruntime and tokenizers, and this file.
"""

import argparse
import collections
import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

TOPICS = ("film", "product", "news", "tweet")  # in the order of the model's columns
NEGATIVE = 0  # column of the sentiment


@dataclasses.dataclass
class Chart:
    """An exponentially weighted moving average of a share, and how far chance alone moves it (Roberts, 1959).

    The first `learn` answers say what is usual; how well they can say it is part of the noise. An alert is given once,
    and again only after the average was back within half the limit.
    """

    learn: int = 500
    weight: float = 0.02  # of each new answer: the average looks back over some 2 / weight of them
    limit: float = 4.5  # standard deviations
    seen: int = 0
    usual: float = 0.0
    average: float = 0.0
    alerting: bool = False

    def noise(self) -> float:
        """Standard deviation of the average minus what is usual, where nothing has changed."""
        variance = (self.usual * (1 - self.usual)) or 1 / (4 * self.learn)  # a share of 0 was seen, which is not a law
        answers = self.seen - self.learn
        moving = self.weight / (2 - self.weight) * (1 - (1 - self.weight) ** (2 * answers))
        return math.sqrt(variance * (moving + 1 / self.learn))

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
        beyond = (self.average - self.usual) / self.noise()
        alert = beyond > self.limit and not self.alerting
        self.alerting = beyond > (self.limit / 2 if self.alerting else self.limit)
        return alert


class Reader:
    """The compressed model: sentiment and topic of texts."""

    def __init__(self, folder: Path, tokens: int = 32, threads: int = 1) -> None:
        import onnxruntime
        import tokenizers

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, ["CPUExecutionProvider"])
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(tokens)
        self._tokenizer.enable_padding()

    def read(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Whether each text is negative, bool `(N,)`, and its topic's column, int64 `(N,)`."""
        encoded = self._tokenizer.encode_batch(list(texts))
        feed = {
            "input_ids": np.array([each.ids for each in encoded], np.int64),
            "attention_mask": np.array([each.attention_mask for each in encoded], np.int64),
        }
        sentiment, topic = self._session.run(["sentiment", "topic"], feed)
        return sentiment.argmax(1) == NEGATIVE, topic.argmax(1)


def alerts(texts: Iterable[str], reader: Any, charts: dict[str, Chart], batch: int = 16) -> Iterator[dict[str, Any]]:
    """Every alert, as it happens: the topic, which text it was, the share now and what was usual.

    Args:
        texts: the stream; empty lines are passed over.
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
                    "noise": round(chart.noise(), 3),
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
    for (number, text), negative, topic in zip(waiting, *found, strict=True):
        yield number, text, bool(negative), int(topic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with model.onnx and tokenizer.json")
    parser.add_argument("--learn", type=int, default=500, help="texts that say what is usual, of each topic and of all")
    parser.add_argument("--limit", type=float, default=4.5, help="standard deviations that are an alert")
    parser.add_argument("--batch", type=int, default=16, help="texts read at once")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    charts: dict[str, Chart] = collections.defaultdict(lambda: Chart(learn=options.learn, limit=options.limit))
    try:
        for alert in alerts(sys.stdin, Reader(options.folder, threads=options.threads), charts, options.batch):
            print(json.dumps(alert, ensure_ascii=False), flush=True)
    except KeyboardInterrupt:
        pass  # a stream has no other end
    for name, chart in sorted(charts.items()):
        print(f"{name}: {chart.seen} texts, usually {chart.usual:.1%} negative", file=sys.stderr)


if __name__ == "__main__":
    main()
