"""An invented language, spoken and written: topics of words, and a pronunciation of units for every word.

A document keeps to one topic.  Most of its words are the topic's own, and often in the topic's own order, so that a
prompt tells something about what follows; the rest are any words.  Spoken, a word is three phones of one to three
frames each, with noise, and silence after some words.  The language of a seed is always the same.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from megatron_lst.documents.codec import Codec
from megatron_lst.documents.format import TokenizerInfo
from megatron_lst.documents.schema import Document
from megatron_lst.documents.writing import write_set
from megatron_lst.vocabulary import Vocabulary

FIRST_WORD = 3
"""Text id of word 0: 0 is unused, 1 and 2 are BOS and EOS."""
PHONES_PER_WORD = 3
FRAMES_PER_PHONE = (1, 2, 2, 3)
"""A phone's number of frames is drawn from these; a word has three to nine, mostly five to seven."""
GAP_FRAMES = (1, 2, 3)


@dataclass(frozen=True)
class World:
    """Sizes and probabilities of the language.

    Attributes:
        topics, words_per_topic: every word belongs to one topic.
        off_topic: probability that a word of a document is any word.
        ordered: probability that an on-topic word after an on-topic word is its successor in the topic.
        phones: a phone has two units of its own, taken in turn.
        noise: probability that a frame's unit is any unit.
        gap: probability of silence after a word.
        seed: of pronunciations.
    """

    topics: int = 8
    words_per_topic: int = 4
    off_topic: float = 0.15
    ordered: float = 0.5
    phones: int = 12
    noise: float = 0.03
    gap: float = 0.25
    seed: int = 0
    document_words: int = 24

    @property
    def words(self) -> int:
        return self.topics * self.words_per_topic

    @property
    def silence(self) -> int:
        """The unit of silence; phones' units come before it."""
        return 2 * self.phones

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(text_size=FIRST_WORD + self.words, speech_size=self.silence + 1, multiple=32)

    @cached_property
    def pronunciations(self) -> np.ndarray:
        """int64 [words, 3], phones; no two words sound alike."""
        rng = np.random.default_rng((self.seed, 1))
        codes = rng.permutation(self.phones**PHONES_PER_WORD)[: self.words]
        return np.stack([codes // self.phones**i % self.phones for i in range(PHONES_PER_WORD)], 1)

    def draw_words(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """int64 [count], the words of one document."""
        size, topic = self.words_per_topic, int(rng.integers(self.topics))
        words = np.empty(count, np.int64)
        before = -1
        for i in range(count):
            if rng.random() < self.off_topic:
                word = int(rng.integers(self.words))
            elif before // size == topic and before >= 0 and rng.random() < self.ordered:
                word = topic * size + (before + 1) % size
            else:
                word = topic * size + int(rng.integers(size))
            words[i] = before = word
        return words

    def speak(self, rng: np.random.Generator, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Speech ids int16 [F] and word spans int32 [W, 2] of spoken words."""
        phones = self.pronunciations[words]
        gaps = np.where(rng.random(len(words)) < self.gap, rng.choice(GAP_FRAMES, len(words)), 0)
        lengths = np.concatenate([rng.choice(FRAMES_PER_PHONE, phones.shape), gaps[:, None]], 1)
        first = np.concatenate([2 * phones, np.full_like(gaps, self.silence)[:, None]], 1)
        turn = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths.ravel(), lengths.ravel())
        spoken = np.repeat(first.ravel(), lengths.ravel())
        spoken = np.where(spoken == self.silence, spoken, spoken + turn % 2).astype(np.int16)
        end = np.cumsum(lengths.sum(1)) - gaps
        spans = np.stack([end - lengths[:, :-1].sum(1), end], 1)
        noisy = rng.random(len(spoken)) < self.noise
        spoken[noisy] = rng.integers(0, self.silence + 1, int(noisy.sum()))
        return spoken, spans.astype(np.int32)

    def document(self, name: str, rng: np.random.Generator, spoken: bool) -> Document:
        """One document of `document_words` words, as the data pipeline knows it."""
        words = self.draw_words(rng, self.document_words)
        names = [f"w{w:02d}" for w in words.tolist()]
        ids = (words + FIRST_WORD).astype(np.int32)
        if not spoken:
            return Document(id=name, source="text", text=" ".join(names), token_ids=ids)
        speech_ids, spans = self.speak(rng, words)
        each = np.arange(len(words), dtype=np.int32)
        return Document(
            id=name,
            source="speech",
            text=" ".join(names),
            token_ids=ids,
            speech_ids=speech_ids,
            word_frames=spans,
            word_tokens=np.stack([each, each + 1], 1),
            word_chars=np.stack([4 * each, 4 * each + 3], 1),
            word_scores=np.ones(len(words), np.float32),
        )

    def log_probability(self, words: np.ndarray) -> float:
        """Exact log-probability in nats of a sequence of words, its topic unknown."""
        size = self.words_per_topic
        topic = np.arange(self.topics)[:, None]
        on_topic = words[None] // size == topic
        before = np.concatenate([[-1], words[:-1]])
        was_on = np.concatenate([np.zeros((self.topics, 1), bool), on_topic[:, :-1]], 1)
        follows = words == before // size * size + (before + 1) % size
        chosen = np.where(was_on, self.ordered * follows[None] + (1 - self.ordered) / size, 1 / size)
        each = np.log(self.off_topic / self.words + (1 - self.off_topic) * on_topic * chosen).sum(1)
        return float(np.logaddexp.reduce(each) - np.log(self.topics))


@dataclass(frozen=True)
class Corpus:
    """Sizes of the shard sets, in documents."""

    speech: int = 6000
    text: int = 3000
    held_out: int = 200
    world: World = field(default_factory=World)


SETS = ("speech", "text", "held-out")


def write_corpus(corpus: Corpus, folder: Path) -> dict[str, Path]:
    """Write the shard sets of training speech, training text and held-out speech; those that are there stay.

    Returns:
        The folder of each of SETS.
    """
    world = corpus.world
    tokenizer = TokenizerInfo(f"study-{world.words}", world.vocabulary.text_size, 1, 2, "words of the study")
    size = world.vocabulary.speech_size
    codec = Codec("none: ids are drawn", (size,), fingerprint=f"study-{world.phones}")
    counts = dict(zip(SETS, (corpus.speech, corpus.text, corpus.held_out), strict=True))
    places = {name: folder / name for name in SETS}
    for purpose, (name, count) in enumerate(counts.items()):
        if (places[name] / "manifest.json").is_file():
            continue
        rng = np.random.default_rng((world.seed, 2, purpose))
        spoken = name != "text"
        documents = (world.document(f"{name}-{i}", rng, spoken) for i in range(count))
        write_set(places[name], documents, "speech" if spoken else "text", tokenizer, codec if spoken else None)
    return places
