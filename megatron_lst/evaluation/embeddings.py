"""Patch embeddings of words, as in the paper's Figure 5: do recordings of one word lie together?

Published: cosine within a word 0.87, between words 0.43, silhouette 0.65 to 0.68.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from megatron_lst.config.schema import PatchingConfig
from megatron_lst.documents.schema import Document
from megatron_lst.errors import UserError
from megatron_lst.evaluation.heldout import word_span
from megatron_lst.inference.model import LatentSpeechTextModel
from megatron_lst.patching.chunks import chunk_of_spans, document_span
from megatron_lst.patching.strategies import ALIGNED, Patcher


@dataclass(frozen=True)
class WordEmbeddings:
    """One vector for each occurrence of a word.

    Attributes:
        words: [n] normalised words.
        vectors: float32 [n, d_g], patch embeddings E.
    """

    words: list[str]
    vectors: np.ndarray


@dataclass(frozen=True)
class Clustering:
    """Cosine similarities of pairs within and between words, and the mean silhouette (cosine distance)."""

    within: float
    between: float
    silhouette: float
    words: int
    occurrences: int


def word_embeddings(
    model: LatentSpeechTextModel,
    patching: PatchingConfig,
    documents: Sequence[Document],
    *,
    most: int = 40,
    least: int = 5,
    words: int = 20,
) -> WordEmbeddings:
    """The encoder's patch of each occurrence of the most frequent words, one patch a word (aligned).

    Args:
        patching: of the run: silence is cut or merged and the lag is as in training. Words are the segments whatever
            its granularity; a word longer than `max_length` has no patch of its own and is left out.
        least, most: occurrences that a word needs, and that are used of it.
        words: how many words.

    Raises:
        UserError: a baseline (it has no patches), or no word occurs often enough.
    """
    from megatron_lst.documents.heldout import normalise_text

    if model.config.kind != "lst":
        raise UserError("patch embeddings need an LST; a baseline has no patches")
    places: dict[str, list[tuple[Document, int]]] = {}
    for document in documents:
        for index, (first, last) in enumerate(document.word_chars.tolist()):
            spelled = normalise_text(document.text[first:last])
            longest = patching.max_length // document.depth
            if spelled and document.has_speech and _frames_of(document, index, patching) <= longest:
                places.setdefault(spelled, []).append((document, index))
    frequent = sorted((w for w in places if len(places[w]) >= least), key=lambda w: (-len(places[w]), w))[:words]
    if len(frequent) < 2:
        raise UserError(f"fewer than two words occur {least} times in the documents")
    patcher = Patcher(ALIGNED, replace(patching, granularity="word"))
    names, vectors = [], []
    for word in frequent:
        for document, index in places[word][:most]:
            vectors.append(_patch_of(model, patcher, document, index))
            names.append(word)
    return WordEmbeddings(names, np.stack(vectors))


def _frames_of(document: Document, word: int, patching: PatchingConfig) -> int:
    """Frames of a word's patch: with merged silence the gap after it belongs to it."""
    begin, end = document.word_frames[word].tolist()
    if patching.silence == "merged":
        last = word + 1 == len(document.word_frames)
        end = len(document.speech_ids) if last else int(document.word_frames[word + 1, 0])
    return int(end - begin)


def _patch_of(
    model: LatentSpeechTextModel, patcher: Patcher, document: Document, word: int, before: int = 5
) -> np.ndarray:
    """E of one word's patch after a few words of context."""
    first = max(0, word - before)
    begin = int(document.word_frames[word, 0])
    end = begin + _frames_of(document, word, patcher.config)
    spans = [word_span(document, first, word, "speech", patcher)] if word > first else []
    spans.append(document_span(document, "speech", begin, end, patcher))
    chunk, _ = chunk_of_spans(spans, model.vocabulary, patcher, document.id)
    return model.patch_embeddings(chunk)[-1]


def clustering(embeddings: WordEmbeddings) -> Clustering:
    """How much closer occurrences of one word lie than those of different words."""
    names = np.array(embeddings.words)
    unit = embeddings.vectors / np.linalg.norm(embeddings.vectors, axis=1, keepdims=True)  # [n, d_g]
    cosine = (unit @ unit.T).astype(np.float64)  # [n, n]
    same = names[:, None] == names[None]  # bool [n, n]
    itself = np.eye(len(names), dtype=bool)
    distance = 1 - cosine
    silhouettes = []
    for i, name in enumerate(names):
        own = same[i] & ~itself[i]
        if not own.any():
            continue
        inside = distance[i, own].mean()  # to the other occurrences of the word
        nearest = min(distance[i, names == other].mean() for other in set(names.tolist()) - {str(name)})
        silhouettes.append((nearest - inside) / max(inside, nearest, 1e-12))
    return Clustering(
        float(cosine[same & ~itself].mean()),
        float(cosine[~same].mean()),
        float(np.mean(silhouettes)),
        len(set(embeddings.words)),
        len(names),
    )


def draw(embeddings: WordEmbeddings, path: Path) -> None:
    """The two principal components, one colour a word."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    centred = embeddings.vectors - embeddings.vectors.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    flat = centred @ axes[:2].T  # [n, 2]
    names = np.array(embeddings.words)
    figure, axis = plt.subplots(figsize=(8, 6))
    for word in dict.fromkeys(embeddings.words):
        where = names == word
        axis.scatter(flat[where, 0], flat[where, 1], s=14, label=word)
    axis.set_xlabel("first principal component")
    axis.set_ylabel("second principal component")
    axis.set_title("patch embeddings of words")
    axis.legend(fontsize=7, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def jitter(document: Document, frames: int, rng: np.random.Generator, granularity: str = "word") -> Document:
    """The document with every boundary moved by up to `frames` frames, words still in order.

    For the robustness test of A.11: score aligned items of jittered documents beside those of the originals.

    Args:
        granularity: `word`: boundaries of words move. `bpe`: those of text pieces, and each word goes with its pieces.
    """
    count = len(document.speech_ids)
    if granularity == "word" or not len(document.piece_frames):
        return replace(document, word_frames=_moved(document.word_frames, frames, count, rng))
    pieces = document.piece_frames.copy()
    held = np.flatnonzero(pieces[:, 1] > pieces[:, 0])  # pieces that have frames
    pieces[held] = _moved(pieces[held], frames, count, rng)
    words = document.word_frames.copy()
    for number, (first, last) in enumerate(document.word_tokens.tolist()):
        own = pieces[first:last][pieces[first:last, 1] > pieces[first:last, 0]]
        if len(own):
            words[number] = own[0, 0], own[-1, 1]
    return replace(document, word_frames=words, piece_frames=pieces)


def _moved(spans: np.ndarray, frames: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """int32 [n, 2] spans with their edges moved, in order and not empty within [0, count)."""
    flat = (spans.astype(np.int64) + rng.integers(-frames, frames + 1, spans.shape)).ravel()
    low = np.zeros(len(flat), np.int64)
    low[1::2] = 1  # a span keeps a frame at least
    for i in range(len(flat)):
        flat[i] = max(flat[i], (flat[i - 1] if i else 0) + low[i])  # forwards: no edge before the one to its left
    high = count
    for i in range(len(flat) - 1, -1, -1):
        flat[i] = min(flat[i], high)  # backwards: all of them before the end
        high = int(flat[i]) - int(low[i])
    return flat.reshape(-1, 2).astype(np.int32)
