"""Three tasks: is a sentence positive, what is it from, and both at once from the two networks that learnt that."""

import sys
from pathlib import Path

import numpy as np

import edgesmith

sys.path.insert(0, str(Path(__file__).parents[1] / "text_sentiment"))
from sentences import SOURCES, fetch, rated

HERE = Path(__file__).resolve().parent
TOKENS = 32
CLEAR = 0.5  # rated so far from 0 that a reader would call it good or bad
SEED, SHARES = 0, (0.72, 0.08)  # of the sentences: to learn from, to choose on; the rest judges


def _encoder() -> edgesmith.TextEncoder:
    return edgesmith.TextEncoder.open(fetch()[0], tokens=TOKENS)


def sentences() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Texts that are clearly good or bad, whether they are positive, and the number of their source."""
    texts, positive, topic = [], [], []
    for number, source in enumerate(SOURCES):
        for text, rating in zip(*rated(fetch()[1], source), strict=True):
            if abs(rating) >= CLEAR:
                texts.append(text)
                positive.append(rating > 0)
                topic.append(number)
    return texts, np.array(positive, np.int64), np.array(topic, np.int64)


def parts(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Which sentences teach, choose and judge; the same for all three tasks.

    Cut to their length, sentences may be alike; one that an earlier part has is in no later one.
    """
    rows = [row.tobytes() for row in inputs["input_ids"]]
    order = np.random.default_rng(SEED).permutation(len(rows))
    found, seen = {}, set[bytes]()
    cuts = np.cumsum([int(share * len(rows)) for share in SHARES])
    for name, chosen in zip(("train", "validation", "test"), np.split(order, cuts), strict=True):
        found[name] = np.array([number for number in chosen if rows[number] not in seen])
        seen |= {rows[number] for number in chosen}
    return found


def _splits(labels: str) -> dict[str, edgesmith.ArraySplit]:
    texts, positive, topic = sentences()
    inputs, wanted = _encoder().encode(texts), {"sentiment": positive, "topic": topic}[labels]
    return {
        name: edgesmith.ArraySplit({key: array[part] for key, array in inputs.items()}, wanted[part])
        for name, part in parts(inputs).items()
    }


def _network(name: str, classes: tuple[str, ...]) -> edgesmith.Task:
    encoder = _encoder()
    return edgesmith.Task(
        name=f"text-{name}",
        model=encoder.classifier(len(classes)),
        load_weights=encoder.load_weights,
        outputs=(name,),
        classes=classes,
        dynamic_axes=encoder.dynamic_axes(),
        files=encoder.files(),
        **_splits(name),
    )


def sentiment() -> edgesmith.Task:
    return _network("sentiment", ("negative", "positive"))


def topic() -> edgesmith.Task:
    return _network("topic", tuple(SOURCES))


def monitor() -> edgesmith.Task:
    """Both networks, as their runs left them, judged by the sentiment; the topic has to stay what it was."""
    encoder, files = _encoder(), "artifacts/onnxruntime-cpu/model.onnx"
    return edgesmith.Task(
        name="text-monitor",
        model=HERE / "runs" / "sentiment" / files,
        models={"topic": HERE / "runs" / "topic" / files},
        outputs=("sentiment",),
        classes=("negative", "positive"),
        dynamic_axes=encoder.dynamic_axes(),
        files=encoder.files(),
        **_splits("sentiment"),
    )
