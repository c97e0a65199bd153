"""Readers of the corpora that people have: each walks one layout on disk and gives manifest entries.

Consecutive pieces of one recording, chapter or book share a `document`, so that they are joined again (SPEC 7). Where a
corpus says when its pieces begin and end, only pieces that follow each other without a gap are joined.
"""

import gzip
import io
import json
import os
from array import array
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from lst_prep.manifest import Entry
from megatron_lst.errors import UserError
from megatron_lst.files import write_bytes

_AUDIO = (".flac", ".wav", ".ogg", ".opus", ".mp3")
_GAP = 0.5
"""Pieces at most this many seconds apart in the original follow each other."""


def _need(found: list[Path], root: Path, what: str) -> list[Path]:
    if not found:
        raise UserError(f"{root}: {what}")
    return sorted(found)


def _walk(root: Path) -> Iterator[Path]:
    """Every file under a folder, as `sorted` would order the paths; millions of them are never held together."""
    with os.scandir(root) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        else:
            yield Path(entry.path)


class _Chain:
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


def librispeech(root: Path) -> Iterator[Entry]:
    """LibriSpeech (and any corpus of its layout): SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt beside .flac files."""
    for path in _need(list(root.rglob("*.trans.txt")), root, "no *.trans.txt: not LibriSpeech's layout"):
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, text = line.partition(" ")
            yield Entry(
                id=name,
                audio=str(path.parent / f"{name}.flac"),
                text=text.lower(),
                speaker=name.split("-")[0],
                license="CC BY 4.0",
                source="librispeech",
                document=name.rsplit("-", 1)[0],
            )


class _Books:
    """Lines SPEAKER_BOOK_NUMBER<TAB>... of a file, in any order: one book at a time is held, and 8 bytes a line.

    Args:
        path: the file; None: there are no lines.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lines: dict[str, array[int]] = {}
        at = 0
        with path.open("rb") if path else io.BytesIO() as file:
            for line in file:
                name, tab, _ = line.partition(b"\t")
                if tab:
                    self._lines.setdefault(name.rpartition(b"_")[0].decode(), array("q")).append(at)
                at += len(line)

    def __iter__(self) -> Iterator[str]:
        """SPEAKER_BOOK of each book, sorted."""
        return iter(sorted(self._lines))

    def read(self, book: str) -> dict[str, str]:
        """Name -> what follows it, for each line of one book."""
        found: dict[str, str] = {}
        if book in self._lines:
            assert self._path is not None, "lines come from a file"
            with self._path.open("rb") as file:
                for at in self._lines[book]:
                    file.seek(at)
                    name, _, rest = file.readline().decode().rstrip("\r\n").partition("\t")
                    found[name] = rest
        return found


def mls(root: Path) -> Iterator[Entry]:
    """Multilingual LibriSpeech, one language: SPLIT/transcripts.txt, segments.txt and audio/SPEAKER/BOOK/.

    English has 10.8 million pieces in one split: neither their texts are held together, nor is each looked for alone.
    """
    splits = []
    for place, folders, files in os.walk(root):
        if "transcripts.txt" in files:
            splits.append(Path(place))
            folders[:] = [folder for folder in folders if folder != "audio"]  # a folder a book
    for split in _need(splits, root, "no transcripts.txt: not MLS's layout"):
        segments = split / "segments.txt"
        transcripts, times = _Books(split / "transcripts.txt"), _Books(segments if segments.exists() else None)
        chain = _Chain()
        for origin in transcripts:
            speaker, book = origin.split("_")
            folder = split / "audio" / speaker / book
            there = set(os.listdir(folder)) if folder.is_dir() else set[str]()
            spans: dict[str, tuple[str, float, float]] = {}
            for name, span in times.read(origin).items():
                url, start, end = span.split("\t")[:3]
                spans[name] = url, float(start), float(end)
            texts = transcripts.read(origin)
            for name in sorted(texts, key=lambda n: (spans.get(n, ("", 0.0, 0.0)), n)):
                url, begin, stop = spans.get(name, ("", 0.0, 0.0))
                audio = next((name + suffix for suffix in _AUDIO if name + suffix in there), f"{name}.flac")
                chapter = os.path.splitext(os.path.basename(url))[0]  # pathlib would intern millions of names
                yield Entry(
                    id=name,
                    audio=os.path.join(folder, audio),
                    text=texts[name],
                    speaker=speaker,
                    license="CC BY 4.0",
                    source="mls",
                    document=chain.name(f"{origin}_{chapter}", begin, stop) if url else "",
                )


def libriheavy(root: Path) -> Iterator[Entry]:
    """Libriheavy: a lhotse cut manifest (.jsonl or .jsonl.gz), or a folder of them, over LibriLight's audio.

    Audio paths are looked for as the manifest has them, relative to the manifest's folder and to its parents.
    """
    files = [root] if root.is_file() else [*root.rglob("*.jsonl.gz"), *root.rglob("*.jsonl")]
    for path in _need(files, root, "no .jsonl(.gz) manifest"):
        chain = _Chain()
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for line in lines:
                cut: dict[str, Any] = json.loads(line)
                label, recording = cut["supervisions"][0], cut["recording"]
                texts = (label.get("custom") or {}).get("texts") or [label.get("text", "")]
                source, start = recording["sources"][0]["source"], float(cut["start"])
                end = start + float(cut["duration"])
                yield Entry(
                    id=cut["id"],
                    audio=str(_beside(path, source)),
                    text=texts[0],
                    start=start,
                    end=end,
                    seconds=end - start,
                    speaker=str(label.get("speaker") or Path(source).parts[-3:][0]),
                    license="public domain",
                    source="libriheavy",
                    document=chain.name(recording["id"], start, end),
                )


def _beside(manifest: Path, audio: str) -> Path:
    for folder in manifest.parents:
        if (folder / audio).exists():
            return folder / audio
    return manifest.parent / audio


def peoples_speech(root: Path) -> Iterator[Entry]:
    """The People's Speech as MLCommons distributes it: a JSONL of documents, audio pieces under the same folder."""
    files = [root] if root.is_file() else [*root.glob("*.json"), *root.glob("*.jsonl")]
    for path in _need(files, root, "no .json manifest"):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                value = json.loads(line)
                pieces = value["training_data"]
                folder = str(value.get("audio_document_id") or value.get("identifier"))
                for name, text, length in zip(pieces["name"], pieces["label"], pieces["duration_ms"], strict=True):
                    yield Entry(
                        id=Path(name).with_suffix("").as_posix(),
                        audio=str(path.parent / name),
                        text=text,
                        seconds=length / 1000,
                        license=str(value.get("license") or "CC BY / CC BY-SA"),
                        source="peoples-speech",
                        document=folder,
                    )


