"""What one rank makes, says, opens, writes, reads and holds on thousands of ranks: the real code, and no other rank.

    PYTHONPATH=.:kernels:data_prep python -m benchmarks.scale configs/lst-7b.yaml --ranks 8 64 512 4096 16384 [--json]

The trainer itself runs (`megatron_lst.simulation`): groups are made under PyTorch's fake process group, tensors live on
the meta device, rows are those of a small set of random text. A file of a checkpoint has its size as a hole. For each
size the first rank of each pipeline stage is looked at, and the last rank; the table has the worst of them.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from megatron_lst.config.load import load_config
from megatron_lst.simulation.report import simulate_sizes, table

SIZES = (8, 64, 512, 4096, 16384)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--ranks", type=int, nargs="+", default=SIZES)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_intermixed_args(arguments)
    found = simulate_sizes(load_config(Path(given.config), given.overrides), given.ranks)
    print(json.dumps(found, indent=1) if given.json else table(found))


if __name__ == "__main__":
    main()
