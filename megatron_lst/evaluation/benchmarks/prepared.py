"""A prepared task: text and speech ids on disk, so that a benchmark is synthesised and encoded once.

FOLDER/task.json     name, fingerprints of tokenizer and codebook, how speech was made, what was refused
FOLDER/items.jsonl   one item a line: id, answer, prompt, candidates; each side {"ids", "characters", "units", "words",
                     "pieces"}, of which `units` are speech ids, `words` and `pieces` the frames of each word and text
                     piece, null where the speech was not aligned

Format 1 has neither `words` nor `pieces`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.evaluation.items import ChoiceItem
from megatron_lst.patching.chunks import Span, speech_span, text_span
from megatron_lst.patching.strategies import ALIGNED, Patcher

FORMAT = 2
READABLE = (1, 2)
DIRECTIONS = ("S->S", "T->T", "S->T", "T->S")


@dataclass(frozen=True)
class Side:
    """One prompt or candidate in whichever modalities it was prepared; None where it was not.

    Attributes:
        words, pieces: [begin, end) frames of each word, and of each text piece, where the speech was aligned.
    """

    ids: list[int] | None = None
    characters: int = 0
    speech_ids: list[int] | None = None
    words: list[list[int]] | None = None
    pieces: list[list[int]] | None = None

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Side":
        """What items.jsonl holds of it."""
        return cls(record["ids"], record["characters"], record["units"], record.get("words"), record.get("pieces"))

    @property
    def record(self) -> dict[str, Any]:
        times = {"words": self.words, "pieces": self.pieces}
        return {"ids": self.ids, "characters": self.characters, "units": self.speech_ids, **times}

    def span(self, modality: str, granularity: str = "word") -> Span | None:
        """The prompt or candidate as speech (`S`) or text (`T`), None where there is none.

        Args:
            granularity: of aligned patches, see `patching.granularity`.
        """
        if modality == "S":
            segments = self.words if granularity == "word" else self.pieces
            if segments is not None:
                segments = [s for s in segments if s[1] > s[0]]
            return None if self.speech_ids is None else speech_span(self.speech_ids, segments)
        return None if self.ids is None else text_span(self.ids, self.characters)


@dataclass(frozen=True)
class PreparedItem:
    id: str
    prompt: Side | None
    candidates: tuple[Side, ...]
    answer: int


@dataclass
class PreparedTask:
    """A task ready to be scored.

    Attributes:
        metadata: fingerprints, voice, formats: everything but the items.
        refused: item id -> why it was left out in preparation.
    """

    name: str
    items: list[PreparedItem]
    refused: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def pairs(self) -> bool:
        """Whole recordings are compared; there is no prompt."""
        return all(item.prompt is None for item in self.items)

    def directions(self) -> list[str]:
        """The directions for which at least one item has what it takes."""
        if self.pairs:
            return [d for d in ("S", "T") if any(all(c.span(d) for c in i.candidates) for i in self.items)]
        return [d for d in DIRECTIONS if self.choice_items(d)[0]]

    def choice_items(self, direction: str, patcher: Patcher | None = None) -> tuple[list[ChoiceItem], dict[str, str]]:
        """(items, refused) in one direction (`S->T`; `S` or `T` for pairs).

        Args:
            patcher: how speech will be cut: aligned patches refuse items whose speech was not aligned. None: not yet
                known, nothing is refused for it.
        """
        granularity = patcher.config.granularity if patcher is not None else "word"
        found, refused = [], dict(self.refused)
        for item in self.items:
            prompt = item.prompt.span(direction[0], granularity) if item.prompt is not None else None
            candidates = [c.span(direction[-1], granularity) for c in item.candidates]
            if (item.prompt is not None and prompt is None) or any(c is None for c in candidates):
                refused[item.id] = f"not prepared for {direction}: speech or text is missing"
                continue
            spans = () if prompt is None else (prompt,)
            spoken = [s for s in (*spans, *candidates) if s is not None and s.modality == "speech"]
            if patcher is not None and patcher.method == ALIGNED and any(s.segments is None for s in spoken):
                refused[item.id] = (
                    f"its speech has no times of {'words' if granularity == 'word' else 'text pieces'}, which aligned "
                    "patches need: prepare the task with --aligner, or evaluate with --static"
                )
                continue
            found.append(ChoiceItem(item.id, spans, tuple(c for c in candidates if c is not None), item.answer))
        return found, refused

    def check_fingerprints(self, trained: Mapping[str, Any]) -> None:
        """Refuse a task of another tokenizer or codebook than the model's. Raises UserError."""
        for name in ("tokenizer", "codebook"):
            mine, theirs = (d.get(name) or {} for d in (self.metadata, trained))
            a, b = mine.get("fingerprint"), theirs.get("fingerprint")
            if a is not None and b is not None and a != b:
                raise UserError(f"task {self.name} was prepared with the {name} {a}, the model was trained with {b}")


def write_prepared(folder: Path, task: PreparedTask) -> None:
    """Write a prepared task; task.json last, so that it means complete."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "items.jsonl").open("w") as file:
        for item in task.items:
            prompt = None if item.prompt is None else item.prompt.record
            candidates = [side.record for side in item.candidates]
            record = {"id": item.id, "prompt": prompt, "candidates": candidates, "answer": item.answer}
            file.write(json.dumps(record) + "\n")
    content = {
        "format": FORMAT, "name": task.name, "items": len(task.items), "refused": task.refused, **task.metadata,
    }  # fmt: skip
    (folder / "task.json").write_text(json.dumps(content, indent=1) + "\n")


def read_prepared(folder: Path) -> PreparedTask:
    """Read what `write_prepared` wrote.

    Raises:
        UserError: not a prepared task, or of another format.
        DamagedDataError: items are missing or broken.
    """
    try:
        content = json.loads((folder / "task.json").read_text())
    except OSError:
        raise UserError(f"{folder}: no task.json; `lst eval prepare` makes a task from a benchmark's files") from None
    except ValueError as error:
        raise DamagedDataError(f"{folder / 'task.json'}: not JSON ({error})") from None
    if content.pop("format", None) not in READABLE:
        raise UserError(f"{folder}: another format of prepared tasks; prepare it again")
    items = []
    try:
        for line in (folder / "items.jsonl").read_text().splitlines():
            record = json.loads(line)
            prompt = Side.of(record["prompt"]) if record["prompt"] is not None else None
            candidates = tuple(Side.of(c) for c in record["candidates"])
            items.append(PreparedItem(record["id"], prompt, candidates, record["answer"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedDataError(f"{folder / 'items.jsonl'}: item {len(items)} cannot be read ({error!r})") from None
    count = content.pop("items")
    if count != len(items):
        raise DamagedDataError(f"{folder}: {len(items)} items, task.json counts {count}")
    return PreparedTask(content.pop("name"), items, content.pop("refused"), content)
