"""Conversations made of recordings with word times: what the demo's chat data is (docs/chat.md).

    python data_prep/make_chat.py data/demo/speech data/demo/heldout-speech

writes data/demo/chat/speech.jsonl and data/demo/chat/heldout-speech.jsonl. The embedded corpus has no recorded
dialogue, so these are tasks on passages of a recording, a few a conversation: the user's text is read aloud, the
user's speech is written down, or the recording goes on after it.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from megatron_lst.documents.schema import Document
from megatron_lst.documents.shards import ShardSet

PASSAGE_WORDS = 8
SYSTEM = "Read aloud what is written, write down what is said, or go on."


def passages(document: Document) -> list[tuple[int, int, str]]:
    """(first frame, end frame, text) of consecutive passages; the silence behind a passage belongs to it."""
    starts = document.word_frames[::PASSAGE_WORDS, 0].tolist()
    chars = document.word_chars[::PASSAGE_WORDS, 0].tolist()
    ends = [*starts[1:], len(document.speech_ids)]
    char_ends = [*chars[1:], int(document.word_chars[-1, 1]) if len(document.word_chars) else 0]
    return [
        (begin, end, " ".join(document.text[a:b].split()))
        for begin, end, a, b in zip(starts, ends, chars, char_ends, strict=True)
    ]


def conversations(document: Document, source: str, seed: int) -> Iterator[dict[str, Any]]:
    """Conversations of one to three exchanges over the passages of a document, each passage used once."""
    rng = np.random.default_rng(seed)
    left = passages(document)

    def spoken(passage: tuple[int, int, str]) -> list[dict[str, Any]]:
        span = {"source": source, "id": document.id, "from": passage[0], "to": passage[1]}
        return [{"type": "audio", "span": span, "transcript": passage[2]}]

    number = 0
    while len(left) >= 2:
        messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
        for _ in range(int(rng.integers(1, 4))):
            task = rng.choice(["read", "write", "go on"])
            if len(left) < 2:
                break
            first = left.pop(0)
            if task == "read":
                pair: tuple[Any, Any] = (first[2], spoken(first))
            elif task == "write":
                pair = (spoken(first), first[2])
            else:
                pair = (spoken(first), spoken(left.pop(0)))
            messages += [
                {"role": role, "content": said} for role, said in zip(("user", "assistant"), pair, strict=True)
            ]
        yield {"id": f"{document.id}-{number}", "messages": messages}
        number += 1


def main(folders: list[str]) -> None:
    for folder in map(Path, folders):
        shards = ShardSet.open(folder, kind="speech")
        out = folder.parent / "chat" / f"{folder.name}.jsonl"
        out.parent.mkdir(exist_ok=True)
        lines = [
            json.dumps(one, ensure_ascii=False) + "\n"
            for number, document in enumerate(shards)
            for one in conversations(document, folder.name, number)
        ]
        out.write_text("".join(lines), encoding="utf-8")
        print(f"{out}: {len(lines)} conversations")


if __name__ == "__main__":
    main(sys.argv[1:])
