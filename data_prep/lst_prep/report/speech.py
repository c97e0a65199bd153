"""Speech on a preparation's page: numbers and histograms of each source, and aligned pieces to look at and hear."""

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from lst_prep.items import Receipts
from lst_prep.join import AlignedPiece, words_in_frames
from lst_prep.report.listening import clip
from lst_prep.report.state import State
from lst_prep.stages import item_pieces
from lst_prep.units import Codebook
from megatron_lst.config.schema import PatchingConfig
from megatron_lst.documents.format import MANIFEST
from megatron_lst.documents.schema import Document
from megatron_lst.documents.shards import ShardSet
from megatron_lst.pages import Charts, Paragraph, Player, Section, Sounds, histogram
from megatron_lst.pages.blocks import Block
from megatron_lst.patching.player import speech_player
from megatron_lst.patching.strategies import ALIGNED, STATIC, Patcher

_SAMPLE = 2000
"""Documents of each set that histograms and examples are drawn from."""
_EXAMPLES, _PLAYERS = 3, 24
"""Aligned pieces shown of each source, and of all of them, but one of each at least."""
_ITEMS = 64
"""Items of work that they are looked for in."""
_LONGEST = 40
"""Frames; longer words and pauses are counted in the last bar."""


def speech_sections(state: State, sounds: Sounds) -> list[Section]:
    """A section for each source of each set of speech; of what has no shards yet, aligned pieces alone."""
    pieces = aligned_pieces(state)
    sections: list[Section] = []
    for name in state.summary["sets"]:
        if (state.layout.out / name / MANIFEST).exists():
            shards = ShardSet.open(state.layout.out / name)
            if shards.codec is not None:
                sections += _of_set(name, shards, pieces, sounds)
    for (name, source), found in pieces.items():
        players: list[Block] = [_player(piece, rate, sounds) for piece, rate in found]
        sections.append(Section(_heading(name, source), [Paragraph("Pieces that are aligned so far."), *players]))
    return sections


