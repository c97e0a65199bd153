"""The output folder: where everything lies, and the plan that everything in it belongs to."""

import hashlib
import io
import json
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lst_prep.config import PrepConfig, ReadingConfig
from lst_prep.manifest import Entry
from lst_prep.places import StorePath, path_of, whole
from lst_prep.reading import Inputs
from lst_prep.text_files import source_files
from megatron_lst.config.paths import told
from megatron_lst.documents.format import file_hash
from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.files import read_json, replacing, write_bytes

SETS = ("speech", "text", "heldout-speech", "heldout-text")


class ReadsInputs(Protocol):
    """What the configurations of a preparation and of an import say of their inputs."""

    give_up: tuple[str, ...]
    reading: ReadingConfig


@dataclass(frozen=True)
class ItemTable:
    """Manifest entries divided into items of work.

    Attributes:
        entries: JSONL, one entry a line.
        items: int64 [items, 3], first line, byte offset and number of lines of each item; written last.
    """

    entries: Path
    items: Path

    def write(self, entries: Iterable[Entry], item_pieces: int) -> int:
        """Divide entries into items of about `item_pieces`, never inside a recording. Returns the number of items."""
        rows = array("q")
        with replacing(self.entries, "wb") as out:
            recording, count, first, offset, line = "", 0, 0, 0, 0
            for entry in entries:
                if count >= item_pieces and entry.recording != recording:
                    rows.extend((first, offset, count))
                    first, offset, count = line, out.tell(), 0
                recording, count, line = entry.recording, count + 1, line + 1
                out.write(json.dumps(vars(entry)).encode() + b"\n")
            if count:
                rows.extend((first, offset, count))
        table = io.BytesIO()
        np.save(table, np.array(rows, np.int64).reshape(-1, 3))
        write_bytes(self.items, table.getvalue())
        return len(rows) // 3

    def _rows(self) -> np.ndarray:
        try:
            return np.load(self.items, mmap_mode="r", allow_pickle=False)  # every item asks for one row
        except FileNotFoundError:
            raise UserError(
                f"{self.items}: not there yet: run `lst prep manifest` (and, where `cutting.by` is set, `lst prep cut`)"
            ) from None

    def __len__(self) -> int:
        """Number of items. Raises UserError when the table is not written yet."""
        return len(self._rows())

    def counts(self) -> np.ndarray:
        """int64 [items], entries of each item."""
        return self._rows()[:, 2]

    def __iter__(self) -> Iterator[Entry]:
        """Every entry, in order."""
        for item in range(len(self)):
            yield from (entry for _, entry in self.read(item))

    def read(self, item: int) -> list[tuple[int, Entry]]:
        """(line number, entry) of each entry of one item."""
        first, offset, count = (int(value) for value in self._rows()[item])
        with Inputs().open(self.entries) as file:
            file.seek(offset)
            return [(first + i, Entry(**json.loads(file.readline()))) for i in range(count)]


class Layout:
    """Paths in one output folder."""

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        self.work = self.out / "work"
        self.plan = self.out / "plan.json"
        self.lock = self.out / ".lock"
        self.codebook = self.out / "codebook.safetensors"
        self.tokenizer = self.out / "tokenizer.json"
        self.heldout = self.out / "heldout.json"
        self.report = self.out / "report.md"
        self.page = self.out / "report.html"
        self.summary = self.out / "summary.json"
        self.pieces = ItemTable(self.work / "entries.jsonl", self.work / "items.npy")
        self.recordings = ItemTable(self.work / "recordings.jsonl", self.work / "recordings.npy")
        self.given_up = self.out / "given-up.txt"
        self.manifest_rejections = self.work / "manifest-rejections.jsonl"

    def inputs(self, config: ReadsInputs) -> Inputs:
        """What opens the inputs of one item of work: nothing that is given up by name is waited for."""
        try:
            more = self.given_up.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            more = []
        names = [*config.give_up, *more]
        return Inputs(config.reading, names, self.texts() if names else None)

    def texts(self) -> dict[str, int]:
        """Text files as the plan has them, and their bytes. Stages go by it: what is away now is not another list."""
        try:
            listed = json.loads(self.plan.read_bytes())["inputs"]
        except FileNotFoundError:
            return {}
        return {whole(path): int(size[:-6]) for path, size in listed.items() if size.endswith(" bytes")}

    def item(self, stage: str, item: int, suffix: str) -> Path:
        """An item's output file."""
        return self.work / stage / f"{item // 1000:04d}" / f"{item:07d}{suffix}"

    def part(self, name: str, item: int) -> Path:
        """A shard part of the set `name`."""
        return self.out / name / f"part-{item:05d}"


_ADDED: dict[str, dict[str, Any]] = {
    "": {"language": "en", "languages": {}},
    "align": {
        "languages": (), "path": "", "format": "suffix", "tier": "", "times": "piece", "max_differ": 0.1,
        "segmenter": "icu", "romanise": False,
    },
    "text": {"encoding": "utf-8", "splits": {}},
}  # fmt: skip
"""Section -> keys that plans of version 1 did not have, with what they did: not written where they are that."""


