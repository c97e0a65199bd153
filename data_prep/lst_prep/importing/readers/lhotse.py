"""Lhotse's cuts with token arrays: manifests of cuts, and Shar folders.

The formats are JSON lines, .npy and tar, and are read as such: Lhotse itself would import torch, and runs a shell
command where a manifest names a path that begins with `pipe:`.
"""

import tarfile
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from lst_prep.importing.checks import array_in, load_array
from lst_prep.importing.config import ImportSource
from lst_prep.importing.readers.lines import read_lines
from lst_prep.importing.readers.paths import damage_named, source_files
from lst_prep.importing.records import OnReject, Part, Reader, Record, pick, record_of, require_columns
from lst_prep.packed import unpacked
from lst_prep.places import AnyPath, path_of, whole
from lst_prep.reading import Inputs
from lst_prep.rejection import Rejection
from megatron_lst.errors import UserError

_CUTS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_KINDS = ("MonoCut", "MultiCut")


class LhotseReader:
    """Parts are files of cuts; in a Shar folder the tokens come from the tar of the same number."""

    def parts(self, source: ImportSource, inputs: Inputs) -> list[Part]:
        if not source.columns.tokens:
            raise UserError(f"source {source.name!r}: columns.tokens: name the cuts' field that holds the tokens")
        root, found, shar = path_of(source.path), [], list[AnyPath]()
        if inputs.is_there(root, folder=True):
            shar = [root / name for name, _ in inputs.entries(root) if fnmatchcase(name, "cuts.*.jsonl*")]
        for path in shar or source_files(source, _CUTS, inputs):
            there, fields = set[str](), set[str]()
            for count, (_, _, cut) in enumerate(read_lines(source, path, inputs, lambda *_: None)):
                fields = set(cut) | set(cut.get("custom") or {})
                there |= fields
                if count >= 100:
                    break
            tar = self._tar(source, path, inputs)
            if tar is not None:
                there.add(source.columns.tokens)
            if there:
                require_columns(source, path, there)
            found.append(Part(str(path), 0, 0, inputs.size(path) + (inputs.size(tar) if tar else 0)))
        return found

    @staticmethod
    def _tar(source: ImportSource, cuts: AnyPath, inputs: Inputs) -> AnyPath | None:
        """The tar of the tokens of a Shar folder's file of cuts; None: the cuts are no Shar."""
        name, _, rest = cuts.name.partition(".")
        number = rest.split(".")[0]
        if name != "cuts" or not number.isdigit():
            return None
        for suffix in ("tar", "tar.gz"):
            tar = cuts.with_name(f"{source.columns.tokens}.{number}.{suffix}")
            if inputs.is_file(tar):
                return tar
        return None

    def read(self, source: ImportSource, part: Part, inputs: Inputs, on_reject: OnReject) -> Iterator[Record]:
        path = path_of(part.path)
        tar = self._tar(source, path, inputs)
        arrays = None if tar is None else _shar_arrays(source, tar, inputs)
        for where, _, cut in read_lines(
            source, path, inputs, self._all_count(source, path, on_reject, arrays is not None)
        ):
            values = None if arrays is None else self._next(source, tar, arrays, cut)
            try:
                yield self._record(source, where, cut, values, inputs)
            except Rejection as rejection:
                on_reject(where, rejection)

    @staticmethod
    def _all_count(source: ImportSource, path: AnyPath, on_reject: OnReject, shar: bool) -> OnReject:
        """In a Shar folder cuts and arrays go in step: a cut that cannot be read leaves nothing to go by."""

        def lost(where: str, rejection: Rejection) -> None:
            if shar:
                raise UserError(f"source {source.name!r}: {where}: {rejection.detail}")
            on_reject(where, rejection)

        return lost

    @staticmethod
    def _next(source: ImportSource, tar: object, arrays: Iterator[Any], cut: Mapping[str, Any]) -> tuple[Any, Any]:
        name, content, about = next(arrays, ("nothing", None, None))
        if name != cut.get("id"):
            raise UserError(
                f"source {source.name!r}: {tar} has {name!r} where the cuts have {cut.get('id')!r}: not of one set?"
            )
        return content, about

    def _record(
        self,
        source: ImportSource,
        where: str,
        cut: Mapping[str, Any],
        shar: tuple[Any, Any] | None,
        inputs: Inputs,
    ) -> Record:
        kind = cut.get("type", "MonoCut")
        if kind not in _KINDS:
            raise Rejection("bad_record", f"a {kind}; cuts have to be of kind {' or '.join(_KINDS)}")
        fields = {**(cut.get("custom") or {}), **cut}
        about = shar[1] if shar is not None else pick(fields, source.columns.tokens)
        own: dict[str, Any] = {"id": cut.get("id"), "seconds": cut.get("duration")}
        if isinstance(about, Mapping):
            content = shar[0] if shar is not None else None
            own |= _array(about, cut, content, inputs)
            fields = {name: value for name, value in fields.items() if name != source.columns.tokens.split(".")[0]}
        spoken = [s for s in cut.get("supervisions") or [] if isinstance(s, Mapping)]
        recording = (cut.get("recording") or {}).get("id") or next((s.get("recording_id") for s in spoken), None)
        if recording is not None:
            own |= {"recording": recording, "start": cut.get("start")}
        speakers = {s.get("speaker") for s in spoken if s.get("speaker")}
        if len(speakers) == 1:
            own["speaker"] = speakers.pop()
        own |= _transcripts(spoken)
        given = {name: value for name, value in own.items() if value is not None}
        return record_of(where, fields, source.columns, **given)


