"""The table of docs/parallelism.md: ten steps of every tested layout on real processes, against the one-process run.

    PYTHONPATH=.:kernels:data_prep python benchmarks/layouts.py [NAME...]

Prints a markdown table: the largest relative difference of the ten losses and gradient norms, and whether all replicas
of a parameter are equal bit for bit after ten steps. The layouts are those of tests/parallel and tests/engines.
"""

import sys
from typing import Any

from tests.engines.test_deepspeed import CURVES
from tests.parallel.test_layouts import LAYOUTS, OTHER_MODELS
from tests.support.ranks import RankPool
from tests.support.runs import train
from tests.support.toy import toy_config


def cases() -> list[tuple[str, int, Any, Any]]:
    """(name, ranks, configuration, configuration of the one-process run)."""
    found = [(name, world, toy_config(**changes), toy_config()) for name, (world, changes) in LAYOUTS.items()]
    for name, (world, model, changes) in OTHER_MODELS.items():
        found.append((name, world, toy_config(**model, **changes), toy_config(**model)))
    found += [(f"DeepSpeed {name}", world, config, toy_config()) for name, (world, config) in CURVES.items()]
    return found


def difference(found: list[float], expected: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


def replicas_equal(results: list[dict[str, Any]]) -> str:
    seen: dict[str, str] = {}
    for result in results:
        for key, digest in result["replicas"].items():
            if seen.setdefault(key, digest) != digest:
                return f"no: {key}"
    return "yes" if seen else "not asked"


def main(names: list[str]) -> None:
    pool = RankPool()
    alone: dict[Any, dict[str, Any]] = {}
    print("| layout | ranks | loss | gradient norm | replicas equal |")
    print("|---|---|---|---|---|")
    for name, world, config, reference in cases():
        if names and not any(n in name for n in names):
            continue
        if reference not in alone:
            alone[reference] = pool.run(train, 1, reference)[0]
        results = pool.run(train, world, config)
        expected = alone[reference]
        loss = max(difference(r["losses"], expected["losses"]) for r in results)
        norm = max(difference(r["norms"], expected["norms"]) for r in results)
        print(f"| {name} | {world} | {loss:.1e} | {norm:.1e} | {replicas_equal(results)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
