"""Is a sentence of a film review positive? A MiniLM encoder learns it from sentences that people rated."""

import numpy as np
from sentences import fetch, rated

import edgesmith

TOKENS = 32  # seven in ten sentences are shorter; the others are cut
CLEAR = 0.5  # rated so far from 0 that a reader would call it good or bad


def task() -> edgesmith.Task:
    folder, files = fetch()
    encoder = edgesmith.TextEncoder.open(folder, tokens=TOKENS)
    every, ratings = rated(files, "film")
    texts = [text for text, rating in zip(every, ratings, strict=True) if abs(rating) >= CLEAR]
    positive = (ratings[np.abs(ratings) >= CLEAR] > 0).astype(np.int64)
    inputs = encoder.encode(texts)
    order = np.random.default_rng(0).permutation(len(texts))
    parts = np.split(order, np.cumsum([round(share * len(texts)) for share in (0.72, 0.08)]))
    train, validation, test = (
        edgesmith.ArraySplit({name: array[part] for name, array in inputs.items()}, positive[part]) for part in parts
    )

    return edgesmith.Task(
        name="text-sentiment",
        model=encoder.classifier(classes=2),
        load_weights=encoder.load_weights,
        train=train,
        validation=validation,
        test=test,
        outputs=("logits",),
        classes=("negative", "positive"),
        texts=[texts[i] for i in parts[2]],  # an audit makes typing errors in them
        encode=encoder.encode,
        dynamic_axes=encoder.dynamic_axes(),
        files=encoder.files(),
    )
