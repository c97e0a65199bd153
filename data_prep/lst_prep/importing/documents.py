"""Records -> documents: one recording's records are its segments (SPEC 7), or its words where their times are known."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lst_prep.align.spans import to_frames
from lst_prep.importing.checks import check_rate, codes_of, repeat
from lst_prep.importing.config import CheckConfig, ImportSource
from lst_prep.importing.records import Record
from lst_prep.manifest import is_unicode
from lst_prep.places import AnyPath
from lst_prep.reading import Inputs
from lst_prep.rejection import Rejection
from lst_prep.splits import split_of
from lst_prep.tokenizer import Tokenizer, encode_words
from megatron_lst.documents.codec import Codec
from megatron_lst.documents.schema import Document
from megatron_lst.vocabulary import rate_text


@dataclass(frozen=True)
class Spoken:
    """A stretch of text with its times: a word, or a segment. Seconds count from the record's begin."""

    text: str
    begin: float
    end: float


@dataclass(frozen=True)
class Sample:
    """A record that is well: ids of its frames (see `Codec.ids`), and what is said in them.

    Attributes:
        words, segments: with times; a record with text and neither is one segment. Both empty: no transcript.
    """

    id: str
    ids: np.ndarray
    text: str
    words: tuple[Spoken, ...]
    segments: tuple[Spoken, ...]
    speaker: str
    license: str
    split: str
    recording: str
    start: float | None
    seconds: float


class Converter:
    """Checks records of one source. See `sample`."""

    def __init__(self, source: ImportSource, codec: Codec, checks: CheckConfig) -> None:
        self._source, self._codec, self._checks = source, codec, checks

    def sample(self, record: Record, folder: AnyPath, inputs: Inputs) -> Sample:
        """What a record holds.

        Args:
            folder: what relative paths in it are relative to.

        Raises:
            Rejection: names what is wrong.
            CannotRead: a file that it names, now.
        """
        codec, source = self._codec, self._source
        named = record.get("codec")
        if named is not None and str(named) != codec.name:
            raise Rejection("other_codec", f"tokens of {named}, the configuration says {codec.name}")
        rate = record.get("rate")
        if rate is not None and abs(rate - float(codec.rate)) > self._checks.share * float(codec.rate):
            raise Rejection("rate_mismatch", f"{rate:.4g} frames a second, {codec.name} has {rate_text(codec.rate)}")
        tokens = record.get("tokens")
        if tokens is None:
            raise Rejection("bad_record", f"no {source.columns.tokens or 'tokens'}")
        layout = "tq" if record.get("frames_first") and source.layout == "qt" else source.layout
        codes = codes_of(tokens, layout, codec, folder, inputs)
        if source.columns.durations:
            codes = repeat(codes, record.get("durations"))
        check_rate(len(codes), record.get("seconds"), codec, self._checks)
        length = len(codes) / float(codec.rate)
        text = _text(record.get("text"), "text")
        words = tuple(_words(record, text, length))
        segments = tuple(_segments(record.get("segments"), length)) if not words else ()
        if words and not text:
            text = " ".join(word.text for word in words)
        if segments:
            text = " ".join(segment.text for segment in segments)
        elif text and not words:
            segments = (Spoken(text, 0.0, length),)
        return Sample(
            id=_name(record.get("id"), "id"),
            ids=codec.ids(codes),
            text=text,
            words=words,
            segments=segments,
            speaker=_text(record.get("speaker"), "speaker"),
            license=_text(record.get("license"), "license") or source.license,
            split=_split(record.get("split"), source.split),
            recording=_text(record.get("recording"), "recording"),
            start=_number(record.get("start"), "start"),
            seconds=length,
        )


def _text(value: Any, name: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | float) or not isinstance(value, str | int):
        raise Rejection("bad_record", f"{name}: expected text, got {type(value).__name__} {str(value)[:40]!r}")
    text = str(value).strip()
    if not is_unicode(text):
        raise Rejection("bad_record", f"{name}: holds half a surrogate pair")
    return text


