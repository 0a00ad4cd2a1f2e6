"""Energy counters at their boundary: a powercap tree as the kernel lays it out, and a module with NVML's functions."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgesmith.benches.timing import energy, latency, nvml, throughput, throughput_loop, timing_loop
from edgesmith.core.errors import MeasurementError, VoidError

RANGE = 262_143_328_850


def powercap(root: Path, **zones: tuple[str, int]) -> Path:
    """Zones by their folder's name, `__` for a colon."""
    for folder, (name, energy_uj) in zones.items():
        zone = root / folder.replace("__", ":").replace("_", "-")
        zone.mkdir(parents=True)
        (zone / "name").write_text(f"{name}\n")
        (zone / "energy_uj").write_text(f"{energy_uj}\n")
        (zone / "max_energy_range_uj").write_text(f"{RANGE}\n")
    return root


def test_packages_are_added_up_each_once_and_a_counter_goes_round(tmp_path: Path) -> None:
    root = powercap(
        tmp_path / "powercap",
        intel_rapl__0=("package-0", 1_000_000),
        intel_rapl__0__0=("core", 5),
        intel_rapl__1=("package-1", RANGE - 1_000_000),
        intel_rapl__2=("psys", 7),
        intel_rapl_mmio__0=("package-0", 9),
    )
    rapl = energy.Rapl(root)
    assert rapl.joules() == 0.0
    (root / "intel-rapl:0/energy_uj").write_text("3500000\n")
    (root / "intel-rapl:1/energy_uj").write_text("500000\n")  # 1 J to the end of its range, and half a joule
    for ignored in ("intel-rapl:2", "intel-rapl-mmio:0", "intel-rapl:0:0"):
        (root / ignored / "energy_uj").write_text("90000000\n")
    assert rapl.joules() == pytest.approx(2.5 + 1.5)
    assert rapl.joules() == pytest.approx(4.0)


def test_why_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(root: Path) -> str:
        monkeypatch.setattr(energy, "POWERCAP", root)
        return energy.why_not(["onnxruntime-cpu", "edgesmith.compressor.torch_run:open_eager"])

    absent = tmp_path / "none"
    assert said(absent) == f"no energy counter: {absent} is not there (a virtual machine, or no RAPL)"
    bare = powercap(tmp_path / "bare", dtpm__0=("dtpm", 0))
    assert said(bare) == f"no energy counter: {bare} has no CPU package"
    good = powercap(tmp_path / "good", intel_rapl__0=("package-0", 1))
    assert said(good) == ""
    assert energy.why_not(["onnxruntime-cpu", "tensorrt"]) == "no energy counter is of CPU and GPU sessions alike"

    def refused(self: Path) -> str:
        raise PermissionError(13, "Permission denied", str(self))

    file = good / "intel-rapl:0/energy_uj"
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: refused(self) if self == file else read(self, *a, **k))
    assert said(good) == (
        f"no energy counter: {file} may be read by root alone; run as root, or once: sudo chmod a+r {good}/*/energy_uj"
    )


class Spy:
    """A session whose every call of 2 samples uses so many microjoules."""

    def __init__(self, path: str, file: Path) -> None:
        self.file, self.microjoules = file, {"a": 4_000, "b": 1_000, "still": 0}[path]

    def bind(self, feed: Mapping[str, np.ndarray]) -> Callable[[], None]:
        def run() -> None:
            self.file.write_text(str(int(self.file.read_text()) + self.microjoules))

        return run

    def close(self) -> None: ...


@pytest.mark.parametrize(("last", "reason"), [("b", ""), ("still", "the energy counter stood still")])
def test_joules_of_a_sample(last: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 mJ against 1 mJ for a call of 2 samples, to the digit: what a window used is shared by the calls in it."""
    root = powercap(tmp_path / "powercap", intel_rapl__0=("package-0", 0))
    monkeypatch.setattr(energy, "POWERCAP", root)
    monkeypatch.setitem(energy.SHORTEST_MS, "cpu", 1.0)
    monkeypatch.setitem(timing_loop.SESSIONS, "spy", lambda path, threads: Spy(path, root / "intel-rapl:0/energy_uj"))
    np.savez(tmp_path / "feeds.npz", **{"2.0.0": np.zeros(2)})

    def restarted(program: str, files: Any, feeds: Any, threads: int, **given: Any) -> list[dict[str, np.ndarray]]:
        assert program == "throughput_loop"
        job = {"files": files, "targets": ["spy", "spy"], "threads": threads, "seconds": 0.0, "parent": os.getppid()}
        job |= {"inputs": ["x"], "batches": [{"batch": 2, "feeds": 1}], "feeds": str(tmp_path / "feeds.npz")}
        job |= {"concurrency": given["concurrency"], "energy": given["energy"]}
        return [throughput_loop.run_job({**job, "seed": seed}) for seed in range(5)]

    monkeypatch.setattr(throughput.latency, "restarted", restarted)
    monkeypatch.setattr(throughput, "kinds_of", lambda files: ["spy"] * len(files))
    (found,) = throughput.compare(["a", last], {2: {}}, [1])  # type: ignore[list-item]
    assert found.energy_reason == reason
    if reason:
        assert (found.joules, found.savings) == ((), ())
        return
    assert [one.value for one in found.joules] == pytest.approx([0.002, 0.0005])
    (saving,) = found.savings
    assert (saving.value, saving.low, saving.high) == pytest.approx((4.0, 4.0, 4.0))


class NVMLError(Exception): ...


def fake_nvml(**changes: Any) -> Any:
    """NVML's functions for two GPUs, the second of them warm."""

    def refused(*_: Any) -> None:
        raise NVMLError("Not Supported")

    module = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-b": 1}[uuid],
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: [12_500, 7_000][handle],
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=[300, 900][handle]),
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: [0x5, 0x64][handle],
        refused=refused,
    )
    for name, value in changes.items():
        setattr(module, name, refused if value == "refused" else value)
    return module


