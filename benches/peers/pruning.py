"""Pruning by edgesmith and by other ways, side by side: ``python benches/peers/pruning.py [FOLDER]``.

Every way prunes the same trained network to several levels; what is left is trained for the same epochs, exported and
quantized to INT8 by the same stages; all files are judged on the same test images and timed in the same processes.
Torch-Pruning prunes to MACs, at the rounding whose file is fastest; HALP to its own table of INT8 layers;
edgesmith to the measured time of the deployed file, taught by the original, and for comparison on labels alone. A
finished run is never made twice, so that a killed one goes on with the same command.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from edgesmith.benches.peers.pruning_parts import runs, table
from edgesmith.benches.peers.pruning_parts.ways import NETS, WAYS
from edgesmith.benches.timing import environment
from edgesmith.core.files import write_atomic


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the table and print it; `table.md` in the folder holds it too."""
    names, ways = [net.name for net in NETS], [way.name for way in WAYS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/pruning-peers"), help="keeps everything")
    parser.add_argument("--nets", nargs="+", choices=names, default=names, metavar="NET", help=", ".join(names))
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways, metavar="WAY", help=", ".join(ways))
    parser.add_argument("--levels", nargs="+", type=float, metavar="SHARE", help="of these ways, in place of their own")
    parser.add_argument("--epochs", type=int, metavar="N", help="in place of each network's own")
    parser.add_argument("--seeds", type=int, metavar="N", help="at most so many")
    parser.add_argument("--no-timing", action="store_true", help="train only, as on a busy machine")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    parts = [f"{name}: {value}" for name, value in environment.describe(threads=1, seed=0).items()]
    for net in (net for net in NETS if net.name in options.nets):
        epochs = options.epochs or net.epochs
        rows = [
            table.Row(way=way.name, level=level, seed=seed, run=run)
            for seed in net.seeds[: options.seeds]
            for way in WAYS
            if way.name in options.ways
            for level in options.levels or way.levels
            if (run := runs.trained(folder, net, way, level, seed, epochs)) is not None
        ]
        if rows and not options.no_timing:
            first = [row for row in rows if row.seed == net.seeds[0]]
            times = {batch: table.timed(folder, net, first, batch) for batch in table.BATCHES}
            parts += ["", table.write(folder, net, epochs, rows, times)]
            write_atomic(folder / "table.md", "\n".join(parts))
    print("\n".join(parts))


if __name__ == "__main__":
    main()
