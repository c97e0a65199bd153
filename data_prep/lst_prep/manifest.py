"""The manifest: what speech there is. JSONL, one piece of recorded speech a line.

    {"id": "...", "audio": "path", "text": "...",                      required
     "start": 1.5, "end": 12.0,                                        seconds in the file; the whole file by default
     "speaker": "...", "license": "...", "source": "...", "split": "train" | "heldout",
     "document": "chapter-3", "seconds": 31.2}

Consecutive lines with the same `document` are consecutive pieces of one recording, chapter or episode; they are aligned
on their own and joined again (SPEC 7). Paths are relative to the manifest's folder.
"""

import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from lst_prep.rejection import Rejection
from megatron_lst.errors import UserError
from megatron_lst.files import replacing

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Entry:
    """One line of a manifest. `audio` is absolute or relative to the working directory once read."""

    id: str
    audio: str
    text: str
    start: float | None = None
    end: float | None = None
    speaker: str = ""
    license: str = ""
    source: str = ""
    split: str = "train"
    document: str = ""
    seconds: float | None = None

    @property
    def recording(self) -> str:
        """Id of the document that this piece belongs to."""
        return self.document or self.id


def _parse(line: str, folder: Path, root: str, default_source: str) -> Entry:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Rejection("bad_manifest_line", f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise Rejection("bad_manifest_line", "not a JSON object")
    for name in ("id", "audio", "text"):
        if not isinstance(value.get(name), str) or (name != "text" and not value[name]):
            raise Rejection("bad_manifest_line", f"{name} must be a string")
        if not is_unicode(value[name]):
            raise Rejection("bad_manifest_line", f"{name} is not Unicode: half a surrogate pair")
    for name in ("start", "end", "seconds"):
        number = value.get(name)
        if number is not None and (
            not isinstance(number, int | float) or isinstance(number, bool) or not 0 <= number < 1e9
        ):
            raise Rejection("bad_manifest_line", f"{name} must be a number of seconds")
    if value.get("end") is not None and value["end"] <= (value.get("start") or 0):
        raise Rejection("bad_manifest_line", "end must be after start")
    if value.get("split", "train") not in SPLITS:
        raise Rejection("bad_manifest_line", f"split {value['split']!r} is not train or heldout")
    known = {name: value[name] for name in Entry.__dataclass_fields__ if name in value}
    for name in ("speaker", "license", "source", "document"):
        known[name] = str(known.get(name) or "")
    known["source"] = known["source"] or default_source
    known["audio"] = _audio_path(value["audio"], folder, root)
    return Entry(**known)


def _audio_path(audio: str, folder: Path, root: str) -> str:
    """A manifest may come from elsewhere: it must not reach for any file of this machine."""
    allowed = Path(root) if root else folder
    path = os.path.abspath(folder / audio)
    if (root or not os.path.isabs(audio)) and not Path(path).is_relative_to(os.path.abspath(allowed)):
        raise Rejection("outside_corpus", f"{audio} is not under {allowed}")
    return path if os.path.isabs(audio) else os.path.normpath(folder / audio)


def is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON can escape (a cut emoji) and nothing after it can encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, line) of each that is not blank. Raises UserError when the file cannot be read."""
    try:
        handle = path.open(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"manifest {path}: cannot be read ({error.strerror})") from error
    with handle:
        yield from ((number, line) for number, line in enumerate(handle, start=1) if line.strip())


def _digest(name: str) -> int:
    return int(xxhash.xxh3_64_intdigest(name.encode()))


def _repeated(paths: Iterable[Path]) -> frozenset[int]:
    """Digests of the ids that more than one line may have. Takes 8 bytes of memory a line."""
    digests = array("Q")
    for path in paths:
        for _, line in _lines(path):
            try:
                digests.append(_digest(json.loads(line)["id"]))
            except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
                continue  # `read` says what is wrong with it
    table = np.frombuffer(digests, np.uint64)
    table.sort()
    return frozenset(np.unique(table[1:][table[1:] == table[:-1]]).tolist())


def read(paths: Iterable[str | Path], on_reject: Callable[[str, Rejection], None], root: str = "") -> Iterator[Entry]:
    """Every good line of the manifests, in order. Blank lines are skipped.

    The manifests are read twice: only ids that occur again are kept, for there may be tens of millions.

    Args:
        paths: manifests.
        on_reject: called with `path:line` and the rejection for each line that cannot be used.
        root: see `AudioConfig.root`.

    Raises:
        UserError: a manifest that cannot be read.
    """
    files = [Path(path) for path in paths]
    repeated = _repeated(files)
    first: dict[str, str] = {}
    for path in files:
        for number, line in _lines(path):
            where = f"{path}:{number}"
            try:
                entry = _parse(line, path.parent, root, path.stem)
                if _digest(entry.id) in repeated and first.setdefault(entry.id, where) != where:
                    raise Rejection("duplicate_id", f"{entry.id}, first in {first[entry.id]}")
            except Rejection as rejection:
                on_reject(where, rejection)
                continue
            yield entry


def write(path: Path, entries: Iterable[Entry]) -> int:
    """Write a manifest; audio paths are made relative to its folder where they lie under it. Returns the count."""
    count, folder = 0, path.parent.resolve()
    with replacing(path) as out:
        for entry in entries:
            value = {name: item for name, item in vars(entry).items() if item not in (None, "")}
            audio = Path(entry.audio).resolve()
            value["audio"] = str(audio.relative_to(folder) if audio.is_relative_to(folder) else audio)
            value.setdefault("text", "")
            line = json.dumps(value, ensure_ascii=False)
            out.write((line if is_unicode(line) else json.dumps(value)) + "\n")  # a file name of another encoding
            count += 1
    return count
