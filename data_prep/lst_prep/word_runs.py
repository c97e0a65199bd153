"""Text pieces of words that stand beside each other without white space, as in Chinese."""

import numpy as np

from lst_prep.rejection import Rejection
from lst_prep.tokenizer import Tokenizer, encode_words


def encode_runs(tokenizer: Tokenizer, text: str, chars: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pieces of the words of a text, of which some may stand beside each other without white space.

    Such a run of words is encoded as a whole, as its text would be. A word that begins inside of a piece becomes one
    with the word before it.

    Args:
        chars: int [W, 2], the words' characters, in order.

    Returns:
        token_ids int32 [P]; word_tokens int32 [V, 2], which cover [0, P) in order, V <= W; and int64 [W], which of the
        V each word is now in.

    Raises:
        Rejection: `tokenizer`, when a word has no piece.
    """
    beside = np.concatenate([[False], chars[1:, 0] == chars[:-1, 1]])
    if not beside.any():
        return *encode_words(tokenizer, [text[begin:end] for begin, end in chars]), np.arange(len(chars))
    found, begins, owners = list[int](), list[int](), list[int]()
    firsts = np.flatnonzero(~beside).tolist()
    for first, last in zip(firsts, [*firsts[1:], len(chars)], strict=True):
        begin, end = int(chars[first, 0]), int(chars[last - 1, 1])
        ids, cuts = _run(tokenizer, text[begin:end], not found)
        for word in range(first, last):
            at = cuts.get(int(chars[word, 0]) - begin, 0)  # 0: it begins inside of a piece
            if word == first or (at and len(found) + at > begins[-1]):
                begins.append(len(found) + at)
            owners.append(len(begins) - 1)
        found += ids
    spans = np.array([*begins, len(found)], np.int32)
    return np.array(found, np.int32), np.stack([spans[:-1], spans[1:]], 1), np.array(owners, np.int64)


def _run(tokenizer: Tokenizer, run: str, first: bool) -> tuple[list[int], dict[int, int]]:
    """Pieces of a run of words, and the character of the run that each of them begins with, where it begins with one:
    {character: piece}.

    Raises:
        Rejection: `tokenizer`, when it has no piece.
    """
    ids, cuts = list[int](), dict[int, int]()
    at = 0
    for part in run.split():  # a word may hold white space before punctuation
        at = run.index(part, at)
        found, places = tokenizer.place_word(part, first and not ids)
        reached = np.maximum.accumulate(places[:, 1])[:-1]  # the last character of the pieces so far
        ahead = np.minimum.accumulate(places[::-1, 0])[::-1][1:]  # the first one of those to come
        for piece in np.flatnonzero(reached <= ahead).tolist():
            cuts.setdefault(at + int(reached[piece]), len(ids) + piece + 1)
        cuts[at] = len(ids)
        ids += found
    if not ids:
        raise Rejection("tokenizer", repr(run))
    return ids, cuts
