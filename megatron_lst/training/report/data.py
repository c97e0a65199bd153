"""What a run reads, made visible: a row of its stream, and held-out speech with its words and patches."""

from pathlib import Path

import numpy as np

from megatron_lst.config.schema import Config, SourceConfig
from megatron_lst.data.mixture import open_mixture, open_source
from megatron_lst.data.picture import note_tokens
from megatron_lst.data.remote import is_remote
from megatron_lst.data.stream import ChunkOrigin, Stream
from megatron_lst.documents.schema import Document
from megatron_lst.errors import LstError
from megatron_lst.inference.vocoder import SpectralVocoder
from megatron_lst.pages import Grid, GridPatch, Paragraph, Sound, Sounds
from megatron_lst.pages.blocks import Block
from megatron_lst.pages.sound import LONGEST
from megatron_lst.patching.player import speech_player
from megatron_lst.patching.row import Row
from megatron_lst.patching.strategies import ALIGNED, SINGLE, STATIC, UNPATCHED, Patcher
from megatron_lst.training.provenance import recorded_files

_ROWS = 8
"""Rows among which one with text and speech is looked for."""
_UNITS = 320
"""Units of it that are shown."""
_DOCUMENTS = 2


def _elsewhere(sources: tuple[SourceConfig, ...]) -> str:
    """Why the shards are not opened for a picture; empty: they are at hand."""
    remote = [path for source in sources for path in source.shards if is_remote(path)]
    return f"the shards are not on this machine ({remote[0]})" if remote else ""


def row_picture(config: Config | str) -> list[Block]:
    """The first units of one of the first rows."""
    if isinstance(config, str):
        return []
    if why := _elsewhere(config.data.sources):
        return [Paragraph(f"No picture of a row: {why}.")]
    try:
        stream = Stream(open_mixture(config, config.data.sources, config.streams), 0)
        for _ in range(_ROWS):
            row, origins = stream.next_row(), stream.origins
            speech = config.vocabulary.is_speech(row.tokens)
            if speech.any() and not speech.all():
                break
    except (LstError, OSError) as error:
        return [Paragraph(f"No picture of a row: {error}")]
    return [picture(row, origins, config)]


def picture(row: Row, origins: list[ChunkOrigin], config: Config) -> Grid:
    """A row as a block of a page."""
    notes = note_tokens(row, origins, config.vocabulary)
    starts = np.cumsum(row.patch_length) - row.patch_length
    patches = []
    for unit in range(min(row.units, _UNITS)):
        a, b = int(starts[unit]), int(starts[unit] + row.patch_length[unit])
        document = int(row.unit_document[unit])
        first = unit == 0 or document != int(row.unit_document[unit - 1])
        name = row.document_ids[document] if document < len(row.document_ids) else "padding"
        about = f"unit {unit}, {b - a} token{'s' if b - a > 1 else ''}, {name}"
        patches.append(GridPatch(notes.kind[a:b], " ".join(filter(None, notes.label[a:b])), first, about))
    more = f", of which the first {_UNITS} are shown" if row.units > _UNITS else ""
    return Grid(
        f"Row {row.index}: {len(row.tokens):,} tokens in {row.units:,} units{more}. A box is a unit, its cells are "
        "tokens; a bar begins a document.",
        patches,
    )


def held_out_speech(run: Path, config: Config | str, sounds: Sounds) -> list[Block]:
    """The beginning of a few held-out documents of speech, cut as in training. The sound is made of the units."""
    if isinstance(config, str):
        return []
    wanted = tuple(source for source in config.data.validation if source.kind != "text")
    if not wanted or (why := _elsewhere(wanted)):
        return [Paragraph(f"Nothing to hear: {why}.")] if wanted else []
    try:
        documents = _documents(config, wanted)
        voice: SpectralVocoder | str = _voice(run)
    except (LstError, OSError) as error:
        return [Paragraph(f"Nothing to hear: {error}")]
    how = "The sound is made of the units by spectral inversion: what they keep of the recording, without the voice."
    blocks: list[Block] = [Paragraph(f"No sound: {voice}" if isinstance(voice, str) else how)]
    rate = config.vocabulary.rate
    for document in documents:
        words, chars = document.word_frames, document.word_chars
        ids = document.speech_ids[: int(LONGEST * rate)]
        sound: Sound | str = "" if isinstance(voice, str) else sounds.add(voice(ids), voice.rate)
        depth = document.depth
        speaker = f"by {document.speaker}" if document.speaker else ""
        about = ", ".join(part for part in (speaker, document.source) if part)
        text = document.text if len(words) else document.text[:400]
        frames = len(document.speech_ids)
        cut = _patchers(config)
        blocks.append(speech_player(document.id, about, text, words, chars, frames, rate, cut, sound, depth))
    return blocks


def _documents(config: Config, sources: tuple[SourceConfig, ...]) -> list[Document]:
    found: dict[str, Document] = {}
    for source in sources:
        opened = open_source(config, source)
        for index in range(min(len(opened), 200)):
            document = opened.get(index)
            if document.has_speech:
                found.setdefault(f"{document.source} {document.speaker}", document)
    return list(found.values())[:_DOCUMENTS]


def _voice(run: Path) -> SpectralVocoder | str:
    """What makes sound of the run's units, or why nothing does."""
    codebook = recorded_files(run).get("codebook")
    if codebook is None:
        return "the run keeps no codebook"
    try:
        return SpectralVocoder.from_codebook(codebook)
    except LstError as error:
        return str(error)


def _patchers(config: Config) -> dict[str, Patcher]:
    """The strategies that the run's rows are cut by."""
    patching, strategy = config.patching, config.patching.strategy
    if config.model.kind == "baseline" or strategy in UNPATCHED:
        return {"units: every token one": Patcher(SINGLE, patching)}
    static = {f"static patches: {patching.size} tokens": Patcher(STATIC, patching)}
    aligned = {"aligned patches: words and pauses": Patcher(ALIGNED, patching)}
    if patching.granularity != "word":
        aligned = {}  # the tracks are labelled by words
    return aligned if strategy == "aligned" and aligned else static if strategy == "static" else aligned | static
