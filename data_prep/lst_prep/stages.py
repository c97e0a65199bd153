"""The work of the speech stages, one item at a time. Factories run in worker processes; see `engine`."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from lst_prep.align import AlignedWords, Aligners, Piece
from lst_prep.config import PrepConfig
from lst_prep.cutting import Cutter
from lst_prep.decoding import Decoder
from lst_prep.devices import decode_threads
from lst_prep.items import MODEL_SECONDS, AheadWork, Receipts, Stopwatch, Work
from lst_prep.join import AlignedPiece, documents
from lst_prep.languages import is_unspaced
from lst_prep.layout import Layout
from lst_prep.loading import Rejections, all_unread, batches, fault, is_of_the_piece, one_by_one, only_here
from lst_prep.manifest import Entry
from lst_prep.models import open_tokenizer
from lst_prep.parts import Parts, SetTotals
from lst_prep.reading import CannotRead, Inputs
from lst_prep.rejection import Rejection
from lst_prep.strings import printable
from lst_prep.transcript import check_rate, words_of
from lst_prep.units import Codebook, Extractor, make_extractor
from lst_prep.units.codebook import agreement
from lst_prep.units.extractor import NeuralExtractor
from megatron_lst.documents.heldout import HeldOut
from megatron_lst.errors import DamagedDataError
from megatron_lst.files import write_bytes


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, int]:
    """Write an .npz atomically. Returns {path: size} for the receipt."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())
    return {str(path): buffer.tell()}


def cut_factory(config: PrepConfig) -> Work:
    """Recordings -> pieces. Writes one .jsonl an item, one manifest entry a line."""
    layout, cutter = Layout(config.out), Cutter(config)

    def work(item: int) -> dict[str, Any]:
        rejections, seconds, inputs = Rejections(), 0.0, layout.inputs(config)
        pieces: list[Entry] = []
        cutter.asked = None
        entries = [entry for _, entry in layout.recordings.read(item)]
        for place, entry in enumerate(entries):
            try:
                if inputs.is_given_up(entry.id, entry.audio):
                    raise Rejection("given_up", entry.audio)
                found = list(cutter.cut(entry, inputs))
            except CannotRead as error:
                raise all_unread(error, entries[place + 1 :], inputs) from error
            except Rejection as rejection:
                rejections.add(entry.id, entry.source, rejection)
                continue
            except Exception as error:
                if not is_of_the_piece(error):
                    raise
                rejections.add(entry.id, entry.source, fault(error))
                continue
            pieces += found
            seconds += sum(piece.seconds or 0.0 for piece in found)
        content = "".join(json.dumps(asdict(piece)) + "\n" for piece in pieces).encode()
        path = layout.item("cut", item, ".jsonl")
        write_bytes(path, content)
        return {
            "files": {str(path): len(content)},
            "audio_seconds": seconds,
            "rejections": rejections.all,
            "files_read": inputs.tried,
            "aligner": cutter.asked,
        }

    return work


def cut_pieces(layout: Layout, items: int) -> Iterator[Entry]:
    """What the items of the `cut` stage wrote, in order."""
    for item in range(items):
        for line in Inputs().read_bytes(layout.item("cut", item, ".jsonl")).splitlines():
            yield Entry(**json.loads(line))


_COMPARED_ITEMS = 4
"""Items whose first piece is coded in fp32, too, where units are made in a lower precision."""


def units_factory(config: PrepConfig) -> Work:
    """Audio -> units. Writes one .npz an item: `lines` int64 [n], `lengths` int64 [n], `units` int16 [sum]."""
    layout, extractor = Layout(config.out), make_extractor(config.units)
    codebook = Codebook.load(layout.codebook)
    codebook.require(extractor)
    threads = decode_threads(config.jobs.decode_threads, config.neural_units, config.units.device)
    decoder = Decoder(layout, config, HeldOut.load(layout.heldout), threads)

    def work(item: int) -> dict[str, Any]:
        lines, units, rejections = list[int](), list[np.ndarray](), Rejections()
        changes: Counter[str] = Counter()
        seconds, compared, inputs, model = 0.0, dict[str, Any](), layout.inputs(config), Stopwatch()

        def encode(pieces: list[np.ndarray]) -> list[np.ndarray]:
            return codebook.units(extractor, pieces)

        for batch in batches(decoder.pieces(item, rejections, inputs)):
            pieces = []
            for line, entry, sound in batch:
                if len(sound.samples) < config.units.frame_samples:
                    rejections.add(entry.id, entry.source, Rejection("too_short", f"{sound.seconds:.3f} s"))
                else:
                    pieces.append((line, entry, sound))
            with model:
                if pieces and not units and item < _COMPARED_ITEMS:
                    compared = _compare(extractor, codebook, [pieces[0][2].samples])
                found = one_by_one(encode, [sound.samples for *_, sound in pieces])
            for (line, entry, sound), made in zip(pieces, found, strict=True):
                if isinstance(made, Rejection):
                    rejections.add(entry.id, entry.source, made)
                    continue
                lines.append(line)
                units.append(made)
                changes.update(sound.changes)
                seconds += sound.seconds
        files = save_arrays(
            layout.item("units", item, ".npz"),
            {
                "lines": np.array(lines, np.int64),
                "lengths": np.array([len(u) for u in units], np.int64),
                "units": np.concatenate(units) if units else np.zeros(0, np.int16),
            },
        )
        return {
            "files": files,
            "audio_seconds": seconds,
            "pieces": len(units),
            "codebook": codebook.fingerprint,
            "changes": dict(changes),
            "rejections": rejections.all,
            "files_read": inputs.tried,
            **compared,
            MODEL_SECONDS: model.seconds,
        }

    return AheadWork(work, decoder.expect, decoder.end, decoder.close)


