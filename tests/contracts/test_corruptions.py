"""Every corruption of images and every typing error keeps what an audit rests on."""

import difflib
import itertools

import numpy as np
import pytest

from edgesmith.benches.audits.corruptions import CORRUPTIONS, Images, corrupt
from edgesmith.benches.audits.typos import TYPOS, mistype

IMAGES, TEXTS = sorted(CORRUPTIONS), sorted(TYPOS)
UNIT = Images(channels_last=False, low=np.zeros((3, 1, 1)), high=np.ones((3, 1, 1)))
WORDS = "the quick brown foxes jumped over several sleeping animals, because nobody remembered yesterday's warning"


def pictures(count: int = 6) -> np.ndarray:
    """Smooth shapes on a dark ground, `(N, 3, 32, 32)`, with black and white in every one."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:32, 0:32] / 31
    waves = [np.sin(a * x + b * y) for a, b in rng.uniform(2, 9, (3 * count, 2))]
    found = np.stack(waves).reshape(count, 3, 32, 32).clip(-0.6, 0.9)
    return ((found - found.min((2, 3), keepdims=True)) / np.ptp(found, (2, 3), keepdims=True)).astype(np.float32)


def changed(
    name: str, severity: int, seed: int = 0, images: Images = UNIT, batch: np.ndarray | None = None
) -> np.ndarray:
    batch = pictures() if batch is None else batch
    return corrupt(name, batch, np.arange(len(batch)), severity, images, seed)


@pytest.mark.parametrize("name", IMAGES)
class TestImages:
    def test_shape_type_and_range_stay(self, name: str) -> None:
        for dtype in (np.float16, np.float32, np.float64):
            batch = pictures().astype(dtype)
            found = changed(name, 5, batch=batch)
            assert (found.shape, found.dtype) == (batch.shape, batch.dtype)
            assert found.min() >= 0 and found.max() <= 1

    def test_severity_0_is_the_identity(self, name: str) -> None:
        np.testing.assert_array_equal(changed(name, 0), pictures())

    def test_more_severe_is_further_away(self, name: str) -> None:
        away = [float(np.abs(changed(name, severity) - pictures()).mean()) for severity in range(6)]
        assert all(first < second for first, second in itertools.pairwise(away)), away

    def test_the_same_seed_gives_the_same(self, name: str) -> None:
        np.testing.assert_array_equal(changed(name, 3), changed(name, 3))
        random = not np.array_equal(changed(name, 3), changed(name, 3, seed=1))
        assert random == name.endswith("-noise")

    def test_a_sample_does_not_depend_on_its_batch(self, name: str) -> None:
        alone = corrupt(name, pictures()[4:5], np.array([4]), 3, UNIT, 0)
        np.testing.assert_array_equal(alone[0], changed(name, 3)[4])

    def test_sizes_are_of_the_inputs_own_range_and_axes(self, name: str) -> None:
        """A normalised, channels-last input is corrupted as the picture that it stands for."""
        low, width = np.array([-2.0, -1.8, -1.7])[:, None, None], np.array([4.2, 4.3, 4.4])[:, None, None]
        images = Images(channels_last=True, low=low, high=low + width)
        batch = np.moveaxis(low + width * pictures().astype(np.float64), 1, -1)
        found = changed(name, 3, images=images, batch=batch)
        np.testing.assert_allclose(
            (np.moveaxis(found, -1, 1) - low) / width, changed(name, 3, batch=pictures().astype(np.float64)), atol=1e-6
        )


def flat(value: float, side: int = 64) -> np.ndarray:
    return np.full((1, 3, side, side), value)


def test_reference_values() -> None:
    """What the sizes of Hendrycks & Dietterich's code say, at severity 5."""
    noisy = changed("gaussian-noise", 5, batch=flat(0.5))
    assert noisy.std() == pytest.approx(0.10, rel=0.03) and noisy.mean() == pytest.approx(0.5, abs=0.003)
    assert changed("shot-noise", 5, batch=flat(0.5)).var() == pytest.approx(0.5 / 50, rel=0.05)
    struck = changed("impulse-noise", 5, batch=flat(0.5))
    assert (struck != 0.5).mean() == pytest.approx(0.07, abs=0.006) and set(np.unique(struck)) == {0.0, 0.5, 1.0}
    np.testing.assert_allclose(changed("brightness", 5, batch=flat(0.5)), 0.8)
    np.testing.assert_allclose(changed("brightness", 5, batch=flat(0.9)), 1.0)
    point = np.zeros((1, 3, 32, 32))
    point[..., 16, 16] = 1
    blurred = changed("gaussian-blur", 5, batch=point)
    assert blurred[0, 0, 16, 16] == pytest.approx(1 / (2 * np.pi), abs=0.001) and blurred.sum() == pytest.approx(3)
    twice = np.zeros((1, 3, 64, 64))
    twice[..., 32, 32] = 1
    assert changed("gaussian-blur", 5, batch=twice)[0, 0, 32, 32] == pytest.approx(1 / (8 * np.pi), abs=0.001)
    halves = np.concatenate([flat(0.2, 32), flat(0.6, 32)], axis=2)
    np.testing.assert_allclose(np.unique(changed("contrast", 5, batch=halves)), [0.37, 0.43])
    stripes = np.tile([0.0, 1.0], 16)[None, None, None, :] * np.ones((1, 3, 32, 1))
    cells = changed("pixelate", 5, batch=stripes)[0, 0]
    assert len(np.unique(cells[0], return_index=True)[0]) == 3 and set(np.round(np.unique(cells), 9)) == {0.0, 0.5, 1.0}