def plan_of(config: PrepConfig) -> dict[str, Any]:
    """Everything that the results depend on: the config without where and how fast, and the inputs' hashes."""
    choices = asdict(config)
    for name in ("out", "publish", "jobs", "reading", "give_up", "attributions", "warn_lost", "warn_pieces"):
        choices.pop(name)
    for section in ("units", "align"):
        choices[section].pop("device")
    for section, mappings in (("", [choices]), ("align", [choices["align"]]), ("text", choices["text"])):
        for mapping in mappings:
            for name, default in _ADDED[section].items():
                if mapping[name] == default:
                    mapping.pop(name)
    choices["item_pieces"] = config.jobs.item_pieces
    if config.text:
        choices["item_bytes"] = config.jobs.item_bytes
    opener, inputs = Layout(config.out).inputs(config), dict[str, Any]()
    named = {
        "manifests": config.manifests,
        "heldout": config.heldout,
        "align.pronunciations": config.align.pronunciations,
    }
    for key, paths in named.items():
        inputs |= {path: hash_of(path, key, opener) for path in paths}
    for source in config.text:  # items are numbered by file; terabytes of text are known by their sizes
        for file in source_files(source, opener):
            inputs[str(file)] = f"{opener.size(file)} bytes"
    return {"version": 1, "config": choices, "inputs": inputs}


def hash_of(name: str, key: str, inputs: Inputs) -> str:
    """xxh128 of a file that a configuration names.

    Raises:
        UserError: there is none, or it cannot be read.
        CannotRead: a store does not give it now.
    """
    path = path_of(name)
    if isinstance(path, StorePath):
        if not inputs.is_file(path):
            raise UserError(f"{told(name)}: there is no such object; `{key}` names it")
        return inputs.hash(path)
    try:
        return file_hash(path)
    except OSError as error:
        raise UserError(f"{told(name)}: cannot be read ({error.strerror}); `{key}` names it") from error


def fingerprint_of(plan: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]


def check_plan(layout: Layout, config: PrepConfig) -> str:
    """Write the plan, or compare with the one that is there. Returns its fingerprint.

    Raises:
        UserError: the folder belongs to another plan; names what differs.
    """
    there = (read_json(layout.plan) or {}).get("config") or {}
    begun = "manifests" in there and not layout.tokenizer.exists()  # there is nothing yet that could be mixed
    if there and not begun and "item_bytes" not in there:
        config.jobs.item_bytes = 1  # an earlier version: an item is a file
    plan = plan_of(config)
    if there and not begun:
        _as_earlier(plan["config"], there)
    return compare_plan(layout, plan, may_replace=begun)


_SINCE: dict[str, dict[str, Any]] = {"": {"item_bytes": 1}, "units": {"rate": 25.0}}
"""Section -> keys that plans of earlier versions do not have, with what they did."""


def _as_earlier(choices: dict[str, Any], there: dict[str, Any]) -> None:
    """Leave out keys that the plan of a folder does not have, where they are what they were before they were keys."""
    for section, keys in _SINCE.items():
        mine, theirs = ((part.get(section) or {}) if section else part for part in (choices, there))
        for key, before in keys.items():
            if key not in theirs and mine.get(key) == before:
                mine.pop(key)


def compare_plan(layout: Layout, plan: dict[str, Any], may_replace: bool = False) -> str:
    """See `check_plan`."""
    plan = json.loads(json.dumps(plan))
    if layout.plan.exists() and not may_replace:
        try:
            there = json.loads(layout.plan.read_text())
        except ValueError as error:
            raise DamagedDataError(f"{layout.plan}: not JSON ({error}); remove the folder and start again") from error
        if differences := _differences(_with_whole_paths(there), _with_whole_paths(plan)):
            raise UserError(
                f"{layout.out} holds a preparation of another plan ({'; '.join(differences[:5])}); "
                f"choose another `out` or remove that folder"
            )
        return fingerprint_of(there)
    write_bytes(layout.plan, json.dumps(plan, indent=1).encode())
    return fingerprint_of(plan)


def _with_whole_paths(plan: dict[str, Any]) -> dict[str, Any]:
    return plan | {"inputs": {whole(path): what for path, what in (plan.get("inputs") or {}).items()}}


def _is_path_now(old: Any, new: Any) -> bool:
    """Whether an absolute path is what a plan of an earlier version named from the current folder."""
    return isinstance(old, str) and isinstance(new, str) and os.path.isabs(new) and os.path.abspath(old) == new


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        return [d for key in keys for d in _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, pair in enumerate(zip(old, new, strict=True)) for d in _differences(*pair, f"{path}[{i}]")]
    same = old == new or _is_path_now(old, new)
    return [] if same else [f"{path.removeprefix('config.')} was {old!r}, is now {new!r}"]