def yodas(root: Path) -> Iterator[Entry]:
    """YODAS as its Hugging Face repository has it: LANG/text/*.txt, and LANG/audio/*.tar.gz unpacked where they lie.

    Subtitles are named VIDEO-NUMBER-START-END, times in hundredths of a second; neighbours in time are joined.
    """
    shards = [path for path in root.rglob("*.txt") if path.parent.name == "text"]
    shards = _need(shards, root, "no text/*.txt: not YODAS's layout")
    for language, paths in groupby(shards, lambda path: path.parent.parent):
        folders: dict[str, list[Path]] = {}
        for place, _, _ in os.walk(language / "audio"):
            folders.setdefault(Path(place).name, []).append(Path(place))
        for path in paths:
            here = {p.stem: p for place in folders.get(path.stem, []) for p in place.iterdir() if p.suffix in _AUDIO}
            chain = _Chain()
            for line in sorted(path.read_text(encoding="utf-8").splitlines()):
                name, _, text = line.partition(" ")
                video, _, *times = name.rsplit("-", 3)
                start, end = (int(time) / 100 for time in times)
                yield Entry(
                    id=name,
                    audio=str(here.get(name, language / "audio" / path.stem / f"{name}.wav")),
                    text=text.strip(),
                    seconds=end - start,
                    speaker=video,
                    license="CC BY 3.0",
                    source=f"yodas-{language.name}",
                    document=chain.name(video, start, end),
                )


def folder(root: Path) -> Iterator[Entry]:
    """Any folder of audio files with a .txt (or .lab) of the same name beside each."""
    nothing = True
    for path in _walk(root):
        if path.suffix.lower() not in _AUDIO:
            continue
        nothing = False
        texts = [path.with_suffix(ext) for ext in (".txt", ".lab") if path.with_suffix(ext).exists()]
        name = path.relative_to(root).with_suffix("").as_posix()
        parent = path.parent.name if path.parent != root else ""
        yield Entry(
            id=name,
            audio=str(path),
            text=texts[0].read_text(encoding="utf-8", errors="replace").strip() if texts else "",
            speaker=parent,
            source=root.name,
        )
    if nothing:
        raise UserError(f"{root}: no audio ({', '.join(_AUDIO)})")


def huggingface(root: Path) -> Iterator[Entry]:
    """A Hugging Face `datasets` audio set on disk (save_to_disk); embedded audio is written to ROOT/lst-audio/."""
    try:
        from datasets import Audio, DatasetDict, load_from_disk
    except ModuleNotFoundError as error:
        raise UserError("reading a Hugging Face data set needs `datasets` (pip install datasets)") from error
    try:
        loaded = load_from_disk(str(root))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{root}: not a data set written by save_to_disk ({error})") from error
    for split, rows in loaded.items() if isinstance(loaded, DatasetDict) else [("all", loaded)]:
        audio = next((name for name, kind in rows.features.items() if isinstance(kind, Audio)), None)
        text = next(
            (n for n in ("text", "sentence", "transcript", "transcription", "normalized_text") if n in rows.features),
            None,
        )
        if audio is None or text is None:
            raise UserError(f"{root}: columns {', '.join(rows.features)}: no audio, or no text column")
        for index, row in enumerate(rows.cast_column(audio, Audio(decode=False))):
            name = str(row.get("utt_id") or row.get("id") or row.get("file") or f"{split}-{index}")
            sound, path = row[audio], Path(row[audio].get("path") or "audio.wav")
            if sound.get("bytes"):
                path = root / "lst-audio" / f"{index // 10_000:04d}" / f"{split}-{index:08d}{path.suffix or '.wav'}"
                if not path.exists():
                    write_bytes(path, sound["bytes"])
            yield Entry(
                id=name,
                audio=str(path),
                text=str(row[text]),
                speaker=str(row.get("speaker_id") or row.get("speaker") or row.get("client_id") or ""),
                license=str(row.get("license") or ""),
                source=root.name,
            )


READERS: dict[str, Callable[[Path], Iterator[Entry]]] = {
    "librispeech": librispeech,
    "mls": mls,
    "libriheavy": libriheavy,
    "peoples-speech": peoples_speech,
    "yodas": yodas,
    "folder": folder,
    "huggingface": huggingface,
}


def read(kind: str, root: Path) -> Iterator[Entry]:
    """Entries of a corpus on disk.

    Raises:
        UserError: unknown kind, or another layout than that kind's; names the file that is wrong.
    """
    if kind not in READERS:
        raise UserError(f"unknown corpus {kind!r}; known: {', '.join(READERS)}")
    if not root.exists():
        raise UserError(f"{root}: no such file or folder")
    try:
        yield from READERS[kind](root)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{root}: not the layout of {kind} ({type(error).__name__}: {error})") from error