def _compare(extractor: Extractor, codebook: Codebook, pieces: list[np.ndarray]) -> dict[str, Any]:
    """How far units of a lower precision are those of fp32, for receipt, progress and report; {} in fp32."""
    if not isinstance(extractor, NeuralExtractor) or extractor.exact:
        return {}
    alike, units = agreement(extractor, codebook, pieces)
    return {"like_fp32": [alike, units], "note": f"{alike / max(units, 1):.1%} of {units} units as in fp32"}


def align_factory(config: PrepConfig, plan: str) -> Work:
    """Audio + transcript -> word times. Writes one .npz an item, words of all pieces end to end."""
    layout, aligners = Layout(config.out), Aligners(config.align)
    least = config.align.min_score
    threads = decode_threads(config.jobs.decode_threads, config.neural_alignment, config.align.device)
    decoder = Decoder(layout, config, HeldOut.load(layout.heldout), threads)
    receipts = Receipts(layout.work, "units", plan)

    def work(item: int) -> dict[str, Any]:
        rejections, seconds, inputs, model = Rejections(), 0.0, layout.inputs(config), Stopwatch()
        unloaded = Rejections()
        lines: list[int] = []
        found: list[AlignedWords] = []
        for batch in batches(decoder.pieces(item, unloaded, inputs)):
            wanted = []
            for line, entry, sound in batch:
                seconds += sound.seconds
                language = config.language_of(entry.source, entry.language)
                words = words_of(entry, config)
                try:
                    check_rate(words, sound.seconds, config.align.max_words_per_second)
                except Rejection as rejection:
                    rejections.add(entry.id, entry.source, rejection)
                else:
                    wanted.append((line, entry, Piece(sound.samples, words, language, entry, inputs)))
            with model:
                aligned = one_by_one(aligners.align_batch, [piece for *_, piece in wanted])
            for (line, entry, _), result in zip(wanted, aligned, strict=True):
                if not isinstance(result, Rejection) and (score := float(result.scores.mean())) < least:
                    result = Rejection("low_score", f"{score:.2f}")
                if isinstance(result, Rejection):
                    rejections.add(entry.id, entry.source, result)
                else:
                    lines.append(line)
                    found.append(result)
        rejections.all += only_here(unloaded.all, receipts.read(item))
        files = save_arrays(
            layout.item("align", item, ".npz"),
            {
                "lines": np.array(lines, np.int64),
                "words": np.array([len(a.scores) for a in found], np.int64),
                "seconds": np.concatenate([a.seconds for a in found]) if found else np.zeros((0, 2)),
                "scores": np.concatenate([a.scores for a in found]) if found else np.zeros(0, np.float32),
                "chars": np.concatenate([a.chars for a in found]) if found else np.zeros((0, 2), np.int32),
                "letters": np.concatenate([a.letters for a in found]) if found else np.zeros(0),
                "letter_counts": np.concatenate([a.letter_counts for a in found]) if found else np.zeros(0, np.int32),
            },
        )
        return {
            "files": files,
            "audio_seconds": seconds,
            "pieces": len(found),
            "rejections": rejections.all,
            "files_read": inputs.tried,
            "aligner": aligners.fingerprint,
            MODEL_SECONDS: model.seconds,
        }

    return AheadWork(work, decoder.expect, decoder.end, decoder.close)


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(Inputs().read_bytes(path)), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def item_pieces(layout: Layout, item: int, plan: str) -> Iterator[tuple[str, list[AlignedPiece | None]]]:
    """(recording, its pieces) of one item; None for pieces without units or alignment.

    Raises:
        DamagedDataError: a piece that no stage has and none has rejected: its audio was another thing for each.
    """
    counted = set[str]()
    for stage in ("units", "align"):
        result = Receipts(layout.work, stage, plan).read(item)
        counted |= {line["id"] for line in result["rejections"]} if result else set()
    units, align = arrays(layout.item("units", item, ".npz")), arrays(layout.item("align", item, ".npz"))
    unit_ends, word_ends = np.cumsum(units["lengths"]), np.cumsum(align["words"])
    unit_of = {int(line): i for i, line in enumerate(units["lines"])}
    word_of = {int(line): i for i, line in enumerate(align["lines"])}
    for recording, group in groupby(layout.pieces.read(item), key=lambda pair: pair[1].recording):
        pieces: list[AlignedPiece | None] = []
        for line, entry in group:
            u, w = unit_of.get(line), word_of.get(line)
            if u is None or w is None:
                if printable(entry.id) not in counted:
                    lacking = "units" if u is None else "align"
                    raise DamagedDataError(
                        f"item {item}: stage {lacking} neither made nor rejected piece {entry.id!r}: its audio changed "
                        f"between the stages. Remove {layout.item('units', item, '.npz')} and "
                        f"{layout.item('align', item, '.npz')}, and run `lst prep units` and `lst prep align` again"
                    )
                pieces.append(None)
                continue
            words = slice(word_ends[w] - align["words"][w], word_ends[w])
            pieces.append(
                AlignedPiece(
                    entry,
                    units["units"][unit_ends[u] - units["lengths"][u] : unit_ends[u]],
                    AlignedWords(
                        align["seconds"][words],
                        align["scores"][words],
                        align["chars"][words],
                        *_letters(align, words),
                    ),
                )
            )
        yield recording, pieces


