"""Corpora that come with a manifest of their own: Libriheavy, The People's Speech, YODAS."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from lst_prep.corpora.corpus import AUDIO, Chain, Corpus
from lst_prep.manifest import Entry

_BROKEN = (KeyError, IndexError, TypeError, ValueError, AttributeError)
"""What a record of another shape raises."""


def _files(corpus: Corpus, suffixes: tuple[str, ...], what: str) -> Iterator[Path]:
    """The file that was named, or those of a folder."""
    if corpus.root.is_file():
        yield corpus.root
        return
    found = (path for path in corpus.inputs.walk(corpus.root) if path.name.lower().endswith(suffixes))
    yield from corpus.need(found, what)


def libriheavy(corpus: Corpus) -> Iterator[Entry]:
    """Libriheavy: a lhotse cut manifest (.jsonl or .jsonl.gz), or a folder of them, over LibriLight's audio.

    Audio paths are looked for as the manifest has them, relative to the manifest's folder and to its parents. What is
    behind `libriheavy_cuts_` names the split: small, medium and large train.
    """
    for path in _files(corpus, (".jsonl.gz", ".jsonl"), "no .jsonl(.gz) manifest"):
        chain, stem = Chain(), path.name.split(".")[0]
        subset = stem.removeprefix("libriheavy_cuts_")
        if subset == stem:
            split = corpus.split_of_file(stem)
        else:
            split = "train" if subset in ("small", "medium", "large") else corpus.split(subset, path)
        for where, cut in corpus.records(path):
            if "sources" in cut and "supervisions" not in cut:
                corpus.skip(path, "a manifest of recordings, not of cuts")
                break
            try:
                yield _cut(cut, path, split, chain)
            except _BROKEN as error:
                corpus.skip(where, "not a cut with one supervision", f"{type(error).__name__}: {error}")


def _cut(cut: dict[str, Any], path: Path, split: str, chain: Chain) -> Entry:
    label, recording = cut["supervisions"][0], cut["recording"]
    texts = (label.get("custom") or {}).get("texts") or [label["text"]]
    source, start = recording["sources"][0]["source"], float(cut["start"])
    end = start + float(cut["duration"])
    many = len(recording["sources"][0].get("channels") or [0]) > 1
    if not (isinstance(texts[0], str) and isinstance(cut["id"], str)):
        raise TypeError("id and text are not strings")
    return Entry(
        id=cut["id"],
        audio=str(_beside(path, source)),
        text=texts[0],
        start=start,
        end=end,
        seconds=end - start,
        speaker=str(label.get("speaker") or Path(source).parts[-3:][0]),
        license="public domain",
        source="libriheavy",
        split=split,
        document=chain.name(str(recording["id"]), start, end),
        channel=int(cut["channel"]) if many else None,
    )


def _beside(manifest: Path, audio: str) -> Path:
    for folder in manifest.parents:
        if (folder / audio).exists():
            return folder / audio
    return manifest.parent / audio


def peoples_speech(corpus: Corpus) -> Iterator[Entry]:
    """The People's Speech as MLCommons distributes it: a JSONL of documents, audio pieces under the same folder."""
    for path in _files(corpus, (".json", ".jsonl"), "no .json manifest"):
        split = corpus.split_of_file(path.name.split(".")[0])
        for where, value in corpus.records(path):
            try:
                pieces = value["training_data"]
                folder = str(value.get("audio_document_id") or value["identifier"])
                listed = list(zip(pieces["name"], pieces["label"], pieces["duration_ms"], strict=True))
            except _BROKEN as error:
                corpus.skip(where, "not a document with training_data", f"{type(error).__name__}: {error}")
                continue
            for name, text, length in listed:
                if not isinstance(name, str) or not isinstance(text, str) or not isinstance(length, int | float):
                    corpus.skip(where, "a piece without name, label or duration_ms", str(name))
                    continue
                yield Entry(
                    id=Path(name).with_suffix("").as_posix(),
                    audio=str(path.parent / name),
                    text=text,
                    seconds=length / 1000,
                    license=str(value.get("license") or "CC BY / CC BY-SA"),
                    source="peoples-speech",
                    split=split,
                    document=folder,
                )


def yodas(corpus: Corpus) -> Iterator[Entry]:
    """YODAS as its Hugging Face repository has it: LANG/text/*.txt, and LANG/audio/*.tar.gz unpacked where they lie.

    Subtitles are named VIDEO-NUMBER-START-END, times in hundredths of a second; neighbours in time are joined.
    """
    walked = corpus.inputs.walk(corpus.root, leave_out={"audio"})
    shards = (path for path in walked if path.suffix.lower() == ".txt" and path.parent.name == "text")
    found = list(corpus.need(shards, "no text/*.txt: not YODAS's layout"))
    for language, paths in groupby(found, lambda path: path.parent.parent):
        folders: dict[str, dict[str, Path]] = {}
        if (language / "audio").is_dir():
            for sound in corpus.inputs.walk(language / "audio"):
                if sound.suffix.lower() in AUDIO:
                    folders.setdefault(sound.parent.name, {})[sound.stem] = sound
        for path in paths:
            here = folders.pop(path.stem, {})
            chain = Chain()
            for where, line in sorted(corpus.lines(path), key=lambda pair: pair[1]):
                name, _, text = line.partition(" ")
                try:
                    video, _, *times = name.rsplit("-", 3)
                    start, end = (int(time) / 100 for time in times)
                except ValueError:
                    corpus.skip(where, "not VIDEO-NUMBER-START-END TEXT", line[:80])
                    continue
                if not text.strip():
                    corpus.skip(where, "a subtitle without words")
                    continue
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
