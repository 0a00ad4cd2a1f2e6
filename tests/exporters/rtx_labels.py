"""What TensorRT for RTX says of ONNX files: ``python rtx_labels.py LABELS.jsonl FILE.onnx ...``, a child of the tests.

Two lines of JSON a file: that it is tried, so that a process that dies has named its killer, and where it ended: "parse"
(the parser refuses it), "build" (the builder does) or "engine". No GPU is needed; engines are for one kind of GPU, SM86.
"""

import json
import sys
from pathlib import Path
from typing import Any


def ends_at(trt: Any, logger: Any, path: Path) -> str:
    """The step at which it ended."""
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path.read_bytes()):
        return "parse"
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    return "build" if builder.build_serialized_network(network, config) is None else "engine"


def main(out: Path, files: list[Path]) -> None:
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    with out.open("a") as lines:
        for path in files:
            print(json.dumps({"file": path.stem, "step": "crash"}), file=lines, flush=True)
            print(json.dumps({"file": path.stem, "step": ends_at(trt, logger, path)}), file=lines, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
