"""Small conversations, as documents, that tests share."""

import numpy as np

from megatron_lst.documents.schema import PLAIN, SPEECH, TEXT, Document
from tests.data.toy import SPEECH as SPEECH_SIZE
from tests.data.toy import TEXT as TEXT_SIZE

END = 9
"""The end-of-turn token."""


def conversation(i: int, turns: int = 2, longest: int = 14, depth: int = 1) -> Document:
    """Turns of user and assistant, each in text or speech, between roles that are text ids; drawn from `i`."""
    rng = np.random.default_rng(50_000 + i)
    pieces: list[int] = []
    frames: list[np.ndarray] = []
    spans: list[tuple[int, int, int]] = []
    learnt: list[int] = []
    heard = 0

    def text(ids: list[int], said: bool) -> None:
        kind = TEXT if spans and spans[-1][0] == SPEECH else PLAIN
        spans.append((kind, len(pieces), len(pieces) + len(ids)))
        learnt.append(said)
        pieces.extend(ids)

    def say(said: bool) -> None:
        nonlocal heard
        count = int(rng.integers(1, longest))
        if rng.random() < 0.6:
            frames.append(rng.integers(0, SPEECH_SIZE, (count, depth)))
            spans.append((SPEECH, heard, heard + count))
            learnt.append(said)
            heard += count
        else:
            text(rng.integers(12, TEXT_SIZE, count).tolist(), said)

    for turn in range(turns):
        text([3, 4] if turn == 0 else [4], False)  # system and user, user
        say(False)
        text([END, 5], False)
        say(True)
        text([END], True)
    codes = np.concatenate([np.zeros((0, depth), np.int64), *frames]).astype(np.int16)
    count = len(spans)
    return Document(
        id=f"chat-{i}",
        source="chat",
        text="x" * count,
        token_ids=np.array(pieces, np.int32),
        speech_ids=codes[:, 0] if depth == 1 else codes,
        turn_spans=np.array(spans, np.int32),
        turn_learnt=np.array(learnt, np.int8),
        turn_chars=np.stack([np.arange(count), np.arange(count) + 1], 1).astype(np.int32),
    )


CONVERSATIONS = [conversation(i, turns=1 + i % 3) for i in range(40)]
