"""Any folder of audio files with a text of the same name beside each."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lst_prep.corpora.corpus import AUDIO, Corpus
from lst_prep.manifest import Entry
from lst_prep.strings import printable
from lst_prep.text_lines import open_text, utf8_fault
from megatron_lst.errors import UserError

_TEXTS = (".txt", ".lab")


def folder(corpus: Corpus) -> Iterator[Entry]:
    """Any folder of audio files with a .txt (or .lab) of the same name beside each; what else lies there is skipped.

    Ids begin with the corpus' name, for the same file names occur in many folders.
    """
    nothing = True
    for place, names in _folders(corpus):
        texts = {os.path.splitext(n)[0]: n for n in reversed(names) if os.path.splitext(n)[1].lower() in _TEXTS}
        sounds = [name for name in names if os.path.splitext(name)[1].lower() in AUDIO]
        stems = Counter(os.path.splitext(name)[0] for name in sounds)
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() not in (*AUDIO, *_TEXTS):
                corpus.skip(place / name, f"no audio that libsndfile reads: {printable(suffix.lower()) or 'no suffix'}")
            elif suffix.lower() in _TEXTS and stem not in stems:
                corpus.skip(place / name, "a text without audio of its name")
        for name in sounds:
            nothing, stem = False, os.path.splitext(name)[0]
            inside = (place / (stem if stems[stem] == 1 else name)).relative_to(corpus.root).as_posix()
            text = _transcript(corpus, place / texts[stem]) if stem in texts else ""
            if text is not None:
                yield Entry(
                    id=printable(f"{corpus.name}/{inside}"),
                    audio=str(place / name),
                    text=text,
                    speaker=printable(place.name) if place != corpus.root else "",
                    source=corpus.name,
                )
    if nothing:
        raise UserError(f"{corpus.root}: no audio ({', '.join(AUDIO)})")


def _folders(corpus: Corpus) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of its files) of each folder, in the order of sorted paths."""
    place, names = None, list[str]()
    for path in corpus.inputs.walk(corpus.root):
        if place is not None and path.parent != place:
            yield place, names
            names = []
        place = path.parent
        names.append(path.name)
    if place is not None:
        yield place, names


def _transcript(corpus: Corpus, path: Path) -> str | None:
    """The words; None: they are of another encoding, and the piece is skipped."""
    with open_text(path, corpus.inputs) as file:
        text = file.read()
    if (fault := utf8_fault(text)) is not None:
        corpus.skip(path, "not UTF-8", fault)
        return None
    return text.strip()
