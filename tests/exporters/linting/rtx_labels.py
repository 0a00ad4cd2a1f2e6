"""What TensorRT for RTX says of ONNX files: ``python rtx_labels.py build|parse LABELS.jsonl FILE.onnx ...``.

Two lines of JSON a file: that it is tried, so that a process that dies has named its killer, and where it ended: "parse"
(the parser refuses it), "build" (the builder does) or "engine", which is built or, with "parse", only parsed. No GPU is needed; engines are for one kind of GPU, SM86.
"""

import json
import sys
from pathlib import Path
from typing import Any


def ends_at(trt: Any, logger: Any, path: Path, build: bool) -> str:
    """The step at which it ended."""
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path.read_bytes()):
        return "parse"
    if not build:
        return "engine"
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    return "build" if builder.build_serialized_network(network, config) is None else "engine"


def main(mode: str, out: Path, files: list[Path]) -> None:
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    with out.open("a") as lines:
        for path in files:
            print(json.dumps({"file": path.stem, "step": "crash"}), file=lines, flush=True)
            print(
                json.dumps({"file": path.stem, "step": ends_at(trt, logger, path, mode == "build")}),
                file=lines,
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
