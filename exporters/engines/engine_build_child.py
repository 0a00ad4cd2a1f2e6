"""Builds one engine: ``python -m edgesmith.exporters.engines.engine_build_child JOB.json``.

A child of `engine_build.build`: a vendor's builder can crash the process it runs in, and holds the interpreter while it
works, so that only a process of its own can be stopped. One code path serves `tensorrt` and `tensorrt_rtx`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ...core.files import write_atomic

_MEBIBYTE = 1 << 20
_WATCH_SECONDS = 0.5


class Refused(Exception):
    """The tool said no. `facts` is what the parent makes an error of."""

    def __init__(self, step: str, **facts: Any) -> None:
        super().__init__(step)
        self.facts = {"step": step, **facts}


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Parse and build.

    Args:
        job: `module` to build with, `onnx`, `engine` (where to write), `profiles` (input -> three shapes), `quantized`,
            `half`, `workspace_mb`, `compute_capabilities`, `timing_cache` (path or None).

    Returns:
        `version`, `log` (lines of the tool from INFO up), `seconds`.

    Raises:
        Refused: a step failed.
    """
    trt = _vendor(job["module"])
    logger, started = _logger(trt), time.monotonic()
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # how its bindings say that the C++ side returned nothing
        raise Refused("builder", version=trt.__version__, log=logger.lines, message=str(error)) from error
    typed = strongly_typed(trt.__version__, job)
    network = builder.create_network(_network_flags(trt, typed))
    _parse(trt, builder, network, logger, job)
    config = _config(trt, builder, job, typed)
    _set_timing_cache(config, job["timing_cache"])
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise Refused("build", version=trt.__version__, log=logger.lines)
    Path(job["engine"]).write_bytes(bytes(data))
    _keep_timing_cache(config, job["timing_cache"])
    return {"version": trt.__version__, "log": logger.lines, "seconds": time.monotonic() - started}


def strongly_typed(version: str, job: dict[str, Any]) -> bool:
    """Whether types come from the graph alone: always, but for Q/DQ in TensorRT before 10.12, which wants an INT8 flag.

    The flag and strong typing exclude each other (NVIDIA's migration guide, 10.x to 11.x).
    """
    major, minor = (int(part) for part in version.split(".")[:2])
    return job["module"] != "tensorrt" or (major, minor) >= (10, 12) or not job["quantized"]


def _vendor(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken installation raises whatever its loader does
        raise Refused("import", message=f"{type(error).__name__}: {error}") from error


def _logger(trt: Any) -> Any:
    class Kept(trt.ILogger):  # type: ignore[misc]  # its base is only known here
        """Keeps what is said: the reason of a failed build stands nowhere else."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[str, str]] = []

        def log(self, severity: Any, message: str) -> None:
            if severity != trt.ILogger.VERBOSE:
                self.lines.append((severity.name, message))

    return Kept()


def _network_flags(trt: Any, typed: bool) -> int:
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 1 << int(flag) if typed and flag is not None else 0


def _parse(trt: Any, builder: Any, network: Any, logger: Any, job: dict[str, Any]) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(job["onnx"]):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    raise Refused(
        "parse",
        version=trt.__version__,
        log=logger.lines,
        errors=[
            {
                "code": error.code().name,
                "node": error.node_name(),
                "operator": error.node_operator(),
                "description": error.desc(),
            }
            for error in errors
        ],
        accepted=_accepted(trt, builder, logger, job["onnx"]),
    )


def _accepted(trt: Any, builder: Any, logger: Any, path: str) -> list[int] | None:
    """Indices of the nodes that pass the parser's own check; None: this version cannot tell."""
    network = builder.create_network(_network_flags(trt, True))  # held on to: the parser does not, and would crash
    parser = trt.OnnxParser(network, logger)
    if not hasattr(parser, "supports_model_v2"):
        return None
    parser.supports_model_v2(Path(path).read_bytes(), path)
    parts = [parser.get_subgraph_nodes(index) for index in range(parser.num_subgraphs)]
    return sorted({int(node) for part in parts for node in part})


def _config(trt: Any, builder: Any, job: dict[str, Any], typed: bool) -> Any:
    config = builder.create_builder_config()
    if job["profiles"]:
        profile = builder.create_optimization_profile()
        for name, shapes in job["profiles"].items():
            profile.set_shape(name, *map(tuple, shapes))
        config.add_optimization_profile(profile)
    if job["workspace_mb"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace_mb"] * _MEBIBYTE)
    if not typed:
        config.set_flag(trt.BuilderFlag.INT8)
        if job["half"]:
            config.set_flag(trt.BuilderFlag.FP16)
    if job["compute_capabilities"]:
        _set_capabilities(trt, config, job["compute_capabilities"])
    return config


def _set_capabilities(trt: Any, config: Any, wanted: list[str]) -> None:
    if not hasattr(config, "set_compute_capability"):
        raise Refused("compute capability", version=trt.__version__, unknown=wanted, known=[])
    known = {name: value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    names = {text: f"SM{text.replace('.', '')}" for text in wanted}
    unknown = [text for text, name in names.items() if name not in known]
    if unknown:
        listed = [f"{name[2:-1]}.{name[-1]}" for name in known]
        raise Refused("compute capability", version=trt.__version__, unknown=unknown, known=listed)
    config.num_compute_capabilities = len(wanted)
    for index, name in enumerate(names.values()):
        config.set_compute_capability(known[name], index)


def _set_timing_cache(config: Any, path: str | None) -> None:
    if path is None:
        return
    stored = Path(path).read_bytes() if Path(path).exists() else b""
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise Refused("timing cache", path=path)


def _keep_timing_cache(config: Any, path: str | None) -> None:
    cache = config.get_timing_cache() if path is not None else None
    stored = bytes(cache.serialize()) if cache is not None else b""
    if path is not None and stored:
        write_atomic(Path(path), stored)


def _end_with(parent: int) -> None:
    """A killed parent takes its build with it: nobody would get the engine."""
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


def main(job_path: str) -> None:
    """Run the job and write what came of it as JSON to the path that the job names."""
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    threading.Thread(target=_end_with, args=(job["parent"],), daemon=True).start()
    try:
        result = run_job(job)
    except Refused as refused:
        result = {"refused": refused.facts}
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
