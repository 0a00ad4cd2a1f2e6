"""What a quantized file leaves open, found on calibration data; and what became of what it says, for the ledger."""

from collections.abc import Sequence

from ...core.values import QuantParams
from ...exporters.int8 import qdq
from ...exporters.int8.qdq_read import Read
from ...exporters.sessions import taps
from ..data import calibration_split, feeds, sample_indices
from ..stage import Context

_BATCH = 32


def all_params(read: Read, samples: int, context: Context) -> dict[str, QuantParams]:
    """The parameters that were read, and those of the activations that the file leaves open, by their range.

    What was added, and what could not be taken over, goes to `context.notes`.

    Args:
        samples: of the calibration split that the float graph runs on.
    """
    params = dict(read.params)
    if read.unseen:
        # On the CPU, where every export is checked too: a few tensors are not worth another build of ONNX Runtime.
        split = context.task.split(calibration_split(context.task), context.where)
        indices = sample_indices(split, samples)
        found = taps.observe(read.model, feeds(split, indices, _BATCH), read.unseen)
        params |= {name: qdq.activation_params(seen.low, seen.high, "min-max") for name, seen in found.items()}
        context.notes.append(f"ranges found on {len(indices)} samples afterwards: {_listed(read.unseen)}")
    if read.guessed:
        context.notes.append(f"weights that were not quantized before, rounded as they are: {_listed(read.guessed)}")
    if read.unused:
        context.notes.append(f"quantized before, in float now: {_listed(read.unused)}")
    return params


def _listed(names: Sequence[str]) -> str:
    more = "" if len(names) <= 8 else f" and {len(names) - 8} more"
    return ", ".join(names[:8]) + more