def _name(value: Any, name: str) -> str:
    text = _text(value, name)
    if not text:
        raise Rejection("bad_record", f"no {name}")
    return text


def _number(value: Any, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(float(value)) < float("inf"):
        raise Rejection("bad_record", f"{name}: expected seconds, got {value!r}")
    return float(value)


def _split(value: Any, default: str) -> str:
    if value is None or value == "":
        return default
    found = split_of(value)
    if found is None:
        raise Rejection("unknown_split", f"{value!r} is neither training nor held out by its name")
    return found


def _pieces(value: Any, kind: str, names: tuple[str, ...], length: float) -> Iterator[Spoken]:
    """A list of {text, start, end}, in order and within the record."""
    if isinstance(value, Mapping):  # datasets' list of structs, as it is stored: one list a field
        keys = list(value)
        value = [dict(zip(keys, row, strict=True)) for row in zip(*value.values(), strict=True)]
    if not isinstance(value, list | tuple | np.ndarray):
        raise Rejection("bad_times", f"{kind}: expected a list of {{{names[0]}, start, end}}")
    before = 0.0
    for number, entry in enumerate(value):
        if not isinstance(entry, Mapping):
            raise Rejection(
                "bad_times", f"{kind} {number}: expected {{{names[0]}, start, end}}, got {str(entry)[:40]!r}"
            )
        text = next((_text(entry[name], kind) for name in names if entry.get(name) is not None), "")
        begin, end = _number(entry.get("start"), "start"), _number(entry.get("end"), "end")
        if begin is None or end is None:
            raise Rejection("bad_times", f"{kind} {number}: no start or no end")
        if not 0 <= begin <= end or begin < before - 0.05 or begin > length + 0.5 or end > 1.01 * length + 0.5:
            raise Rejection(
                "bad_times", f"{kind} {number}: {begin:g} to {end:g} s, after {before:g} s, in a record of {length:g} s"
            )
        before = begin
        if text:
            yield Spoken(" ".join(text.split()), begin, end)


def _segments(value: Any, length: float) -> Iterable[Spoken]:
    return () if value is None else _pieces(value, "segment", ("text", "transcript"), length)


def _words(record: Record, text: str, length: float) -> Iterable[Spoken]:
    """The words with their times, each as it stands in the transcript where there is one."""
    value, starts, ends = record.get("words"), record.get("word_starts"), record.get("word_ends")
    if value is None:
        return ()
    if starts is not None or ends is not None:
        try:
            value = [
                {"word": w, "start": b, "end": e} for w, b, e in zip(value, _plain(starts), _plain(ends), strict=True)
            ]
        except (TypeError, ValueError):
            raise Rejection("bad_times", "words, word_starts and word_ends are of different lengths") from None
    words = list(_pieces(value, "word", ("word", "text", "symbol"), length))
    written = text.split()
    if not text or [w.text for w in words] == written:
        return words
    if len(words) != len(written):
        raise Rejection("words_differ", f"{len(words)} words with times, {len(written)} in the text")
    for word, other in zip(words, written, strict=True):
        if _letters(word.text) != _letters(other):
            raise Rejection("words_differ", f"{word.text!r} has times where the text has {other!r}")
    return [Spoken(other, word.begin, word.end) for word, other in zip(words, written, strict=True)]


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _letters(word: str) -> str:
    return "".join(c for c in word.casefold() if c.isalnum())


@dataclass
class _Run:
    """Records of one recording, one after the other."""

    samples: list[Sample] = field(default_factory=list)

    def takes(self, sample: Sample, longest: float) -> bool:
        """Whether the next record belongs to the same document."""
        last = self.samples[-1]
        if not sample.recording or sample.recording != last.recording:
            return False
        if (bool(sample.words), bool(sample.segments), sample.split) != (
            bool(last.words), bool(last.segments), last.split,
        ) or (sample.license, sample.speaker) != (last.license, last.speaker):  # fmt: skip
            return False
        if sample.start is not None and last.start is not None and sample.start < last.start + last.seconds - 0.1:
            return False
        return sum(s.seconds for s in self.samples) + sample.seconds <= longest


def documents(
    samples: Iterable[Sample], source: str, codec: Codec, tokenizer: Tokenizer, max_seconds: float
) -> Iterator[tuple[str, Document | Rejection]]:
    """(split, document) of consecutive samples; in place of a document why there is none.

    Args:
        max_seconds: records of a recording are joined up to this; speech without a transcript is cut there.
    """
    run = _Run()
    for sample in samples:
        if run.samples and not run.takes(sample, max_seconds):
            yield from _documents(run.samples, source, codec, tokenizer, max_seconds)
            run = _Run()
        run.samples.append(sample)
    if run.samples:
        yield from _documents(run.samples, source, codec, tokenizer, max_seconds)


def _documents(
    samples: list[Sample], source: str, codec: Codec, tokenizer: Tokenizer, max_seconds: float
) -> Iterator[tuple[str, Document | Rejection]]:
    first = samples[0]
    ids = np.concatenate([sample.ids for sample in samples])
    about: dict[str, Any] = {"source": source, "speaker": first.speaker, "license": first.license}
    if not first.words and not first.segments:
        longest = max(1, int(max_seconds * codec.rate))
        cuts = range(0, len(ids), longest)
        for number, begin in enumerate(cuts):
            name = first.id if len(cuts) == 1 else f"{first.id}/{number}"
            none = np.zeros(0, np.int32)
            yield (
                first.split,
                Document(id=name, text="", token_ids=none, speech_ids=ids[begin : begin + longest], **about),
            )
        return
    try:
        spans, texts, tokens, token_spans = _lay_out(samples, codec, tokenizer, bool(first.words))
    except Rejection as rejection:
        yield first.split, Rejection(rejection.reason, f"{first.id}: {rejection.detail}")
        return
    text = " ".join(texts)
    if not first.words:
        yield (
            first.split,
            Document(
                id=first.id, text=text, token_ids=tokens, speech_ids=ids,
                segment_frames=spans, segment_tokens=token_spans, **about,
            ),
        )  # fmt: skip
        return
    ends = np.cumsum([len(t) + 1 for t in texts]) - 1
    chars = np.stack([ends - [len(t) for t in texts], ends], axis=1).astype(np.int32)
    yield (
        first.split,
        Document(
            id=first.id, text=text, token_ids=tokens, speech_ids=ids,
            word_frames=spans, word_tokens=token_spans, word_chars=chars,
            word_scores=np.full(len(spans), np.nan, np.float32), **about,
        ),
    )  # fmt: skip


def _lay_out(
    samples: list[Sample], codec: Codec, tokenizer: Tokenizer, by_word: bool
) -> tuple[np.ndarray, list[str], np.ndarray, np.ndarray]:
    """Words or segments of records laid end to end.

    Returns:
        int32 [n, 2] frames, n texts, int32 [P] token ids, int32 [n, 2] spans of token ids.
    """
    spans, texts, at = list[np.ndarray](), list[str](), 0
    for sample in samples:
        pieces = sample.words if by_word else sample.segments
        found, owner = to_frames(np.array([(p.begin, p.end) for p in pieces]), len(sample.ids), codec.rate)
        spans.append(found + at)
        texts += [" ".join(p.text for p, o in zip(pieces, owner, strict=True) if o == i) for i in range(len(found))]
        at += len(sample.ids)
    words = [text.split() for text in texts]
    tokens, of_word = encode_words(tokenizer, [word for group in words for word in group])
    last = np.cumsum([len(group) for group in words]) - 1
    ends = of_word[last, 1]
    token_spans = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)
    return np.concatenate(spans).astype(np.int32), texts, tokens, token_spans.astype(np.int32)
