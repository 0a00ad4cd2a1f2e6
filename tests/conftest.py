"""What all tests share: real images, one thread, fixed seeds, and the rule that a skipped test is a failure.

A test may be skipped for one reason only, that the machine has no CUDA device; any other skip would let a green run
hide a test that never ran.
"""

import functools
import os

# Before anything imports torch or numpy: small machines share their cores with timing tests; one thread is steadier.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

SEED = 20260611
NO_CUDA = "no CUDA device"

_forbidden_skips: list[tuple[str, str]] = []


@pytest.fixture(scope="session")
def fashion_slice() -> dict[str, np.ndarray]:
    """512 real Fashion-MNIST test images, balanced over the classes; read-only.

    `images` uint8 `(512, 28, 28)`, `labels` uint8 `(512,)`, `index` int32 `(512,)`; see tests/data/README.md.
    """
    with np.load(Path(__file__).parent / "data" / "fashion_mnist_512.npz", allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


@pytest.fixture(autouse=True)
def operators_listed_once() -> None:
    """onnxscript reads the source of its 500 operators anew for every export, a third of what a small one takes.

    Only that list is kept; torch's registry, which other libraries add to, is made for each export as it always is.
    """
    apis = [module for name, module in sys.modules.items() if name.startswith("onnxscript._framework_apis.torch_")]
    for module in apis:
        if not hasattr(module.get_torchlib_ops, "cache_info"):
            module.get_torchlib_ops = functools.cache(module.get_torchlib_ops)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, whatever ran before it; torch is not loaded for that."""
    random.seed(SEED)
    np.random.seed(SEED)  # for libraries that draw from the global state; own code uses generators
    if torch := sys.modules.get("torch"):
        torch.manual_seed(SEED)


def pytest_configure() -> None:
    _forbidden_skips.clear()
    # A shell starts what is put in the background with SIGINT ignored, and children inherit that: tests that interrupt
    # a child would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no GPU; torch is asked only when there is such a test."""
    _begin_with_the_finished_run(items)
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items or _cuda_available():
        return
    for item in gpu_items:
        item.add_marker(pytest.mark.skip(reason=NO_CUDA))


def _begin_with_the_finished_run(items: list[pytest.Item]) -> None:
    """One process makes the run that tests/cli looks at while the others do what needs none, and nobody waits for it."""
    first = next((item.path for item in items if "finished_once" in getattr(item, "fixturenames", ())), None)
    items.sort(key=lambda item: item.path != first)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note_skip(report)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _forbidden_skips and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _forbidden_skips:
        return
    terminalreporter.section("FAILED: skipped tests", red=True, bold=True)
    for where, reason in _forbidden_skips:
        terminalreporter.line(f"{where}: skipped: {reason}", red=True)
    terminalreporter.line(
        f"A skip fails the run unless its reason is exactly '{NO_CUDA}': install what the test needs, or mark it 'gpu'.",
        red=True,
    )


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if reason != NO_CUDA:
        _forbidden_skips.append((report.nodeid, reason))


def _cuda_available() -> bool:
    import torch

    return torch.cuda.is_available()
