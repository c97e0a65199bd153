"""Readers of the corpora that people have: each walks one layout on disk and gives manifest entries.

Consecutive pieces of one recording, chapter or book share a `document`, so that they are joined again (SPEC 7). Where a
corpus says when its pieces begin and end, only pieces that follow each other without a gap are joined. Official splits
for tests are held out. A line that is bad is skipped, named and counted; a file that cannot be read now is waited for.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from lst_prep.corpora.corpus import Corpus, Skipped
from lst_prep.corpora.folders import folder
from lst_prep.corpora.huggingface import huggingface
from lst_prep.corpora.libri import librispeech, mls
from lst_prep.corpora.manifests import libriheavy, peoples_speech, yodas
from lst_prep.corpora.tables import common_voice, ljspeech
from lst_prep.manifest import Entry
from megatron_lst.errors import UserError

__all__ = ["READERS", "Corpus", "Skipped", "read"]

READERS: dict[str, Callable[[Corpus], Iterator[Entry]]] = {
    "librispeech": librispeech,
    "mls": mls,
    "libriheavy": libriheavy,
    "peoples-speech": peoples_speech,
    "yodas": yodas,
    "common-voice": common_voice,
    "ljspeech": ljspeech,
    "folder": folder,
    "huggingface": huggingface,
}

_FOLDERS = ("librispeech", "mls", "yodas", "folder")
"""Readers of folders alone; the others read a single file, too."""


def read(kind: str, corpus: Corpus) -> Iterator[Entry]:
    """Entries of a corpus on disk.

    Raises:
        UserError: unknown kind, another layout than that kind's, an unknown split, or no piece that is any good.
        CannotRead: a file or folder of it cannot be read now.
    """
    if kind not in READERS:
        raise UserError(f"unknown corpus {kind!r}; known: {', '.join(READERS)}")
    if not corpus.root.exists():
        raise UserError(f"{corpus.root}: no such file or folder; the current folder is {Path.cwd()}")
    if kind in _FOLDERS and not corpus.root.is_dir():
        raise UserError(f"{corpus.root}: a file; --from {kind} takes the folder of the corpus: {corpus.root.parent}")
    count = 0
    for entry in READERS[kind](corpus):
        count += 1
        yield entry
    if not count:
        why, example = next(iter(corpus.skipped.examples.items()), ("nothing was found", ""))
        raise UserError(f"{corpus.root}: not the layout of {kind}: no piece of it can be used; {why}: {example}")
