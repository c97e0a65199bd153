"""Corpora whose transcripts stand in one table: Mozilla Common Voice, and LJSpeech and what is laid out like it."""

import os
from collections.abc import Iterator
from pathlib import Path

from lst_prep.corpora.corpus import AUDIO, Corpus
from lst_prep.languages.tags import language_tag
from lst_prep.manifest import Entry
from lst_prep.strings import printable
from megatron_lst.errors import UserError

_HELD_OUT = ("dev", "test")


def common_voice(corpus: Corpus) -> Iterator[Entry]:
    """Common Voice, one language or a folder of several: validated.tsv (or train.tsv), dev.tsv, test.tsv beside clips/.

    dev and test are held out. What else was validated trains, but for clips of speakers of dev and test: these hold
    speakers that training never hears. invalidated.tsv and other.tsv, which nobody vouches for, are not read.
    """
    walked = corpus.inputs.walk(corpus.root, leave_out={"clips"})
    found = sorted({path.parent for path in walked if path.name in ("validated.tsv", "train.tsv")})
    for folder in corpus.need(iter(found), "no validated.tsv or train.tsv: not Common Voice's layout"):
        if not (folder / "clips").is_dir():
            corpus.skip(folder, "a language without its clips/")
            continue
        held_clips, held_speakers = set[str](), set[str]()
        for name in _HELD_OUT:
            if (folder / f"{name}.tsv").exists():
                for _, entry in _rows(corpus, folder, name):
                    held_clips.add(entry.id)
                    held_speakers.add(entry.speaker)
                    yield entry
        held_speakers.discard("")
        trained = "validated" if (folder / "validated.tsv").exists() else "train"
        for where, entry in _rows(corpus, folder, trained):
            if entry.id in held_clips:
                continue
            if entry.speaker in held_speakers:
                corpus.skip(where, "a speaker of dev or test", entry.speaker)
            else:
                yield entry


def _rows(corpus: Corpus, folder: Path, name: str) -> Iterator[tuple[str, Entry]]:
    """(`file:line`, entry) of each good row of a table. Quotation marks are text: nothing is quoted in these files."""
    columns: dict[str, int] | None = None
    for where, line in corpus.lines(folder / f"{name}.tsv"):
        cells = line.split("\t")
        if columns is None:
            columns = {cell: index for index, cell in enumerate(cells)}
            if missing := {"client_id", "path", "sentence"} - set(columns):
                corpus.skip(where, "a table without Common Voice's columns", ", ".join(sorted(missing)))
                return
            continue
        if len(cells) != len(columns):
            corpus.skip(where, "not as many columns as the first line", f"{len(cells)} of {len(columns)}")
            continue
        clip, text = cells[columns["path"]], cells[columns["sentence"]].strip()
        stem, suffix = os.path.splitext(clip)
        if os.path.basename(clip) != clip or suffix.lower() not in AUDIO:
            corpus.skip(where, "not the name of a clip", clip[:80])
        elif not text:
            corpus.skip(where, "no sentence", clip)
        elif not (audio := folder / "clips" / clip).exists():
            corpus.skip(where, "no such clip", clip)
        else:
            locale = cells[columns["locale"]] if "locale" in columns else ""
            yield (
                where,
                Entry(
                    id=stem,
                    audio=str(audio),
                    text=text,
                    speaker=cells[columns["client_id"]],
                    license="CC0 1.0",
                    source=f"common-voice-{locale or folder.name}",
                    split="heldout" if name in _HELD_OUT else "train",
                    language=language_tag(locale or folder.name) or "",
                ),
            )


def ljspeech(corpus: Corpus) -> Iterator[Entry]:
    """LJSpeech, and any corpus of its layout: metadata.csv with lines ID|TEXT or ID|TEXT|NORMALISED TEXT beside wavs/.

    What is normalised is taken where it is there. Nothing says which pieces follow each other, so none are joined.
    """
    table, folder = corpus.root / "metadata.csv", corpus.root / "wavs"
    for path in (table, folder):
        if not path.exists():
            raise UserError(f"{corpus.root}: no {path.name}: not LJSpeech's layout")
    there = {os.path.splitext(name)[0]: name for name, _ in corpus.inputs.entries(folder) if _is_audio(name)}
    for where, line in corpus.lines(table):
        name, *texts = (cell.strip() for cell in line.split("|"))
        text = next((text for text in reversed(texts) if text), "")
        name = name.removesuffix(".wav")
        if len(texts) not in (1, 2) or not name:
            corpus.skip(where, "not ID|TEXT or ID|TEXT|NORMALISED TEXT", line[:80])
        elif not text:
            corpus.skip(where, "no text", name)
        elif name not in there:
            corpus.skip(where, "no audio of that name in wavs/", name)
        else:
            audio = os.path.join(folder, there[name])
            yield Entry(id=printable(f"{corpus.name}/{name}"), audio=audio, text=text, source=corpus.name)


def _is_audio(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in AUDIO