def _of_set(
    name: str, shards: ShardSet, pieces: dict[tuple[str, str], list[tuple[AlignedPiece, Fraction]]], sounds: Sounds
) -> Iterator[Section]:
    """Takes the pieces that it shows out of `pieces`."""
    assert shards.codec is not None, "a set of speech"
    by_source: dict[str, list[Document]] = {}
    for index in _sample(len(shards)):
        document = shards.get(index)
        by_source.setdefault(document.source, []).append(document)
    for source, documents in sorted(by_source.items(), key=lambda pair: -len(pair[1])):
        blocks = _numbers(documents, float(shards.codec.rate))
        found = pieces.pop((name, source), [])
        blocks += [_player(piece, rate, sounds) for piece, rate in found]
        if not found:
            chosen = documents[:: max(len(documents) // _EXAMPLES, 1)][:_EXAMPLES]
            blocks += [_silent_player(document, shards.codec.rate) for document in chosen]
        yield Section(_heading(name, source), blocks)


def _heading(name: str, source: str) -> str:
    return f"{name}, {source or 'no source'}"


def _sample(documents: int) -> list[int]:
    """Evenly spread document numbers."""
    return [int(i) for i in np.unique(np.linspace(0, documents - 1, min(_SAMPLE, documents)).astype(int))]


def _numbers(documents: list[Document], rate: float) -> list[Block]:
    """What a source's speech is like. Documents whose words have no times have no histograms."""
    used = np.bincount(np.concatenate([d.speech_ids.ravel() for d in documents]))
    shares = used[used > 0] / used.sum()
    perplexity = float(np.exp(-(shares * np.log(shares)).sum()))
    entries = f"{(used > 0).sum()} codebook entries occur, perplexity {perplexity:.0f}."
    looked_at = f"{len(documents):,} documents looked at."
    aligned = [d for d in documents if len(d.word_frames)]
    if not aligned:
        return [Paragraph(f"{looked_at} Words have no times here. {entries}")]
    words = np.concatenate([np.diff(d.word_frames, axis=1)[:, 0] for d in aligned])
    pauses = np.concatenate([_pauses(d) for d in aligned])
    scores = np.concatenate([d.word_scores for d in aligned])
    rates = np.array([len(d.word_frames) * rate / len(d.speech_ids) for d in aligned])
    frames = np.arange(0.5, _LONGEST + 1).tolist()  # one bar a frame, centred on it
    label = f"frames of {1000 / rate:g} ms, {_LONGEST} or more in the last"
    pause = pauses.mean() if len(pauses) else 0
    return [
        Paragraph(
            f"{looked_at} Words last {words.mean():.1f} frames on average, pauses {pause:.1f} (SPEC: 5.8 and 3.7); a "
            f"word with its pause {(words.sum() + pauses.sum()) / len(words):.1f} (9.4). {entries}"
        ),
        Charts(
            [
                histogram(words.clip(max=_LONGEST), frames, "Word patches", label),
                histogram(pauses.clip(max=_LONGEST), frames, "Pause patches", label),
                histogram(scores[np.isfinite(scores)], 40, "Alignment score of words", "log-probability a frame"),
                histogram(rates, min(20, max(len(rates) // 3, 5)), "Speaking rate of documents", "words a second"),
            ]
        ),
    ]


def _pauses(document: Document) -> np.ndarray:
    """Lengths in frames of the silences of a document, leading and trailing ones included."""
    spans = document.word_frames
    edges = np.concatenate([[0], spans.ravel(), [len(document.speech_ids)]])
    pauses = np.diff(edges)[::2]
    return pauses[pauses > 0]


def aligned_pieces(state: State) -> dict[tuple[str, str], list[tuple[AlignedPiece, Fraction]]]:
    """(set, source) -> a few pieces that have units and words, from items spread over the preparation; and the rate of
    their units. None where the work of the stages is not there (any more)."""
    layout, plan = state.layout, state.fingerprint
    if state.imported or not layout.pieces.items.exists() or not layout.codebook.exists():
        return {}
    rate = Codebook.load(layout.codebook).codec.rate
    units, align = (Receipts(layout.work, stage, plan) for stage in ("units", "align"))
    found: dict[tuple[str, str], list[tuple[AlignedPiece, Fraction]]] = {}
    items = len(layout.pieces)
    for item in np.unique(np.linspace(0, items - 1, min(items, _ITEMS)).astype(int)).tolist():
        if units.read(item) is None or align.read(item) is None:
            continue
        for _, recording in item_pieces(layout, item, plan):
            for piece in recording[:1]:
                if piece is not None:
                    name = "speech" if piece.entry.split == "train" else "heldout-speech"
                    found.setdefault((name, piece.entry.source), []).append((piece, rate))
    each = max(1, min(_EXAMPLES, _PLAYERS // max(len(found), 1)))
    return {key: pieces[:: max(len(pieces) // each, 1)][:each] for key, pieces in sorted(found.items())}


_PATCHERS = {
    "patches of the aligned strategy: words and pauses": Patcher(ALIGNED, PatchingConfig()),
    f"patches of the static strategy: {PatchingConfig().size} frames": Patcher(STATIC, PatchingConfig()),
}


def _about(speaker: str, source: str) -> str:
    return ", ".join(part for part in (f"by {speaker}" if speaker else "", source) if part)


def _player(piece: AlignedPiece, rate: Fraction, sounds: Sounds) -> Player:
    entry, frames = piece.entry, len(piece.speech_ids)
    words, chars, _, _ = words_in_frames(piece.aligned, frames, rate)
    about = _about(entry.speaker, entry.source)
    return speech_player(entry.id, about, entry.text, words, chars, frames, rate, _PATCHERS, clip(entry, sounds))


def _silent_player(document: Document, rate: Fraction) -> Player:
    """Of shards alone: they hold no sound."""
    words, chars = document.word_frames, document.word_chars
    about, frames = _about(document.speaker, document.source), len(document.speech_ids)
    why = "No sound: it is not in shards."
    text = document.text[:400]
    return speech_player(document.id, about, text, words, chars, frames, rate, _PATCHERS, why, document.depth)
