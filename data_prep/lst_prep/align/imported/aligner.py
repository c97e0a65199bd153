"""`align.aligner: import`: word times that another program has found, in files beside the corpus."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import PurePath

from lst_prep.align.imported.fitting import fit
from lst_prep.align.imported.labels import Label, decoded
from lst_prep.align.imported.lines import read_ctm, read_labels
from lst_prep.align.imported.textgrid import read_textgrid
from lst_prep.align.imported.words_json import read_json_words
from lst_prep.align.spans import AlignedWords, Piece, attempt
from lst_prep.config import AlignConfig
from lst_prep.manifest import Entry
from lst_prep.places import AnyPath, is_under, path_of
from lst_prep.reading import Inputs
from lst_prep.rejection import Rejection
from megatron_lst.errors import UserError

_SUFFIXES = {".textgrid": "textgrid", ".ctm": "ctm", ".json": "json", ".txt": "labels"}
_SLACK = 0.05
"""Seconds by which words may overlap or reach out of the audio: times are rounded."""


class ImportAligner:
    """Reads alignments. A word's score is the file's confidence, 0 where it has none.

    Raises:
        UserError: `align.path` has no place for the piece's name, or says no format.
    """

    def __init__(self, config: AlignConfig) -> None:
        self._config, self._path = config, config.path
        for name in re.findall(r"\{([^{}]*)\}", config.path):
            if name not in ("id", "document", "audio"):
                raise UserError(f"align.path {config.path!r}: {{{name}}} is not one of {{id}}, {{document}}, {{audio}}")
        suffix = PurePath(config.path).suffix.lower()
        self._format = _SUFFIXES.get(suffix, "") if config.format == "suffix" else config.format
        if not self._format:
            raise UserError(
                f"align.path {config.path!r}: its suffix {suffix!r} says no format: set align.format to textgrid, ctm, "
                f"json or labels"
            )
        if "{" not in config.path and self._format != "ctm":
            raise UserError(
                f"align.path {config.path!r}: one file for all pieces, which only a .ctm can be: put {{id}}, "
                f"{{document}} or {{audio}} into it"
            )
        self._root = path_of(config.path.partition("{")[0] + "x").parent
        self.fingerprint = f"import {self._format} 1"
        self._ctm: tuple[AnyPath, dict[str, list[Label]]] | None = None

    def align_batch(self, pieces: Sequence[Piece]) -> list[AlignedWords | Rejection]:
        return [attempt(partial(self._align, piece)) for piece in pieces]

    def _align(self, piece: Piece) -> AlignedWords:
        entry = piece.entry
        assert entry is not None, "an alignment belongs to a manifest line"
        labels = self._labels(entry, piece.inputs or Inputs())
        labels = self._of_piece(labels, entry, piece.seconds)
        return fit(piece.words, labels, piece.language, piece.seconds, self._config.max_differ)

    def _labels(self, entry: Entry, inputs: Inputs) -> list[Label]:
        names = {"{id}": entry.id, "{document}": entry.recording, "{audio}": PurePath(entry.audio).stem}
        path = path_of(re.sub(r"\{\w+\}", lambda match: names[match[0]], self._path))
        if not is_under(path, self._root) or "\0" in str(path):
            raise Rejection("outside_corpus", f"{path} is not under {self._root}")
        if self._format == "ctm":
            found = self._read_ctm(path, inputs)
            name = next((name for name in names.values() if name in found), None)
            if name is None:
                raise Rejection("no_alignment", f"{path} has no words of {entry.id}")
            return found[name]
        text = self._text(path, inputs)
        if self._format == "textgrid":
            return read_textgrid(text, path, self._config.tier)
        return read_json_words(text, path) if self._format == "json" else read_labels(text, path)

    def _read_ctm(self, path: AnyPath, inputs: Inputs) -> dict[str, list[Label]]:
        if self._ctm is None or self._ctm[0] != path:  # one file may hold all pieces
            self._ctm = path, read_ctm(self._text(path, inputs), path)
        return self._ctm[1]

    @staticmethod
    def _text(path: AnyPath, inputs: Inputs) -> str:
        """Raises Rejection: no such file, in a folder that is there; CannotRead: it cannot be read now."""
        if inputs.is_there(path.parent, folder=True) and not inputs.is_there(path):
            raise Rejection("no_alignment", str(path))
        try:
            return decoded(inputs.read_bytes(path), path)
        except OSError as error:
            raise Rejection("bad_alignment", f"{path}: {error.strerror}") from None

    def _of_piece(self, labels: list[Label], entry: Entry, seconds: float) -> list[Label]:
        """The labels of the piece, with times in it.

        Raises:
            Rejection: bad_times, with the place in the file.
        """
        of_file = self._config.times == "file"
        begin = (entry.start or 0.0) if of_file else 0.0
        found: list[Label] = []
        reached, inside = 0.0, not of_file
        for label in labels:
            if label.begin is None or label.end is None:
                found += [label] if inside else []  # it belongs to the word before
                continue
            low, high = label.begin - begin, label.end - begin
            if high < low:
                raise Rejection("bad_times", f"{label.where}: ends at {label.end:g} s, before it begins")
            inside = not of_file or 0 <= (low + high) / 2 < seconds
            if not inside or not label.text:  # a silence
                continue
            if not of_file and (low < -_SLACK or high > seconds + _SLACK):
                raise Rejection(
                    "bad_times", f"{label.where}: {low:g} to {high:g} s, outside the {seconds:.2f} s of audio"
                )
            if low < reached - _SLACK:
                what = f"begins at {label.begin:g} s, before the word in front of it ends ({reached + begin:g} s)"
                raise Rejection("bad_times", f"{label.where}: {what}")
            low, high = min(max(low, reached), seconds), min(max(high, reached), seconds)
            reached = high
            found.append(Label(label.text, low, high, label.score, label.where))
        return found