def test_a_channel_that_is_always_the_same_does_no_harm() -> None:
    images = Images(channels_last=False, low=np.zeros((3, 1, 1)), high=np.array([0.0, 1.0, 1.0])[:, None, None])
    batch = pictures()
    batch[:, 0] = 0
    assert np.isfinite(changed("gaussian-noise", 5, images=images, batch=batch)).all()


def edits(first: str, second: str) -> int:
    """Letters that were taken out, put in or replaced."""
    blocks = difflib.SequenceMatcher(None, first, second, autojunk=False).get_opcodes()
    return sum(max(b - a, d - c) for tag, a, b, c, d in blocks if tag != "equal")


@pytest.mark.parametrize("name", TEXTS)
class TestTexts:
    def test_words_stay_words_in_their_order(self, name: str) -> None:
        (found,) = mistype(name, [WORDS], np.array([0]), 5, 0)
        assert len(found.split()) == len(WORDS.split()) and "," in found and "'" in found

    def test_severity_0_is_the_identity(self, name: str) -> None:
        assert mistype(name, [WORDS, ""], np.arange(2), 0, 0) == [WORDS, ""]

    def test_more_severe_changes_more_words_and_keeps_the_changes(self, name: str) -> None:
        texts = [WORDS] * 20
        every = [mistype(name, texts, np.arange(20), severity, 0) for severity in range(6)]
        words = [[word for text in each for word in text.split()] for each in every]
        differ = [
            {i for i, pair in enumerate(zip(words[0], each, strict=True)) if pair[0] != pair[1]} for each in words
        ]
        assert all(first < second for first, second in itertools.pairwise(differ))
        assert all(words[3][i] == words[5][i] for i in differ[3])

    def test_seeded_and_independent_of_the_batch(self, name: str) -> None:
        both = mistype(name, [WORDS, WORDS], np.arange(2), 5, 0)
        assert both == mistype(name, [WORDS, WORDS], np.arange(2), 5, 0)
        assert both[0] != both[1] and mistype(name, [WORDS], np.array([1]), 5, 0) == both[1:]
        assert mistype(name, [WORDS], np.array([1]), 5, 1) != both[1:]

    def test_what_cannot_be_changed_stays(self, name: str) -> None:
        assert mistype(name, ["", "a I", "12 !?", "日本 語"], np.arange(4), 5, 0) == ["", "a I", "12 !?", "日本 語"]


@pytest.mark.parametrize(
    ("name", "word", "sizes"),
    [("swapped-letters", "animals", (7,)), ("missing-letters", "animals", (6,)), ("wrong-letters", "Animals", (7,))],
)
def test_one_mistake_in_a_word(name: str, word: str, sizes: tuple[int, ...]) -> None:
    for seed in range(20):
        found = TYPOS[name].function(word, np.random.default_rng(seed))
        assert len(found) in sizes and found != word
        if name == "swapped-letters":
            assert sorted(found) == sorted(word) and (found[0], found[-1]) == (word[0], word[-1])
        else:
            assert edits(word, found) == 1
        if name == "wrong-letters":
            (place,) = (i for i in range(7) if found[i] != word[i])
            assert found[place].isupper() == word[place].isupper()
            rows = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
            row = next(row for row in rows if word[place].lower() in row)
            assert abs(row.index(found[place].lower()) - row.index(word[place].lower())) == 1
