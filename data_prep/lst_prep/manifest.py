"""The manifest: what speech there is. JSONL, one piece of recorded speech a line.

    {"id": "...", "audio": "path", "text": "...",                      required
     "start": 1.5, "end": 12.0,                                        seconds in the file; the whole file by default
     "channel": 0,                                                     from 0; the mean of all by default
     "speaker": "...", "license": "...", "source": "...", "split": "train" | "heldout" (or test, dev ...),
     "document": "chapter-3", "language": "fr", "seconds": 31.2,        a tag; the source's by default
     "extra": {...}}                                                   for people, nothing reads it

A line with another key is rejected: a key that is left out silently may be what says which part of a file is meant.

Consecutive lines with the same `document` are consecutive pieces of one recording, chapter or episode; they are aligned
on their own and joined again (SPEC 7). Paths are relative to the manifest's folder, or addresses in a store (s3://).
"""

import json
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from lst_prep.languages.tags import language_tag
from lst_prep.packed import is_damage
from lst_prep.places import AnyPath, is_address, is_under, joined, path_of
from lst_prep.reading import Inputs
from lst_prep.rejection import Rejection
from lst_prep.splits import split_of
from lst_prep.strings import is_unicode, printable
from lst_prep.text_lines import open_text, utf8_fault
from megatron_lst.errors import UserError
from megatron_lst.files import replacing


@dataclass(frozen=True)
class Entry:
    """One line of a manifest. `audio` is absolute, relative to the working directory or an address once read."""

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
    channel: int | None = None
    language: str = ""

    @property
    def recording(self) -> str:
        """Id of the document that this piece belongs to."""
        return self.document or self.id


_KNOWN_AS = {
    "offset": "start, in seconds", "begin": "start, in seconds", "start_time": "start, in seconds",
    "onset": "start, in seconds", "stop": "end, in seconds", "end_time": "end, in seconds",
    "duration": "end, in seconds of the file: start + duration; `seconds` is for people",
    "dur": "end, in seconds of the file: start + duration", "length": "end, in seconds of the file",
    "audio_filepath": "audio", "audio_path": "audio", "path": "audio", "wav": "audio", "file": "audio",
    "channels": "channel, one number from 0", "channel_id": "channel, from 0", "transcript": "text",
    "sentence": "text", "transcription": "text", "speaker_id": "speaker", "utt_id": "id", "utt": "id", "key": "id",
    "licence": "license", "lang": "language", "locale": "language", "recording": "document", "session": "document",
    "subset": "split",
}  # fmt: skip
"""What other formats call what is meant."""


def _unknown_keys(value: dict[str, Any]) -> None:
    for name in value:
        if name not in Entry.__dataclass_fields__ and name != "extra":
            known = get_close_matches(name, Entry.__dataclass_fields__, 1)
            meant = _KNOWN_AS.get(name) or (known[0] if known else "")
            hint = f"here it is called {meant}" if meant else "what is only for people goes into `extra`"
            raise Rejection("unknown_key", f"{printable(name)!r}: {hint}")


