"""Audio of a turn -> speech ids, with the transcript and the words that are known of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lst_prep import audio
from lst_prep.chat.config import ChatConfig
from lst_prep.importing.checks import codes_of
from lst_prep.places import AnyPath, beside
from lst_prep.reading import Inputs
from lst_prep.rejection import Rejection
from lst_prep.units import Codebook
from lst_prep.units.opening import extractor_of
from megatron_lst.chat.turns import Audio
from megatron_lst.documents.codec import Codec
from megatron_lst.documents.schema import Document
from megatron_lst.documents.shards import ShardSet
from megatron_lst.errors import UserError


@dataclass(frozen=True)
class Heard:
    """Speech of one part.

    Attributes:
        ids: [F], or [F, Q], speech ids.
        transcript: empty where it is not known.
        words: (word as it stands in the transcript with what follows it, end frame) of each word; empty: no times.
    """

    ids: np.ndarray
    transcript: str
    words: tuple[tuple[str, int], ...] = ()


def codec_of_config(config: ChatConfig) -> Codec | None:
    """What made the speech of all conversations; None: nothing says it, so there may be none.

    Raises:
        UserError: codebook, codec and shard sets that are of different codecs.
    """
    found: dict[str, Codec] = {}
    if config.codebook:
        with Inputs(config.reading).local(config.codebook) as file:
            found[config.codebook] = Codebook.load(file).codec
    if config.codec is not None:
        found["codec"] = config.codec.codec()
    for name, path in config.spans.items():
        codec = ShardSet.open(path, kind="speech").codec
        assert codec is not None, "a set of speech has a codec"
        found[f"spans.{name} ({path})"] = codec
    if len({(c.fingerprint, c.codebooks, c.rate) for c in found.values()}) > 1:
        listed = "; ".join(f"{where}: {codec} ({codec.fingerprint})" for where, codec in found.items())
        raise UserError(f"speech of different codecs cannot be mixed: {listed}")
    return next(iter(found.values()), None)


def span_index(path: str) -> dict[str, int]:
    """Id -> number of each document of a shard set."""
    return {document.id: number for number, document in enumerate(ShardSet.open(path))}


class Hearing:
    """Reads the audio of conversations; one for each worker."""

    def __init__(self, config: ChatConfig, codec: Codec | None, inputs: Inputs) -> None:
        self._config, self._codec, self._inputs = config, codec, inputs
        self._sets = {name: ShardSet.open(path) for name, path in config.spans.items()}
        self._indices: dict[str, dict[str, int]] = {}

    @cached_property
    def _units(self) -> Callable[[np.ndarray], np.ndarray]:
        """Audio -> units; the model is loaded when there is audio to read."""
        with self._inputs.local(self._config.codebook) as file:
            book = Codebook.load(file)
        extractor = extractor_of(book, self._config.units_model, device=self._config.device)
        return lambda samples: book.units(extractor, [samples])[0]

    def hear(self, part: Audio, folder: AnyPath) -> Heard:
        """
        Args:
            folder: of the file that names the audio.

        Raises:
            Rejection: audio that cannot be used, tokens that are not the codec's, a span that is not there.
            CannotRead: not now.
        """
        if part.span is not None:
            return self._span(part)
        if self._codec is None:
            raise Rejection("bad_conversation", "has speech, and neither codebook, codec nor spans are configured")
        if part.units is not None:
            codes = codes_of(part.units, "tq", self._codec, folder, self._inputs)
            return Heard(self._codec.ids(codes), part.transcript)
        if not self._config.codebook:
            raise Rejection("bad_conversation", f"{part.path}: units of audio need a codebook, and none is configured")
        path = beside(folder, part.path)
        samples = audio.load(path, None, None, self._config.audio, self._inputs).samples
        ids = self._units(samples)
        if not len(ids):
            raise Rejection("too_short", f"{part.path}: shorter than a frame")
        return Heard(ids, part.transcript)

    def _span(self, part: Audio) -> Heard:
        assert part.span is not None
        source, name = str(part.span["source"]), str(part.span["id"])
        if source not in self._sets:
            raise Rejection("no_such_span", f"source {source!r}: `spans` names {', '.join(self._sets) or 'none'}")
        if source not in self._indices:
            self._indices[source] = span_index(self._config.spans[source])
        number = self._indices[source].get(name)
        if number is None:
            raise Rejection("no_such_span", f"source {source!r} has no document {name!r}")
        document = self._sets[source].get(number)
        frames = len(document.speech_ids)
        begin, end = int(part.span.get("from", 0)), int(part.span.get("to", frames))
        if not 0 <= begin < end <= frames:
            raise Rejection("no_such_span", f"{source}/{name}: [{begin}, {end}) of {frames} frames")
        words = _words(document, begin, end)
        transcript = part.transcript or "".join(word for word, _ in words).strip()
        return Heard(document.speech_ids[begin:end], transcript, () if part.transcript else words)


def _words(document: Document, begin: int, end: int) -> tuple[tuple[str, int], ...]:
    """The words that lie wholly in frames [begin, end): text up to the next one, and end frame from `begin` on."""
    spans, chars = document.word_frames, document.word_chars
    inside = np.flatnonzero((spans[:, 0] >= begin) & (spans[:, 1] <= end)).tolist()
    found = []
    for place, word in enumerate(inside):
        first, last = int(chars[word, 0]), int(chars[word, 1])
        behind = int(chars[inside[place + 1], 0]) if place + 1 < len(inside) else last
        found.append((document.text[first:behind], int(spans[word, 1]) - begin))
    return tuple(found)
