"""Re-read shard sets: hashes, schema, sizes; no held-out text in training documents, and nothing that cannot be so."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

from lst_prep.layout import SETS
from lst_prep.plausible import Sounds, doubts, set_tokenizer, shared_sounds
from lst_prep.tokenizer import Tokenizer
from megatron_lst.documents.format import MANIFEST
from megatron_lst.documents.heldout import HeldOut
from megatron_lst.documents.schema import Document
from megatron_lst.documents.shards import ShardSet, verify_shard
from megatron_lst.errors import DamagedDataError, LstError, UserError
from megatron_lst.machine import usable_cores

_TOLD = 10
"""Documents of one shard that are named."""


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
    """Verify sets, their shards distributed over processes.

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
                shards = ShardSet.open(path)
                parts = list(map_shards(partial(_verify_shard, path), range(shards.shards)))
                found = [fault for part, _ in parts for fault in part]
                if not found:  # places in the set are known when every shard is well
                    found = _several_texts(shards, [sounds for _, sounds in parts])
            except DamagedDataError as error:
                found = [str(error)]
            except BrokenProcessPool:
                raise LstError(f"{path}: a process that verified it died (out of memory?); try --workers 1") from None
            say(f"{path}: {'all well' if not found else f'{len(found)} faults'}")
            faults += found
    return faults


@contextmanager
def _pool(workers: int) -> Iterator[Callable[..., Iterable[tuple[list[str], Sounds]]]]:
    """`map` over shards, results in order."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield pool.map


@lru_cache(maxsize=1)
def _opened(path: Path) -> tuple[ShardSet, HeldOut | None, Tokenizer | None]:
    """A set, what must not be in it, and the tokenizer that made it. Once a process."""
    shards = ShardSet.open(path)
    heldout = path.parent / "heldout.json"
    training = not path.name.startswith("heldout-") and heldout.exists()
    return shards, _held_out(heldout) if training else None, set_tokenizer(path.parent, shards.tokenizer)


def _held_out(path: Path) -> HeldOut:
    """A list of version 1 knows whole sentences alone: the texts of the held-out sets beside it are added."""
    heldout = HeldOut.load(path)
    if heldout.of_whole_sentences:
        for name in SETS:
            if name.startswith("heldout-") and (path.parent / name / MANIFEST).exists():
                for document in ShardSet.open(path.parent / name):
                    heldout.add(document.text)
    return heldout


def _verify_shard(path: Path, shard: int) -> tuple[list[str], Sounds]:
    shards, heldout, tokenizer = _opened(path)
    rate = float(shards.codec.rate) if shards.codec is not None and not path.name.endswith("-bpe") else None
    seen: list[Document] = []

    def look(documents: list[Document]) -> list[str]:
        seen.extend(documents)
        found = [doubt for document in documents for doubt in doubts(document, shards.tokenizer, tokenizer, rate)]
        if heldout is not None:
            for document in documents:
                found += [
                    f"training document {document.id!r} holds the held-out sentence {held[:300]!r}"
                    for held in heldout.find(document.text)[:1]
                ]
        name = f"{path}/{shards.shard_name(shard)}"
        return (
            found if len(found) <= _TOLD else [*found[:_TOLD], f"{name}: {len(found) - _TOLD} more faults of documents"]
        )

    try:
        return verify_shard(shards, shard, look), Sounds.of(seen)
    finally:
        shards.close()


def _several_texts(shards: ShardSet, sounds: list[Sounds]) -> list[str]:
    pairs = shared_sounds(sounds)
    found = []
    for first, other in pairs[:5].tolist():
        one, two = shards.get(first), shards.get(other)
        found.append(f"documents {one.id!r} and {two.id!r} are the same sound with different texts")
    if len(pairs) > 5:
        found.append(f"{len(pairs) - 5} more documents have the sound of another one, and another text")
    return found
