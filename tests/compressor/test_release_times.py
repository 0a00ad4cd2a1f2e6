"""Which batch size speaks for a file that was timed beside the last release's."""

from edgesmith.benches.timing.latency import Latency, PairedLatency
from edgesmith.compressor.release_times import _changes
from edgesmith.core.values import Interval


def paired(batch: int, low: float, value: float, high: float) -> PairedLatency:
    one = Latency(p50=1.0, p90=1.0, p99=1.0, low=1.0, high=1.0)
    return PairedLatency(
        batch=batch,
        threads=1,
        restarts=5,
        latency=(one, one),
        speedup=(Interval(value=value, low=low, high=high),),
        noise_floor=0.01,
    )


def test_the_batch_size_whose_status_is_worst_decides() -> None:
    """Batch 1 is 4 % slower for certain, which 5 % allow; batch 32 may be 100 % slower."""
    found = dict(
        _changes([paired(1, 0.96, 0.96, 0.96), paired(32, 0.5, 0.98, 1.5)], {"speedup": 0.05, "latency_ms": 0.05})
    )
    change, note = found["speedup"]
    assert change is not None and change.high == 1.0
    assert note == "batch 32, the worst of 1, 32; both files timed side by side, noise floor 1.0%"
    assert found["latency_ms"][1] == "batch 1; both files timed side by side, noise floor 1.0%"
