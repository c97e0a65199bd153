"""What every reader of a corpus is given: how files are opened, splits are mapped, and where bad lines go."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lst_prep.packed import is_damage
from lst_prep.reading import Inputs
from lst_prep.rejection import Rejection
from lst_prep.splits import split_of
from lst_prep.strings import printable
from lst_prep.text_lines import open_text, utf8_fault
from megatron_lst.errors import UserError

AUDIO: tuple[str, ...] = (
    ".flac", ".wav", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64",
    ".sph", ".nist",
)  # fmt: skip
"""Suffixes of what libsndfile decodes, in lower case."""

_GAP = 0.5
"""Pieces at most this many seconds apart in the original follow each other."""

_PLAIN = {"wav", "wavs", "audio", "clips", "data", "corpus", "speech", "train", "test", "dev", "set"}
"""Names of folders that say nothing of the corpus: the folder above them is named, too."""


class Skipped:
    """What a reader left out: named by file and line, counted by why.

    Args:
        log: called with each, `{"where": ..., "why": ...}`.
    """

    def __init__(self, log: Callable[[dict[str, str]], None] = lambda _: None) -> None:
        self._log = log
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, where: str, why: str, detail: str = "") -> None:
        where = printable(where)
        self.counts[why] += 1
        self.examples.setdefault(why, f"{where}{f': {printable(detail)}' if detail else ''}")
        self._log({"where": where, "why": why, "detail": printable(detail)})


class Corpus:
    """One corpus on disk.

    Args:
        root: its folder, or file.
        inputs: opens its files.
        skipped: where bad lines go.
        splits: what names of splits that nobody knows mean: `train` or `heldout`.
        name: `source` of its pieces, and the beginning of ids that are unique in their folder alone.
        extracted: folder for audio that lies inside the corpus' own files.
    """

    def __init__(
        self,
        root: Path,
        inputs: Inputs | None = None,
        skipped: Skipped | None = None,
        splits: dict[str, str] | None = None,
        name: str = "",
        extracted: Path | None = None,
    ) -> None:
        self.root, self.inputs, self.skipped = root, inputs or Inputs(), skipped or Skipped()
        self._splits, self.extracted = splits or {}, extracted
        self.name = name or _name_of(root)

    def skip(self, where: str | Path, why: str, detail: str = "") -> None:
        self.skipped.add(str(where), why, detail)

    def split(self, name: str, where: str | Path) -> str:
        """`train` or `heldout`. Raises UserError: a name that nobody knows, so that nothing is trained on unasked."""
        found = self._splits.get(name) or split_of(name)
        if found is None:
            raise UserError(
                f"{where}: split {printable(name)!r} is neither known as training nor as held out; say which, for "
                f"instance --split {printable(name)}=train"
            )
        return found

    def split_of_folder(self, folder: Path) -> str:
        """Of a folder that is named after a split. Where it is the corpus itself, a name that is no split's trains."""
        if os.path.realpath(folder) != os.path.realpath(self.root):
            return self.split(folder.name, folder)
        name = Path(os.path.realpath(folder)).name
        return self._splits.get(name) or split_of(name) or "train"

    def split_of_file(self, stem: str) -> str:
        """Of a file that may be named after a split; one that is not trains."""
        return self._splits.get(stem) or split_of(stem) or "train"

    def lines(self, path: Path) -> Iterator[tuple[str, str]]:
        """(`path:number`, line without its end) of each line of a text file, packed or not.

        Blank lines, lines of another encoding, and what is lost where the file breaks off are skipped.

        Raises:
            CannotRead: the file cannot be read now.
        """
        number = 0
        try:
            with open_text(path, self.inputs) as file:
                for number, line in enumerate(file, start=1):
                    where = f"{path}:{number}"
                    if not line.strip():
                        self.skip(where, "a blank line")
                    elif (fault := utf8_fault(line)) is not None:
                        self.skip(where, "not UTF-8", fault)
                    else:
                        yield where, line.rstrip("\r\n")
        except Rejection as rejection:
            self.skip(path, rejection.reason)
        except Exception as error:
            if isinstance(error, UserError) or not is_damage(error):
                raise
            self.skip(f"{path}:{number + 1}", "the file breaks off", str(error))

    def records(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        """(`path:number`, object) of each line of a JSONL file, packed or not."""
        for where, line in self.lines(path):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                self.skip(where, "not JSON", str(error))
                continue
            if isinstance(value, dict):
                yield where, value
            else:
                self.skip(where, "not a JSON object")

    def need(self, found: Iterator[Path], what: str) -> Iterator[Path]:
        """The files found. Raises UserError when there are none."""
        nothing = True
        for path in found:
            nothing = False
            yield path
        if nothing:
            raise UserError(f"{self.root}: {what}")


def _name_of(root: Path) -> str:
    path = Path(os.path.realpath(root))
    name = path.name.split(".")[0] if path.is_file() else path.name
    return printable(f"{path.parent.name}/{name}" if name.lower() in _PLAIN and path.parent.name else name)


class Chain:
    """Names documents: the same name while pieces follow each other in one original."""

    def __init__(self) -> None:
        self._origin, self._end, self._number = "", 0.0, 0

    def name(self, origin: str, start: float, end: float) -> str:
        if origin != self._origin:
            self._number = 0
        elif not -_GAP <= start - self._end <= _GAP:
            self._number += 1
        self._origin, self._end = origin, end
        return f"{origin}+{self._number}"
