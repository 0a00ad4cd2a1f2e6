"""One quantizer on one model, in a process of its own: ``python tools.py JOB.json``.

Imports the standard library, numpy and what the quantizer needs; edgesmith only where it is the quantizer or knows the
torch module: a quantizer may live in an environment that has nothing else.

The job: `tool` (a key of `TOOLS`), `settings` (of that tool), `model` (float ONNX file), `samples` (.npz with one array
per input, samples on axis 0), `batch` (rows per calibration run), `out` (where the file goes), `result` (where the
outcome goes, as JSON), `memory_limit` (bytes of address space) and what single tools need besides.
"""

import ctypes
import json
import math
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Job = dict[str, Any]


def ort_static(job: Job) -> None:
    """Settings: `prepare` (ONNX Runtime's pre-processing first), `activations`, `calibrate`, and its own keywords."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # a class without types
        def __init__(self) -> None:
            self._feeds = _feeds(job)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    settings = dict(job["settings"])
    source = _prepared(job) if settings.pop("prepare", False) else job["model"]
    quantization.quantize_static(
        source,
        job["out"],
        Reader(),
        activation_type=quantization.QuantType[settings.pop("activations", "QInt8")],
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod[settings.pop("calibrate", "MinMax")],
        **settings,
    )


def ort_dynamic(job: Job) -> None:
    """ONNX Runtime's `quantize_dynamic`: weights only, activations while it runs."""
    from onnxruntime import quantization

    quantization.quantize_dynamic(
        _prepared(job), job["out"], weight_type=quantization.QuantType.QInt8, **job["settings"]
    )


def _prepared(job: Job) -> str:
    """The model after `quant_pre_process`, without symbolic shapes where it asks for that itself."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = f"{job['out']}.prepared"
    try:
        quant_pre_process(job["model"], path)
    except Exception:  # it raises Exception itself, with that advice in its text
        quant_pre_process(job["model"], path, skip_symbolic_shape=True)
    return path


def nncf_onnx(job: Job) -> None:
    """NNCF on the ONNX graph; settings: `preset`, `transformer`."""
    import onnx

    quantized = _nncf(job, onnx.load(job["model"]))
    onnx.save(quantized, job["out"])


def nncf_openvino(job: Job) -> None:
    """OpenVINO's own way: NNCF on its intermediate representation, `out` being the .xml; without samples: as float."""
    import openvino

    model = openvino.convert_model(job["model"])
    if not job["settings"].get("float"):
        model = _nncf(job, model)
    openvino.save_model(model, job["out"])


def _nncf(job: Job, model: Any) -> Any:
    import nncf

    settings = job["settings"]
    feeds = list(_feeds(job, batch=1))
    return nncf.quantize(
        model,
        nncf.Dataset(feeds),
        preset=nncf.QuantizationPreset[settings.get("preset", "PERFORMANCE")],
        subset_size=len(feeds),
        model_type=nncf.ModelType.TRANSFORMER if job["transformer"] else None,
    )


def model_optimizer(job: Job) -> None:
    """NVIDIA Model Optimizer; settings are keywords of its `quantize`. It calibrates on the CPU here."""
    from modelopt.onnx.quantization import quantize

    with np.load(job["samples"], allow_pickle=False) as stored:
        samples = dict(stored)
    quantize(job["model"], calibration_data=samples, calibration_eps=["cpu"], output_path=job["out"], **job["settings"])


def neural_compressor(job: Job) -> None:
    """Intel Neural Compressor on the torch module, its default static quantization, written to ONNX by torch.

    `convert(fold_quantize=True)` is ignored by it, so that weights are folded to integers as torchao does it.
    """
    if job["module"] is None:
        raise NotApplicable("needs a torch module, and this model is an ONNX file")
    os.environ.setdefault("LOGLEVEL", "ERROR")
    os.environ.setdefault("HABANA_LOGS", os.path.dirname(job["out"]))
    import torch
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import StaticQuantConfig, convert, prepare
    from torchao.quantization.pt2e.constant_fold import constant_fold
    from torchao.quantization.pt2e.quantize_pt2e import _quant_node_constraint

    from edgesmith.benches.peers.int8_parts.models import torch_module

    module = torch_module(job["module"], Path(job["folder"]))
    feeds = [tuple(torch.from_numpy(array) for array in feed.values()) for feed in _feeds(job)]
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        traced = export(module, feeds[0], dynamic_shapes=tuple({0: batch} for _ in feeds[0]))
        prepared = prepare(traced, StaticQuantConfig(**job["settings"]))
        for feed in feeds:
            prepared(*feed)
        quantized = convert(prepared)
        constant_fold(quantized, _quant_node_constraint)
        torch.onnx.export(
            quantized,
            feeds[0],
            job["out"],
            input_names=list(next(_feeds(job))),
            output_names=["output"],
            dynamic_shapes=tuple({0: batch} for _ in feeds[0]),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def edgesmith(job: Job) -> None:
    """`edgesmith quantize`; settings are its options."""
    from edgesmith.cli import main

    os.environ["PEERS_MODEL"] = job["folder"]  # where the task finds its arrays
    options = [part for name, value in job["settings"].items() for part in (f"--{name}", str(value))]
    main(["quantize", job["model"], "--data", job["data"], "--out", job["out"], "--json", *options])
    if not Path(job["out"]).exists():
        raise Refused("no file")


TOOLS: dict[str, Callable[[Job], None]] = {
    "onnxruntime static": ort_static,
    "onnxruntime dynamic": ort_dynamic,
    "nncf": nncf_onnx,
    "openvino": nncf_openvino,
    "model-optimizer": model_optimizer,
    "neural-compressor": neural_compressor,
    "edgesmith": edgesmith,
}


class NotApplicable(Exception):
    """The quantizer does not take such a model."""


class Refused(Exception):
    """The quantizer made no file, and said why."""


def _feeds(job: Job, batch: int | None = None) -> Iterator[dict[str, np.ndarray]]:
    with np.load(job["samples"], allow_pickle=False) as stored:
        arrays = dict(stored)
    size = batch or job["batch"]
    count = len(next(iter(arrays.values())))
    for index in range(math.ceil(count / size)):
        yield {name: array[index * size : (index + 1) * size] for name, array in arrays.items()}


def peak_bytes() -> int:
    """Largest resident memory of this process; unlike `ru_maxrss` it starts anew with the program (Linux)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM:")).split()[1]) * 1024


def _end_with_parent() -> None:
    """A killed bench must not leave its quantizer running beside the next one (Linux: prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main(job_path: str) -> None:
    """Run the job and write its outcome; what the tool prints goes where this process prints."""
    job = json.loads(Path(job_path).read_text())
    _end_with_parent()
    # One core for every tool, however many threads it starts; as many as its file is made for where that is chosen.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-job["settings"].get("threads", 1) :])
    resource.setrlimit(resource.RLIMIT_AS, (job["memory_limit"], job["memory_limit"]))
    outcome = {"status": "written", "reason": ""}
    try:
        TOOLS[job["tool"]](job)
    except ImportError as error:
        outcome = {"status": "missing", "reason": str(error)}
    except NotApplicable as error:
        outcome = {"status": "n/a", "reason": str(error)}
    except Refused as error:
        outcome = {"status": "refused", "reason": str(error)}
    except Exception as error:  # of the tool's: any kind; it is the finding
        line = next(iter(str(error).strip().splitlines()), "")
        outcome = {"status": "failed", "reason": f"{type(error).__name__}: {line}"[:300]}
    Path(job["result"]).write_text(json.dumps({**outcome, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main(sys.argv[1])
