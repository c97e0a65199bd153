"""Re-read shard sets: hashes, schema, sizes; no held-out text in training documents, and nothing that cannot be so."""

import pickle
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lst_prep.engine import run_stage
from lst_prep.items import Stage, Work
from lst_prep.jobs import Jobs
from lst_prep.layout import SETS
from lst_prep.plausible import Sounds, doubts, set_tokenizer, shared_sounds
from lst_prep.tokenizer import Tokenizer
from lst_prep.unread import JobFault
from megatron_lst.documents.format import MANIFEST
from megatron_lst.documents.heldout import HeldOut
from megatron_lst.documents.schema import Document
from megatron_lst.documents.shards import ShardSet, verify_shard
from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.files import write_bytes
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


def verify_sets(paths: Sequence[Path], say: Callable[[str], None], jobs: Jobs | None = None) -> list[str]:
    """Verify sets, their shards distributed over workers.

    Args:
        jobs: who does it; None: one process a core.

    Returns:
        One message per fault, naming the shard or the document, in the order of the sets and their shards.

    Raises:
        JobFault: workers died again and again.
    """
    faults: list[str] = []
    _opened.cache_clear()  # what this process has verified before may have changed
    for path in find_sets(paths):
        try:
            shards = ShardSet.open(path)
            parts = _verified(path, shards.shards, jobs or Jobs())
            found = [fault for part, _ in parts for fault in part]
            if not found:  # places in the set are known when every shard is well
                found = _several_texts(shards, [sounds for _, sounds in parts])
        except DamagedDataError as error:
            found = [str(error)]
        say(f"{path}: {'all well' if not found else f'{len(found)} faults'}")
        faults += found
    return faults


def _verified(path: Path, shards: int, jobs: Jobs) -> list[tuple[list[str], Sounds]]:
    """What `_verify_shard` says of each shard, in order. Raises DamagedDataError, JobFault."""
    if jobs.engine == "local" and (jobs.workers or usable_cores()) == 1:
        return [_verify_shard(path, shard) for shard in range(shards)]
    beside = path if jobs.engine == "ray" else None  # all nodes see the set
    with tempfile.TemporaryDirectory(prefix=".verify-", suffix=".tmp", dir=beside) as scratch:
        stage = Stage("verify", shards, _verify_factory, (path, Path(scratch)))
        try:
            run_stage(stage, Path(scratch), "verify", jobs, quiet=True)
        except JobFault as error:
            raise JobFault(f"{path}: {error}") from error
        made = [pickle.loads(_result(Path(scratch), shard).read_bytes()) for shard in range(shards)]
    for one in made:
        if isinstance(one, DamagedDataError):
            raise one
    return made


def _result(scratch: Path, shard: int) -> Path:
    return scratch / f"{shard}.pickle"


def _verify_factory(path: Path, scratch: Path) -> Work:
    """Pickles what `_verify_shard` says, or the DamagedDataError that it raises."""

    def work(shard: int) -> dict[str, Any]:
        found: Any
        try:
            found = _verify_shard(path, shard)
        except DamagedDataError as error:
            found = error
        write_bytes(_result(scratch, shard), pickle.dumps(found))
        return {}

    return work


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
