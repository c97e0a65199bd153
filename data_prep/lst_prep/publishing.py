"""Finished shard sets to an object store: sent whole, read back, and visible to a reader only when all is there.

A reader opens a set by its manifest. So the manifest is sent when every other file of the set has been read back and
has the right hash; an older one is taken away before anything below it changes. Each file is an item of work with a
receipt, which holds as long as the store lists the object that was read back: a rerun sends what is missing or another.
"""

import errno
import json
from pathlib import Path
from typing import Any

import xxhash

from lst_prep import stores
from lst_prep.engine import run_stage
from lst_prep.items import Receipts, Stage, Work
from lst_prep.jobs import Jobs
from lst_prep.layout import Layout
from lst_prep.places import StorePath, path_of
from lst_prep.reading import Inputs
from lst_prep.unread import JobFault
from lst_prep.verify import find_sets
from megatron_lst.documents.format import HASH, INDEX, MANIFEST, SIZES, file_hash
from megatron_lst.documents.shards import ShardSet
from megatron_lst.errors import DamagedDataError, UserError

STAGE = "publish"
_BESIDE = ("codebook.safetensors", "tokenizer.json", "heldout.json", "chat.json", "train.yaml", "summary.json")
"""Files beside the sets that their readers look for."""


def publish(out: Path, target: str, jobs: Jobs | None = None, quiet: bool = False) -> list[str]:
    """Send every finished set of an output folder, and what readers need beside it.

    Args:
        out: output folder of a preparation, an import or conversations.
        target: address under which the sets' folders lie.
        jobs: who sends.

    Returns:
        The addresses of the sets.

    Raises:
        UserError: there is no finished set, or the target holds a set of another plan under a name.
        JobFault: the store did not take all of it; the same command goes on.
        DamagedDataError: a file here is not what the set's index says.
    """
    layout, to = Layout(out), path_of(target)
    if not isinstance(to, StorePath):
        raise UserError(f"{target}: must be an address in a store, such as s3://bucket/prefix")
    sets = find_sets([layout.out])
    files = [name for path in sets for name in _files(layout.out, path)]
    files += [name for name in _BESIDE if (layout.out / name).is_file()]
    hashes = {name: file_hash(layout.out / name) for name in files}
    _check_hashes(layout.out, sets, hashes)
    plan = xxhash.xxh3_128_hexdigest(json.dumps([str(to), hashes]))
    try:
        if not stores.is_folder(stores.look(StorePath.of(f"{to.scheme}://{to.bucket}"))):
            raise UserError(f"{target}: there is no bucket {to.bucket!r}; make it first")
        for path in sets:
            _hide_older(path, to / path.name)
        _forget_what_is_gone(layout, plan, files, to)
        stage = Stage(STAGE, len(files), send_factory, (str(layout.out), str(to), list(hashes.items())))
        run_stage(stage, layout.work, plan, jobs or Jobs(), quiet=quiet)
        for path in sets:
            send(path / MANIFEST, to / path.name / MANIFEST, file_hash(path / MANIFEST))
    except OSError as error:
        where = error.filename or target
        raise JobFault(f"{where}: {error.strerror or error}; the same command goes on where this one ended") from error
    return [str(to / path.name) for path in sets]


def _files(out: Path, path: Path) -> list[str]:
    """Of a set, without its manifest, relative to the output folder."""
    shards = ShardSet.open(path)
    names = [INDEX, SIZES, *(shards.shard_name(shard) for shard in range(shards.shards))]
    return [str((path / name).relative_to(out)) for name in names]


def _check_hashes(out: Path, sets: list[Path], hashes: dict[str, str]) -> None:
    """What is damaged here is not sent. Raises DamagedDataError."""
    for path in sets:
        known = dict(json.loads((path / MANIFEST).read_bytes())["files"])
        for entry in json.loads((path / INDEX).read_bytes())["shards"]:
            sent = entry["zip_data"] or entry["raw_data"]
            known[sent["basename"]] = sent["hashes"][HASH]
        for name, expected in known.items():
            if hashes[str((path / name).relative_to(out))] != expected:
                raise DamagedDataError(f"{path / name}: altered since it was written: nothing is sent")


def _hide_older(path: Path, to: StorePath) -> None:
    """Take away the manifest of the set that is there, if it is another one: what changes below is no whole set.

    Raises:
        UserError: it is of another plan.
    """
    place = to / MANIFEST
    if not stores.is_object(stores.look(place)):
        return
    here, there = (path / MANIFEST).read_bytes(), Inputs().read_bytes(place)
    if here == there:
        return
    try:
        plans = [json.loads(content).get("plan") for content in (here, there)]
    except ValueError:
        plans = []  # half a manifest, of nobody
    if plans and plans[0] != plans[1]:
        raise UserError(
            f"{to}: there is another set, of plan {plans[1]}, and this one is of plan {plans[0]}; choose another "
            f"`publish`, or remove that set first"
        )
    stores.delete(place)


def _forget_what_is_gone(layout: Layout, plan: str, files: list[str], to: StorePath) -> None:
    """Remove receipts of objects that are not there any more, or not what was read back."""
    there = {found.path: [found.size, found.mtime_ns] for found in stores.listed(to, recursive=True)}
    receipts = Receipts(layout.work, STAGE, plan)
    for item, name in enumerate(files):
        done = receipts.read(item)
        if done is not None and there.get(str((to / name).inside)) != done["object"]:
            receipts.remove(item)


def send_factory(out: str, target: str, files: list[tuple[str, str]]) -> Work:
    """One file an item. See `send`."""
    to = path_of(target)
    assert isinstance(to, StorePath), "checked by publish"

    def work(item: int) -> dict[str, Any]:
        name, expected = files[item]
        sent = send(Path(out, name), to / name, expected)
        found = stores.look(to / name)
        size = f"{(Path(out) / name).stat().st_size / 1e6:,.1f} MB"
        return {"object": [found.size, found.mtime_ns], "note": f"{name}: {size}, {'sent' if sent else 'was there'}"}

    return work


def send(file: Path, place: StorePath, expected: str) -> bool:
    """Send a file, and read it back. What is there and the same is not sent. Returns whether it was sent.

    Raises:
        CannotRead: the store does not take it now, or gives back something else.
    """
    inputs = Inputs()
    found = stores.look(place)
    if stores.is_object(found) and found.size == file.stat().st_size and inputs.hash(place) == expected:
        return False
    inputs.retry(place, lambda: stores.send(file, place))
    if inputs.hash(place) != expected:
        raise OSError(errno.EIO, "what is read back is not what was sent", str(place))
    return True