def test_a_gpu_says_what_it_used_and_what_slows_it_down() -> None:
    first, second = nvml.Gpu(fake_nvml(), visible=""), nvml.Gpu(fake_nvml(), visible="1,0")
    assert (first.joules(), second.joules(), nvml.Gpu(fake_nvml(), visible="GPU-b").joules()) == (12.5, 7.0, 7.0)
    assert (first.memory_bytes(), second.memory_bytes()) == (300, 900)
    assert first.slowdowns() == 0  # idle and capped by its power mode
    assert nvml.named(second.slowdowns()) == "software thermal slowdown, hardware thermal slowdown"
    newer = fake_nvml(nvmlDeviceGetCurrentClocksEventReasons=lambda handle: 0x88)
    assert nvml.named(nvml.Gpu(newer, visible="").slowdowns()) == "hardware slowdown, power brake"


def test_a_gpu_that_does_not_say() -> None:
    with pytest.raises(MeasurementError, match=r"^NVML does not start: Not Supported$"):
        nvml.Gpu(fake_nvml(nvmlInit="refused"), visible="")
    silent = {"nvmlDeviceGetTotalEnergyConsumption": "refused", "nvmlDeviceGetCurrentClocksThrottleReasons": "refused"}
    gpu = nvml.Gpu(fake_nvml(**silent), visible="")
    with pytest.raises(MeasurementError, match=r"^the GPU has no energy counter: Not Supported$"):
        gpu.joules()
    with pytest.raises(MeasurementError, match=r"^the GPU does not say whether it is slowed down: Not Supported$"):
        gpu.slowdowns()


def test_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy.why_not(["tensorrt"]) == (
        "no energy counter: nvidia-ml-py is not installed: pip install nvidia-ml-py"
    )


def test_what_is_seen_while_it_measures_stays_seen() -> None:
    said = iter([0, 0, 0x40, 0])  # asked once when it begins
    watch = nvml.Watch(["tensorrt"], fake_nvml(nvmlDeviceGetCurrentClocksEventReasons=lambda handle: next(said)))
    seen = []
    for _ in range(3):
        watch.look()
        seen.append(watch.seen)
    assert seen == [0, 0x40, 0x40]
    assert {name: value.item() for name, value in watch.results().items()} == {"slowdowns": 0x40, "clocks": "watched"}


def test_a_cpu_needs_no_watch_and_a_gpu_without_one_says_so() -> None:
    assert nvml.Watch(["onnxruntime-cpu"]).results()["clocks"].item() == ""
    unwatched = nvml.Watch(["onnxruntime-cuda"], fake_nvml(nvmlInit="refused"))
    unwatched.look()
    assert unwatched.results()["clocks"].item() == "not watched: NVML does not start: Not Supported"


@pytest.mark.parametrize("warm", [2, 5])
def test_a_run_of_a_slowed_gpu_is_void_and_done_again(warm: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five restarts are wanted: with two void ones seven are done, and five void ones are a refusal."""
    started = 0

    def run(program: str, job: dict[str, Any], folder: Path, threads: int, timeout: float) -> str:
        nonlocal started
        started += 1
        times = np.full(4, 9.0 if started <= warm else 1.0)  # what a slowed GPU would have said
        results: dict[str, Any] = {f"latency.1.{index}": times for index in range(3)}
        results |= {"quads.1.1": np.zeros(4), "quads.1.2": np.zeros(4)}
        np.savez(job["result"], slowdowns=0x60 * (started <= warm), clocks="watched", **results)
        return ""

    monkeypatch.setattr(latency.child, "run", run)

    def compare() -> latency.PairedLatency:
        (found,) = latency.compare([Path("a.onnx")] * 2, {1: {"x": np.zeros((1, 1))}})
        return found

    if warm == 5:
        with pytest.raises(VoidError) as caught:
            compare()
        assert str(caught.value) == (
            "the GPU was slowed down (software thermal slowdown, hardware thermal slowdown) in 5 of 5 runs, which says "
            "nothing of the models, so that nothing is proven; cool it, or lock clocks that it can keep (nvidia-smi "
            "--lock-gpu-clocks=MIN,MAX), and run the same command again"
        )
        assert caught.value.exit_code == 4
        assert started == 5
        return
    found = compare()
    assert (started, found.restarts, found.latency[0].calls, found.clocks) == (7, 5, 20, "watched")
    assert found.latency[0].quantiles[-1] == (1.0, 1.0)  # nothing of the void runs is in it
