"""The description of the machine, without importing what it describes."""

import json
import os
import platform
import subprocess
import sys
from importlib import metadata

from edgesmith.benches.timing.environment import describe


def test_it_names_what_decides_a_measurement() -> None:
    found = describe(threads=2, seed=7)
    assert (found["threads"], found["seed"]) == (2, 7)
    assert found["python"] == platform.python_version()
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["onnxruntime"] == metadata.version("onnxruntime")
    assert found["torch_pruning"] == metadata.version("torch-pruning")
    assert found["cpu"] not in ("", "unknown")
    assert json.loads(json.dumps(found)) == found


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; from edgesmith.benches.timing.environment import describe; describe(1, 0);"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