def _parse(line: str, folder: AnyPath, root: str, default_source: str) -> Entry:
    if (fault := utf8_fault(line)) is not None:
        raise Rejection("bad_manifest_line", fault)
    try:
        value = json.loads(line, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise Rejection("bad_manifest_line", f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise Rejection("bad_manifest_line", "not a JSON object")
    _unknown_keys(value)
    for name in ("id", "audio", "text"):
        if not isinstance(value.get(name), str) or (name != "text" and not value[name]):
            raise Rejection("bad_manifest_line", f"{name} must be a string")
    known = {name: value[name] for name in Entry.__dataclass_fields__ if name in value}
    for name in ("speaker", "license", "source", "document", "language"):
        found = known.get(name)
        if isinstance(found, int | float) and not isinstance(found, bool):
            found = str(found)
        if found is not None and not isinstance(found, str):
            raise Rejection("bad_manifest_line", f"{name} must be a string")
        known[name] = found or ""
    known["source"] = known["source"] or default_source
    for name in ("id", "text", "speaker", "license", "source", "document"):
        if not is_unicode(known[name]):
            raise Rejection("bad_manifest_line", f"{name} is not Unicode: half a surrogate pair")
    if known["language"] and language_tag(known["language"]) is None:
        raise Rejection("bad_manifest_line", f"language {known['language']!r} is no tag such as fr or zh-Hant")
    for name in ("start", "end", "seconds"):
        number = value.get(name)
        if number is not None and (
            not isinstance(number, int | float) or isinstance(number, bool) or not 0 <= number < 1e9
        ):
            raise Rejection("bad_manifest_line", f"{name} must be a number of seconds")
    channel = value.get("channel")
    if channel is not None and (not isinstance(channel, int) or isinstance(channel, bool) or channel < 0):
        raise Rejection("bad_manifest_line", "channel must be a number from 0 on")
    if value.get("end") is not None and value["end"] <= (value.get("start") or 0):
        raise Rejection("bad_manifest_line", "end must be after start")
    known["split"] = split_of(value.get("split", "train"))
    if known["split"] is None:
        raise Rejection("bad_manifest_line", f"split {value['split']!r} is neither train nor heldout")
    known["audio"] = _audio_path(value["audio"], folder, root)
    return Entry(**known)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are there once: of two the last would win silently."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"twice the key {next(name for name in names if names.count(name) > 1)!r}")
    return found


def _audio_path(audio: str, folder: AnyPath, root: str) -> str:
    """A manifest may come from elsewhere: it must not reach for any file of this machine."""
    try:
        os.fsencode(audio)
    except UnicodeEncodeError:
        raise Rejection("bad_manifest_line", "audio is not Unicode: half a surrogate pair") from None
    if "\0" in audio:
        raise Rejection("bad_manifest_line", "audio holds a NUL")
    allowed = path_of(root) if root else folder
    try:
        path = joined(folder, audio)
    except UserError as error:
        raise Rejection("outside_corpus", str(error)) from None
    is_whole = os.path.isabs(audio) or is_address(audio)
    if (root or not is_whole) and not is_under(path, allowed):
        cure = "mend the path, or audio.root" if root else "give an absolute path, or name a folder above in audio.root"
        raise Rejection("outside_corpus", f"{audio} is not under {allowed}; {cure}")
    if isinstance(path, Path):
        return os.path.abspath(path) if is_whole else os.path.normpath(path)
    return str(path)


def _lines(path: AnyPath, inputs: Inputs) -> Iterator[tuple[int, str]]:
    """(line number, line) of each that is not blank.

    Raises:
        UserError: the file breaks off: half a manifest is not a manifest.
        CannotRead: it cannot be read now.
    """
    try:
        with open_text(path, inputs) as handle:
            yield from ((number, line) for number, line in enumerate(handle, start=1) if line.strip())
    except OSError as error:
        if error.errno is None:
            raise UserError(f"manifest {path}: breaks off ({error})") from error
        raise UserError(f"manifest {path}: cannot be read ({error.strerror})") from error
    except Exception as error:
        if isinstance(error, UserError) or not is_damage(error):
            raise
        raise UserError(f"manifest {path}: breaks off ({error})") from error


def _digest(name: str) -> int:
    return int(xxhash.xxh3_64_intdigest(name.encode()))


def _repeated(paths: Iterable[AnyPath], inputs: Inputs, digest: Callable[[str], int]) -> frozenset[int]:
    """Digests of the ids that more than one line may have. Takes 8 bytes of memory a line."""
    digests = array("Q")
    for path in paths:
        for _, line in _lines(path, inputs):
            try:
                digests.append(digest(json.loads(line)["id"]))
            except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
                continue  # `read` says what is wrong with it
    table = np.frombuffer(digests, np.uint64)
    table.sort()
    return frozenset(np.unique(table[1:][table[1:] == table[:-1]]).tolist())


def read(
    paths: Iterable[str | AnyPath],
    on_reject: Callable[[str, Rejection], None],
    root: str = "",
    inputs: Inputs | None = None,
    on_heldout: Callable[[str], None] = lambda text: None,
    digest: Callable[[str], int] = _digest,
) -> Iterator[Entry]:
    """Every good line of the manifests, in order. Blank lines are skipped.

    The manifests are read twice: only ids that occur again are kept, for there may be tens of millions.

    Args:
        paths: manifests.
        on_reject: called with `path:line` and the rejection for each line that cannot be used.
        root: see `AudioConfig.root`.
        inputs: opens the manifests.
        on_heldout: called with the text of each line that may be held out and cannot be used.
        digest: 64 bits of an id; two ids may have the same.

    Raises:
        UserError: a manifest that breaks off; a line that may be held out and has no text that can be read.
        CannotRead: one that cannot be read now.
    """
    files, inputs = [path_of(path) for path in paths], inputs or Inputs()
    repeated = _repeated(files, inputs, digest)
    first: dict[str, str] = {}
    for path in files:
        for number, line in _lines(path, inputs):
            where = f"{path}:{number}"
            try:
                entry = _parse(line, path.parent, root, printable(path.name.split(".")[0]))
                if digest(entry.id) in repeated and first.setdefault(entry.id, where) != where:
                    raise Rejection("duplicate_id", f"{entry.id}, first in {first[entry.id]}")
            except Rejection as rejection:
                on_reject(where, rejection)
                if (held := _may_be_held_out(line, where, rejection)) is not None:
                    on_heldout(held)
                continue
            yield entry


_SPLIT = re.compile(r'"split"\s*:\s*("[^"]*"|[^,}]*)')


def _may_be_held_out(line: str, where: str, rejection: Rejection) -> str | None:
    """The text of a line that cannot be used, but must not be trained on elsewhere; None: it does not say so.

    Raises:
        UserError: nobody knows its text.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        named = _SPLIT.search(line)
        value = {"split": named[1].strip().strip('"')} if named else {}
    if not isinstance(value, dict) or split_of(value.get("split")) != "heldout":
        return None
    if isinstance(text := value.get("text"), str) and is_unicode(text):
        return text
    raise UserError(
        f"{where}: a line that may be held out cannot be read, so nothing is prepared: {rejection}; mend it"
    )


def write(path: Path, entries: Iterable[Entry]) -> int:
    """Write a manifest; audio paths are made relative to its folder where they lie under it. Returns the count."""
    count, folder = 0, path.parent.resolve()
    with replacing(path) as out:
        for entry in entries:
            value = {name: item for name, item in vars(entry).items() if item is not None and item != ""}
            for name in ("id", "speaker", "license", "source", "document"):
                if name in value:
                    value[name] = printable(value[name])
            if not is_address(entry.audio):
                audio = Path(entry.audio).resolve()
                value["audio"] = str(audio.relative_to(folder) if audio.is_relative_to(folder) else audio)
            value.setdefault("text", "")
            line = json.dumps(value, ensure_ascii=False)
            out.write((line if is_unicode(line) else json.dumps(value)) + "\n")  # a path of another encoding
            count += 1
    return count