def _letters(align: dict[str, np.ndarray], words: slice) -> tuple[np.ndarray, ...]:
    """Times of the letters of some words, and how many each word has; () where the aligner gave none."""
    counts = align["letter_counts"]
    if not len(counts):
        return ()
    ends = np.concatenate([[0], np.cumsum(counts)])
    return align["letters"][ends[words.start] : ends[words.stop]], counts[words]


def _without_held_out(
    pieces: list[AlignedPiece | None], heldout: HeldOut, rejections: Rejections
) -> Iterator[AlignedPiece | None]:
    """The pieces of a recording without those that are held out only together with their neighbours, when they are
    joined: a sentence that goes on in the next piece."""
    texts = [piece.entry.text if piece is not None else "\n" for piece in pieces]
    spans = heldout.spans(" ".join(texts))
    at = 0
    for piece, text in zip(pieces, texts, strict=True):
        inside = any(begin < at + len(text) and at < end for begin, end in spans)
        at += len(text) + 1
        if piece is not None and inside:
            rejections.add(piece.entry.id, piece.entry.source, Rejection("held_out", "together with its neighbour"))
        yield None if inside else piece


def speech_shards_factory(config: PrepConfig, groups: list[tuple[int, int]], plan: str) -> Work:
    """Units + words -> documents -> one part of `speech` and of `heldout-speech` for each group of items."""
    layout = Layout(config.out)
    tokenizer = open_tokenizer(layout, config)
    codec, heldout = Codebook.load(layout.codebook).codec, HeldOut.load(layout.heldout)

    def work(group: int) -> dict[str, Any]:
        parts, rejections, stats = Parts(layout, config.shards, group, codec), Rejections(), SetTotals(codec)
        used: Counter[str] = Counter()
        for item in range(*groups[group]):
            for recording, pieces in item_pieces(layout, item, plan):
                entry = next((piece.entry for piece in pieces if piece is not None), None)
                if entry is None:
                    continue
                if entry.split == "train":
                    pieces = list(_without_held_out(pieces, heldout, rejections))
                used.update(piece.entry.source for piece in pieces if piece is not None)
                try:
                    language = config.language_of(entry.source, entry.language)
                    between = "" if is_unspaced(language) else " "
                    timed = config.align.of(language).aligner != "none"
                    longest = config.shards.max_document_seconds
                    made = list(documents(pieces, tokenizer, longest, codec.rate, between, timed))
                except Rejection as rejection:
                    rejections.add(recording, entry.source, rejection)
                    continue
                for document in made:
                    name = "speech" if entry.split == "train" else "heldout-speech"
                    if name == "speech" and heldout.find(document.text):  # by a cut inside a sentence
                        rejections.add(document.id, entry.source, Rejection("held_out"))
                        continue
                    parts.add(name, document, codec.size, tokenizer.info.size)
                    stats.add(name, document, language)
        files = parts.finish()
        return {
            "files": files,
            "counts": parts.counts,
            "rejections": rejections.all,
            "sources": stats.sources,
            "licenses": stats.licenses,
            "languages": stats.languages,
            "used": dict(used),
        }

    return work
