"""A green run means that every test ran: the rule of conftest.py, tried on small runs of its own."""

from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"


@pytest.fixture
def small_run(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makeini("[pytest]\naddopts = -p no:hypothesispytest -p no:anyio\nmarkers = gpu: needs a CUDA device\n")
    return pytester


@pytest.mark.parametrize(
    "skip",
    [
        "@pytest.mark.skip(reason='flaky')\ndef test_one(): pass",
        "@pytest.mark.skip\ndef test_one(): pass",
        "def test_one(): pytest.skip('no CUDA device today')",
        "@pytest.mark.skipif(True, reason='slow')\ndef test_one(): pass",
        "@pytest.fixture\ndef model(): pytest.skip('not built')\ndef test_one(model): pass",
        "def test_one(): pytest.importorskip('no_such_module')",
        "pytest.importorskip('no_such_module')",
        "pytest.skip('whole file', allow_module_level=True)",
    ],
    ids=["mark", "no-reason", "nearly", "skipif", "fixture", "importorskip", "module-import", "module"],
)
def test_a_skip_fails_the_run(small_run: pytest.Pytester, skip: str) -> None:
    small_run.makepyfile(test_skipping=f"import pytest\n{skip}\n", test_other="def test_passes(): pass")
    result = small_run.runpytest()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["*FAILED: skipped tests*", "test_skipping.py*: skipped: *", "A skip fails the run unless*"]
    )


def test_the_reason_is_printed(small_run: pytest.Pytester) -> None:
    small_run.makepyfile(test_it="import pytest\n@pytest.mark.skip(reason='flaky on Mondays')\ndef test_one(): pass")
    result = small_run.runpytest()
    result.stdout.fnmatch_lines(["test_it.py::test_one: skipped: flaky on Mondays"])


def test_no_cuda_device_is_the_one_accepted_reason(small_run: pytest.Pytester) -> None:
    small_run.makepyfile("import pytest\ndef test_passes(): pass\ndef test_one(): pytest.skip('no CUDA device')")
    result = small_run.runpytest()
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=1, skipped=1)
    assert "skipped tests" not in result.stdout.str()


def test_marked_gpu_runs_exactly_where_there_is_a_device(small_run: pytest.Pytester) -> None:
    small_run.makepyfile(
        "import pytest, torch\n@pytest.mark.gpu\ndef test_one(): assert torch.ones(2, device='cuda').sum().item() == 2"
    )
    result = small_run.runpytest_subprocess("-rs")  # torch cannot be imported a second time into one process
    import torch

    assert result.ret == pytest.ExitCode.OK
    if torch.cuda.is_available():
        result.assert_outcomes(passed=1)
    else:
        result.stdout.fnmatch_lines(["SKIPPED*no CUDA device"])


def test_an_expected_failure_is_not_a_skip(small_run: pytest.Pytester) -> None:
    small_run.makepyfile("import pytest\n@pytest.mark.xfail(reason='known')\ndef test_one(): assert False")
    result = small_run.runpytest()
    assert result.ret == pytest.ExitCode.OK


def test_a_failing_run_keeps_its_own_exit_code(small_run: pytest.Pytester) -> None:
    small_run.makepyfile(
        "import pytest\ndef test_stop(): raise KeyboardInterrupt\n@pytest.mark.skip(reason='x')\ndef test_a(): pass"
    )
    assert small_run.runpytest_subprocess().ret == pytest.ExitCode.INTERRUPTED
