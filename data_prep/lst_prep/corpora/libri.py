"""LibriSpeech and Multilingual LibriSpeech."""

import io
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

from lst_prep.corpora.corpus import AUDIO, Chain, Corpus
from lst_prep.manifest import Entry


def librispeech(corpus: Corpus) -> Iterator[Entry]:
    """LibriSpeech, and any corpus of its layout: [SPLIT/]SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt beside .flac."""
    found = (path for path in corpus.inputs.walk(corpus.root) if path.name.endswith(".trans.txt"))
    for path in corpus.need(found, "no *.trans.txt: not LibriSpeech's layout"):
        above = path.relative_to(corpus.root).parts[:-3]  # behind it: speaker, chapter, file
        split = corpus.split_of_folder(corpus.root.joinpath(*above))
        for where, line in corpus.lines(path):
            name, _, text = line.partition(" ")
            if name.count("-") < 2 or not text.strip():
                corpus.skip(where, "not SPEAKER-CHAPTER-NUMBER TEXT", line[:80])
                continue
            yield Entry(
                id=name,
                audio=str(path.parent / f"{name}.flac"),
                text=text.strip().lower(),
                speaker=name.split("-")[0],
                license="CC BY 4.0",
                source="librispeech",
                split=split,
                document=name.rsplit("-", 1)[0],
            )


class _Books:
    """Lines SPEAKER_BOOK_NUMBER<TAB>... of a file, in any order: one book at a time is held, and 8 bytes a line.

    Args:
        corpus: what the file belongs to; takes the lines that are not like that.
        path: the file; None: there are no lines.
    """

    def __init__(self, corpus: Corpus, path: Path | None) -> None:
        self._corpus, self._path = corpus, path
        self._lines: dict[str, array[int]] = {}
        at = 0
        with corpus.inputs.open(path) if path else io.BytesIO() as file:
            for number, line in enumerate(file, start=1):
                start = 3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0
                if (book := self._book(line[start:], number)) is not None:
                    self._lines.setdefault(book, array("q")).append(at + start)
                at += len(line)

    def _book(self, line: bytes, number: int) -> str | None:
        where = f"{self._path}:{number}"
        name, tab, _ = line.partition(b"\t")
        try:
            line.decode()
        except UnicodeDecodeError as error:
            self._corpus.skip(where, "not UTF-8", str(error))
            return None
        if not line.strip():
            self._corpus.skip(where, "a blank line")
        elif not tab or name.count(b"_") != 2:
            self._corpus.skip(where, "not SPEAKER_BOOK_NUMBER<TAB>...", line[:80].decode(errors="replace").strip())
        else:
            return name.rpartition(b"_")[0].decode()
        return None

    def __iter__(self) -> Iterator[str]:
        """SPEAKER_BOOK of each book, sorted."""
        return iter(sorted(self._lines))

    def read(self, book: str) -> dict[str, str]:
        """Name -> what follows it, for each line of one book."""
        found: dict[str, str] = {}
        if book in self._lines:
            assert self._path is not None, "lines come from a file"
            with self._corpus.inputs.open(self._path) as file:
                for at in self._lines[book]:
                    file.seek(at)
                    name, _, rest = file.readline().decode().rstrip("\r\n").partition("\t")
                    found[name] = rest
        return found


def mls(corpus: Corpus) -> Iterator[Entry]:
    """Multilingual LibriSpeech, one language: SPLIT/transcripts.txt, segments.txt and audio/SPEAKER/BOOK/.

    English has 10.8 million pieces in one split: neither their texts are held together, nor is each looked for alone.
    """
    walked = corpus.inputs.walk(corpus.root, leave_out={"audio"})  # a folder a book
    found = (path.parent for path in walked if path.name == "transcripts.txt")
    for split in corpus.need(found, "no transcripts.txt: not MLS's layout"):
        use, segments = corpus.split_of_folder(split), split / "segments.txt"
        transcripts = _Books(corpus, split / "transcripts.txt")
        times = _Books(corpus, segments if segments.exists() else None)
        chain = Chain()
        for origin in transcripts:
            speaker, book = origin.split("_")
            folder = split / "audio" / speaker / book
            there = {name for name, _ in corpus.inputs.entries(folder)} if folder.is_dir() else set[str]()
            spans = {name: span for name, rest in times.read(origin).items() if (span := _span(corpus, name, rest))}
            texts = transcripts.read(origin)
            for name in sorted(texts, key=lambda n: (spans.get(n, ("", 0.0, 0.0)), n)):
                url, begin, stop = spans.get(name, ("", 0.0, 0.0))
                audio = next((name + suffix for suffix in AUDIO if name + suffix in there), f"{name}.flac")
                chapter = os.path.splitext(os.path.basename(url))[0]  # pathlib would intern millions of names
                yield Entry(
                    id=name,
                    audio=os.path.join(folder, audio),
                    text=texts[name],
                    speaker=speaker,
                    license="CC BY 4.0",
                    source="mls",
                    split=use,
                    document=chain.name(f"{origin}_{chapter}", begin, stop) if url else "",
                )


def _span(corpus: Corpus, name: str, rest: str) -> tuple[str, float, float] | None:
    """(url, start s, end s) of a piece; None: its line is not like that, and it is joined to no other."""
    try:
        url, start, end = rest.split("\t")[:3]
        return url, float(start), float(end)
    except ValueError:
        corpus.skip(f"segments.txt, {name}", "not URL<TAB>START<TAB>END: the piece is joined to no other", rest[:80])
        return None