def _transcripts(spoken: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Segments of a cut's supervisions; words where all of them have an alignment. Times count from the cut's begin."""
    spoken = sorted((s for s in spoken if (s.get("text") or "").strip()), key=lambda s: float(s.get("start", 0)))
    if not spoken:
        return {}
    texts = [s["text"] for s in spoken]
    words = [word for s in spoken for word in ((s.get("alignment") or {}).get("word") or [])]
    if words and all((s.get("alignment") or {}).get("word") for s in spoken):
        found = [{"word": w[0], "start": w[1], "end": w[1] + w[2]} for w in words]
        return {"text": " ".join(texts), "words": found}
    ends = [float(s.get("start", 0)) + float(s.get("duration", 0)) for s in spoken]
    pieces = [{"text": s["text"], "start": s.get("start", 0), "end": end} for s, end in zip(spoken, ends, strict=True)]
    return {"segments": pieces}


def _array(
    about: Mapping[str, Any], cut: Mapping[str, Any], content: np.ndarray | None, inputs: Inputs
) -> dict[str, Any]:
    """Tokens of an array manifest, cut to what the cut holds, frames first; and the rate that the manifest says.

    Raises:
        Rejection: a storage that is not read here.
        CannotRead: not now.
    """
    temporal = about if "array" in about else None
    array = about["array"] if temporal is not None else about
    if content is None:
        kind, path, key = (array.get(name) for name in ("storage_type", "storage_path", "storage_key"))
        if kind != "numpy_files":
            raise Rejection(
                "unreadable_tokens", f"stored as {kind}; store the arrays as numpy_files, or export the cuts to Shar"
            )
        content = load_array(f"{whole(str(path))}/{key}", Path(), inputs)
    if temporal is None:
        return {"tokens": content}
    axis, shift = int(temporal["temporal_dim"]), float(temporal["frame_shift"])
    if content.ndim > axis:
        content = np.moveaxis(content, axis, 0)
    length, start = float(cut["duration"]), float(cut.get("start", 0)) - float(temporal["start"])
    recorded = (cut.get("recording") or {}).get("duration")
    if recorded is None or abs(start) > shift or abs(float(recorded) - length) > 2 * shift:  # a part
        covered = float(recorded) - float(temporal["start"]) if recorded is not None else start + length
        if recorded is not None and len(content) * shift > 1.01 * covered + 2 * shift:
            raise Rejection("rate_mismatch", f"{len(content)} frames of {shift:g} s, the recording has {covered:g} s")
        begin = max(0, round(start / shift))
        content = content[begin : begin + round(length / shift)] if recorded is not None or begin else content
    return {"tokens": content, "rate": 1 / shift, "frames_first": True}


def _shar_arrays(source: ImportSource, path: AnyPath, inputs: Inputs) -> Iterator[tuple[str, np.ndarray | None, Any]]:
    """(cut, array, its manifest) of each pair of files in a tar of Shar; (cut, None, None): the cut has none."""
    import io
    import json

    with (
        damage_named(source, path),
        inputs.open(path) as raw,
        unpacked(raw, path) as plain,
        tarfile.open(fileobj=plain, mode="r|") as tar,
    ):
        data: tuple[str, str, bytes] | None = None
        for member in tar:
            stem, _, suffix = member.name.rpartition(".")
            file = tar.extractfile(member)
            content = file.read() if file is not None else b""
            if data is None:
                data = stem, suffix, content
                continue
            if stem != data[0]:
                raise UserError(f"source {source.name!r}: {path}: {data[0]} has no manifest beside its array")
            if suffix == "nometa":
                yield stem, None, None
            elif data[1] != "npy":
                raise UserError(
                    f"source {source.name!r}: {path}: arrays in .{data[1]}; tokens have to be written as .npy "
                    f"(SharWriter: fields={{{source.columns.tokens!r}: 'numpy'}})"
                )
            else:
                try:
                    yield stem, array_in(io.BytesIO(data[2]), member.name), json.loads(content)
                except (Rejection, ValueError) as error:
                    raise UserError(f"source {source.name!r}: {path}: {member.name}: {error}") from None
            data = None


READERS: dict[str, Reader] = {"lhotse": LhotseReader()}
