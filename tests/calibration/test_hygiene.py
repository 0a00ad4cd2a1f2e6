"""What calibration data is refused for, in the exact words."""

import numpy as np
import pytest

from edgesmith.calibration.hygiene import check_overlap, check_samples
from edgesmith.core import digest
from edgesmith.core.errors import DataError, ExitCode


def batches(count: int = 3, size: int = 4) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {"image": rng.standard_normal((size, 2, 3)).astype(np.float32), "mask": np.ones((size, 5), np.int64)}
        for _ in range(count)
    ]


def refusal(data: list[dict[str, np.ndarray]]) -> str:
    with pytest.raises(DataError) as caught:
        check_samples(data)
    assert caught.value.exit_code == ExitCode.USAGE
    return str(caught.value)


def test_counts_samples_and_reads_a_stream_once() -> None:
    assert check_samples(iter(batches(3, 4))) == 12
    assert check_samples([*batches(2, 4), {name: array[:1] for name, array in batches(1)[0].items()}]) == 9


@pytest.mark.parametrize("data", [[], [{}], [{"image": np.zeros((0, 2, 3), np.float32)}]])
def test_no_samples(data: list[dict[str, np.ndarray]]) -> None:
    assert refusal(data) == "calibration data: no samples; give some that look like what the model will see"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_names_input_and_sample(bad: float) -> None:
    data = batches()
    data[1]["image"][2, 1, 0] = bad
    data[2]["image"][0, 0, 0] = bad
    assert refusal(data) == ("calibration data: input 'image' holds NaN or infinity, first in sample 6; clean the data")


def test_a_constant_input_names_it_and_its_value() -> None:
    data = batches()
    for batch in data:
        batch["image"][:] = 0.5
    assert refusal(data) == (
        "calibration data: input 'image' is 0.5 everywhere in all 12 samples; no range can be found from it: give "
        "samples that look like what the model will see"
    )


def test_constant_in_each_batch_but_not_over_all_is_fine() -> None:
    data = batches(2)
    data[0]["image"][:], data[1]["image"][:] = 0.0, 1.0
    assert check_samples(data) == 8


def test_an_input_of_one_number_per_sample_may_not_be_constant_either() -> None:
    assert "input 'age' is 3 everywhere in all 2 samples" in refusal([{"age": np.full(2, 3.0)}])


def test_overlap_names_how_many_and_the_first_pair() -> None:
    images = np.arange(40, dtype=np.float32).reshape(10, 4)
    test = digest.of_samples({"image": images[6:]})
    assert check_overlap(digest.of_samples({"image": images[:6]}), test) is None
    with pytest.raises(DataError) as caught:
        check_overlap(digest.of_samples({"image": images[[0, 8, 1, 7, 8]]}), test)
    assert str(caught.value) == (
        "calibration data: 3 of 5 samples are also in the test split (first: calibration sample 1 = test sample 2); "
        "the verdict would be measured on data the ranges were fitted to: take them out of one of the two"
    )


def test_overlap_means_equal_inputs_and_nothing_less() -> None:
    image = np.zeros((1, 4), np.float32)
    other = image.copy()
    other[0, 3] = np.finfo(np.float32).tiny
    check_overlap(digest.of_samples({"image": image}), digest.of_samples({"image": other}))
    check_overlap(digest.of_samples({"image": image}), digest.of_samples({"image": image.astype(np.float64)}))


def test_a_test_split_with_repeats_reports_its_first() -> None:
    with pytest.raises(DataError, match=r"1 of 2 samples .* calibration sample 1 = test sample 0\)"):
        check_overlap(["c", "a"], ["a", "b", "a"])


def test_real_images_pass_and_are_counted(fashion_slice: dict[str, np.ndarray]) -> None:
    images = fashion_slice["images"].astype(np.float32) / 255
    assert check_samples({"image": part} for part in np.array_split(images, 5)) == 512
    check_overlap(digest.of_samples({"image": images[:256]}), digest.of_samples({"image": images[256:]}))
