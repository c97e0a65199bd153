"""A Hugging Face `datasets` audio set on disk."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from lst_prep.corpora.corpus import Corpus
from lst_prep.manifest import Entry
from lst_prep.strings import is_unicode
from megatron_lst.errors import UserError
from megatron_lst.files import write_bytes

_TEXTS = ("text", "sentence", "transcript", "transcription", "normalized_text", "raw_text")
_IDS = ("utt_id", "id", "segment_id", "file")


def huggingface(corpus: Corpus) -> Iterator[Entry]:
    """A set that `save_to_disk` wrote. Embedded audio is written beside the manifest, named after its content.

    Ids are CORPUS/SPLIT/ID; where a set's own ids repeat (FLEURS: one for all readings of a sentence), or it has none,
    the row's number makes them. `validation`, `test` and the like are held out.
    """
    try:
        from datasets import Audio, DatasetDict, load_from_disk
    except ModuleNotFoundError as error:
        raise UserError("reading a Hugging Face data set needs `datasets` (pip install datasets)") from error
    try:
        loaded = load_from_disk(str(corpus.root))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{corpus.root}: not a data set written by save_to_disk ({error})") from error
    parts = loaded.items() if isinstance(loaded, DatasetDict) else [(str(loaded.split or ""), loaded)]
    for name, rows in parts:
        split = corpus.split(name, corpus.root) if name not in ("", "all") else corpus.split_of_folder(corpus.root)
        audio = next((column for column, kind in rows.features.items() if isinstance(kind, Audio)), None)
        text = next((column for column in _TEXTS if column in rows.features), None)
        if audio is None or text is None:
            raise UserError(f"{corpus.root}: columns {', '.join(rows.features)}: no audio, or no text column")
        own = next((c for c in _IDS if c in rows.features and len(rows.unique(c)) == len(rows)), None)
        for index, row in enumerate(rows.cast_column(audio, Audio(decode=False))):
            where = f"{corpus.root}: {f'{name} ' if name else ''}row {index}"
            path = _audio(corpus, row[audio])
            if path is None:
                corpus.skip(where, "no audio")
            elif not isinstance(row[text], str):
                corpus.skip(where, f"no text in {text!r}")
            elif not is_unicode(row[text]):
                corpus.skip(where, "a text that is not Unicode")
            else:
                number = f"{index:08d}" if own is None or row[own] in (None, "") else str(row[own])
                yield Entry(
                    id="/".join(part for part in (corpus.name, name, number) if part),
                    audio=str(path),
                    text=row[text],
                    speaker=_string(row, "speaker_id", "speaker", "client_id"),
                    license=_string(row, "license"),
                    source=corpus.name,
                    split=split,
                )


def _string(row: dict[str, Any], *names: str) -> str:
    return next((str(row[name]) for name in names if row.get(name) not in (None, "")), "")


def _audio(corpus: Corpus, sound: dict[str, Any] | None) -> Path | None:
    """Where the audio of a row lies; None: it has none. What is embedded is written once, under its hash."""
    if not sound:
        return None
    name = sound.get("path") or ""
    if not sound.get("bytes"):
        return Path(os.path.join(corpus.root, name)) if name else None
    if corpus.extracted is None:
        raise UserError(f"{corpus.root}: its audio lies inside its own files: name a folder to write it to")
    digest = xxhash.xxh3_128_hexdigest(sound["bytes"])
    path = corpus.extracted / digest[:2] / f"{digest}{os.path.splitext(name)[1].lower() or '.wav'}"
    if not path.exists() or path.stat().st_size != len(sound["bytes"]):
        write_bytes(path, sound["bytes"])
    return path
