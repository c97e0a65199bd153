"""Re-read shard sets: hashes, schema, sizes, and that no training document holds a held-out sentence."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

from lst_prep.layout import SETS
from megatron_lst.documents.format import MANIFEST
from megatron_lst.documents.heldout import HeldOut
from megatron_lst.documents.schema import Document
from megatron_lst.documents.shards import ShardSet, verify_shard
from megatron_lst.errors import DamagedDataError, LstError, UserError
from megatron_lst.machine import usable_cores


def find_sets(paths: Sequence[Path]) -> list[Path]:
    """Shard sets at the paths: a set itself, or a preparation's output folder. Raises UserError when there is none."""
    found: list[Path] = []
    for path in paths:
        inner = [path / name for name in SETS] + sorted(p.parent for p in path.glob(f"*/{MANIFEST}"))
        here = [path] if (path / MANIFEST).exists() else [p for p in dict.fromkeys(inner) if (p / MANIFEST).exists()]
        if not here:
            raise UserError(f"{path}: neither a shard set nor the output folder of a finished preparation")
        found += here
    return found


def verify_sets(paths: Sequence[Path], say: Callable[[str], None], workers: int = 0) -> list[str]:
    """Verify sets, their shards dealt to processes.

    Args:
        workers: processes; 0: one a core, 1: this process alone.

    Returns:
        One message per fault, naming the shard or the document, in the order of the sets and their shards.

    Raises:
        LstError: a process died.
    """
    faults: list[str] = []
    _opened.cache_clear()  # what this process has verified before may have changed
    with _pool(workers or usable_cores()) as map_shards:
        for path in find_sets(paths):
            try:
                shards = range(ShardSet.open(path).shards)
                found = [fault for part in map_shards(partial(_verify_shard, path), shards) for fault in part]
            except DamagedDataError as error:
                found = [str(error)]
            except BrokenProcessPool:
                raise LstError(f"{path}: a process that verified it died (out of memory?); try --workers 1") from None
            say(f"{path}: {'all well' if not found else f'{len(found)} faults'}")
            faults += found
    return faults


@contextmanager
def _pool(workers: int) -> Iterator[Callable[..., Iterable[list[str]]]]:
    """`map` over shards, results in order."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield pool.map


@lru_cache(maxsize=1)
def _opened(path: Path) -> tuple[ShardSet, HeldOut | None]:
    """A set, and what must not be in it. Once a process."""
    heldout = path.parent / "heldout.json"
    training = not path.name.startswith("heldout-") and heldout.exists()
    return ShardSet.open(path), HeldOut.load(heldout) if training else None


def _verify_shard(path: Path, shard: int) -> list[str]:
    shards, heldout = _opened(path)

    def look(documents: list[Document]) -> None:
        if heldout is not None:
            heldout.assert_disjoint((document.id, document.text) for document in documents)

    try:
        return verify_shard(shards, shard, look)
    finally:
        shards.close()
