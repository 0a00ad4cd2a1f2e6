"""INT8 by edgesmith and by other toolkits, side by side: ``python benches/peers/int8.py [FOLDER]``.

One table of models and quantizers: accuracy on the same test samples (paired with the float model), latency (paired, in
the same processes), file size, and what quantizing took. Everything a cell needs is made when it is not there: models
are trained or fetched, files quantized in processes of their own, judged and timed. A finished cell is never made
twice, so that a killed run goes on with the same command.

`pip install -e ".[peers]"` brings the other toolkits, but for NVIDIA's: it pins an older ONNX Runtime. Put it into an
environment of its own and name that: ``--python model-optimizer=PATH/bin/python``. A toolkit that is not there is a
hole in the table.
"""

import argparse
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from edgesmith.benches.peers.int8_parts import profile, quality, quantizing, table, timing
from edgesmith.benches.peers.int8_parts.cells import Cell
from edgesmith.benches.peers.int8_parts.models import MODELS, Model
from edgesmith.benches.peers.int8_parts.peers import PEERS, Peer
from edgesmith.benches.timing import environment
from edgesmith.compressor.commands import argument_types
from edgesmith.core.errors import EdgesmithError
from edgesmith.core.files import locked, remove_partial, write_atomic
from edgesmith.core.tables import unknown

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the table and print it; `table.md` in the folder holds it too."""
    options = _options(arguments)
    options.folder = options.folder.resolve()  # tools run in folders of their own
    models = [_chosen(name, {model.name: model for model in MODELS}, "--models") for name in options.models]
    peers = [_chosen(name, {peer.name: peer for peer in PEERS}, "--peers") for name in options.peers]
    pythons = dict(entry.split("=", 1) for entry in options.python)
    with locked(options.folder):
        remove_partial(options.folder)
        models = [model for model in models if _there(options.folder, model)]
        usable = {model: _files(options.folder, model, peers, pythons) for model in models}
        if not options.no_timing:
            for threads in timing.THREADS:
                for model, files in usable.items():
                    for batch in model.batches:
                        if any(peer.threads in (None, threads) for peer in files):
                            timing.timed(options.folder, model, files, batch, threads)
            for model, files in usable.items():
                for peer in files:
                    if peer.name == "edgesmith":
                        path = quantizing.path_of(options.folder, model, peer)
                        for batch in model.batches:
                            profile.profiled(options.folder, model, path, batch)
        found = table.write(options.folder, models, peers)
        write_atomic(options.folder / "table.md", f"{_machine()}\n\n{found}")
    print(found)


def _there(folder: Path, model: Model) -> bool:
    """Whether a model could be made here; else the table goes without it, and why is said."""
    try:
        model.folder(folder)
    except (ImportError, EdgesmithError, subprocess.CalledProcessError) as error:
        print(f"{model.name}: cannot be made here: {error}", flush=True)
        return False
    return True


def _files(folder: Path, model: Model, peers: Sequence[Peer], pythons: dict[str, str]) -> dict[Peer, Cell]:
    """Quantize and judge; which peers gave a file that runs."""
    found = {}
    for peer in peers:
        cell = quantizing.quantized(folder, model, peer, pythons)
        if cell["status"] == "written" and quality.judged(folder, model, peer, cell)["status"] == "ran":
            found[peer] = cell
    return found


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {"models": [model.name for model in MODELS], "peers": [peer.name for peer in PEERS]}
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/int8-peers"), help="keeps everything")
    for name, known in names.items():
        parser.add_argument(f"--{name}", type=argument_types.names, default=known, metavar="A,B", help=", ".join(known))
    parser.add_argument("--python", action="append", default=[], metavar="TOOL=PYTHON", help="interpreter of a toolkit")
    parser.add_argument("--no-timing", action="store_true", help="quantize and judge only, as on a busy machine")
    return parser.parse_args(arguments)


def _chosen(name: str, known: dict[str, T], where: str) -> T:
    if name not in known:
        raise unknown(name, known, where)
    return known[name]


def _machine() -> str:
    found = environment.describe(threads=1, seed=0)
    return "\n".join(f"{name}: {value}" for name, value in found.items())


if __name__ == "__main__":
    main()
