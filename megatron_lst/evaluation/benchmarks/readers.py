"""Readers of benchmarks as they are published, each given a file or folder. No audio is opened here.

hellaswag     hellaswag_val.jsonl: ctx, endings, label
storycloze    cloze_test_*.csv: four sentences, two endings, AnswerRightEnding (StoryCloze and TopicStoryCloze)
zerospeech    gold.csv beside *.wav: sWUGGY's lexical/, sBLIMP's syntactic/
numbered      *.wav whose names begin with a number: 2i is right, 2i + 1 wrong, each folder (a voice) for itself (the
              public sStoryCloze and tStoryCloze; sWUGGY and sBLIMP as slamkit lays them out)
salmon        PART/sample_I_J.wav: the first of each sample is right

Spoken questions are in `questions`.
"""

import csv
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from megatron_lst.errors import UserError


@dataclass(frozen=True)
class RawPiece:
    """A prompt or candidate as text, as audio, or both."""

    text: str | None = None
    audio: Path | None = None


@dataclass(frozen=True)
class RawItem:
    """One question; `prompt` is None for pair tasks."""

    id: str
    prompt: RawPiece | None
    candidates: tuple[RawPiece, ...]
    answer: int


@dataclass
class RawTask:
    """What a reader found.

    Attributes:
        refused: item id -> why it was left out.
    """

    name: str
    items: list[RawItem] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason})") from None


def _records(path: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of a CSV file with a header. Raises UserError when a column is missing."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
            columns = set(rows[0]) if rows else set()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if missing := [c for c in needed if c not in columns]:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; there are {', '.join(map(str, columns)) or 'no rows'}"
        )
    return rows


def _one(path: Path, pattern: str) -> Path:
    """The file itself, or the only one in the folder that matches."""
    if path.is_file():
        return path
    found = sorted(path.glob(pattern)) if path.is_dir() else []
    if len(found) != 1:
        raise UserError(f"{path}: expected one {pattern}, found {len(found)}; name the file itself")
    return found[0]


def _without_markup(said: str) -> str:
    """WikiHow's headings out of HellaSwag's texts: `[title]` ends a sentence, `[header]`, `[step]` say nothing."""
    said = re.sub(r"\s*\[title\]", ".", said.strip()) if not said.startswith("[title]") else said[len("[title]") :]
    return " ".join(re.sub(r"\[[^\]]*\]", " ", said).replace("..", ".").split())


def hellaswag(path: Path) -> RawTask:
    """HellaSwag: the context, and four endings."""
    task = RawTask("hellaswag")
    for number, line in _lines(_one(path, "hellaswag_*.jsonl")):
        name = f"line-{number}"
        try:
            record = json.loads(line)
            name = f"{record.get('ind', number)}"
            prompt, label = _without_markup(str(record["ctx"])), int(record["label"])
            endings = [_without_markup(e) if isinstance(e, str) else e for e in record["endings"]]
        except (ValueError, KeyError, TypeError) as error:
            task.refused[name] = f"not a HellaSwag record: {error!r}"
            continue
        if len(endings) != 4 or not all(isinstance(e, str) and e.strip() for e in endings):
            task.refused[name] = f"{sum(bool(str(e).strip()) for e in endings)} endings, 4 are needed"
        elif not 0 <= label < 4 or not prompt.strip():
            task.refused[name] = "empty context" if not prompt.strip() else f"label {label}"
        else:
            candidates = tuple(RawPiece(e) for e in endings)
            task.items.append(RawItem(name, RawPiece(prompt), candidates, label))
    return task


def storycloze(path: Path) -> RawTask:
    """StoryCloze and TopicStoryCloze: four sentences and two endings."""
    sentences = tuple(f"InputSentence{i}" for i in range(1, 5))
    endings = ("RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2")
    file = _one(path, "*.csv")
    task = RawTask("topic_storycloze" if "topic" in file.name.lower() else "storycloze")
    for number, row in enumerate(_records(file, (*sentences, *endings, "AnswerRightEnding")), 2):
        name = row.get("InputStoryid") or f"line-{number}"
        texts = [(row[c] or "").strip() for c in (*sentences, *endings)]
        if not all(texts[:4]) or not all(texts[4:]):
            task.refused[name] = "an ending is missing" if all(texts[:4]) else "a sentence of the story is missing"
        elif row["AnswerRightEnding"] not in ("1", "2"):
            task.refused[name] = f"AnswerRightEnding is {row['AnswerRightEnding']!r}, expected 1 or 2"
        else:
            prompt = RawPiece(" ".join(texts[:4]))
            answer = int(row["AnswerRightEnding"]) - 1
            task.items.append(RawItem(name, prompt, (RawPiece(texts[4]), RawPiece(texts[5])), answer))
    return task


def zerospeech(path: Path) -> RawTask:
    """sWUGGY and sBLIMP: pairs of one id and voice in gold.csv, audio beside it."""
    gold = path if path.is_file() else path / "gold.csv"
    rows = _records(gold, ("id", "filename", "voice", "correct"))
    kind = "sblimp" if "transcription" in rows[0] else "swuggy"
    text_column = "transcription" if kind == "sblimp" else "word"
    task = RawTask(kind)
    groups: dict[str, dict[str, RawPiece]] = defaultdict(dict)
    for row in rows:
        audio = gold.parent / f"{row['filename'].removesuffix('.wav')}.wav"
        groups[f"{row['id']}-{row['voice']}"][row["correct"]] = RawPiece(row.get(text_column), audio)
    for name, pair in groups.items():
        if set(pair) != {"0", "1"}:
            task.refused[name] = "not one right and one wrong recording"
        else:
            _add_pair(task, name, pair["1"], pair["0"])
    return task


def numbered(path: Path) -> RawTask:
    """Folders of whole recordings in pairs by leading number; every folder has numbers of its own."""
    task = RawTask(path.name.lower())
    folders: dict[Path, dict[int, Path]] = defaultdict(dict)
    for file in sorted(path.rglob("*.wav")):
        number = re.match(r"\d+", file.name)
        files = folders[file.parent]
        if not number:
            task.refused[file.name] = "its name does not begin with a number"
        elif int(number[0]) in files:
            raise UserError(f"{file.parent}: two recordings of number {int(number[0])}: not this layout")
        else:
            files[int(number[0])] = file
    for folder, files in folders.items():
        prefix = "" if len(folders) == 1 else f"{folder.relative_to(path)}/"
        for right in sorted({number - number % 2 for number in files}):
            missing = [number for number in (right, right + 1) if number not in files]
            name = f"{prefix}{right // 2}"
            if missing:
                task.refused[name] = f"the recording of number {missing[0]} is missing"
            else:
                _add_pair(task, name, RawPiece(audio=files[right]), RawPiece(audio=files[right + 1]))
    return task


def salmon(path: Path) -> RawTask:
    """One part of SALMon: sample_I_J.wav; of each sample the first in order is right."""
    task = RawTask(f"salmon_{path.name}")
    groups: dict[int, list[Path]] = defaultdict(list)
    for file in sorted(path.glob("*.wav")):
        parts = file.stem.split("_")
        if len(parts) < 2 or not parts[1].isdigit():
            task.refused[file.name] = "expected a name such as sample_0_0.wav"
        else:
            groups[int(parts[1])].append(file)
    for number, files in sorted(groups.items()):
        if len(files) != 2:
            task.refused[str(number)] = f"{len(files)} recordings, 2 are needed"
        else:
            _add_pair(task, str(number), RawPiece(audio=files[0]), RawPiece(audio=files[1]))
    return task


def _add_pair(task: RawTask, name: str, right: RawPiece, wrong: RawPiece) -> None:
    missing = [str(p.audio) for p in (right, wrong) if p.audio is None or not p.audio.is_file()]
    if missing:
        task.refused[name] = f"audio missing for one choice: {missing[0]}"
    else:
        task.items.append(RawItem(name, None, (right, wrong), 0))


READERS: dict[str, Callable[[Path], RawTask]] = {
    "hellaswag": hellaswag,
    "storycloze": storycloze,
    "zerospeech": zerospeech,
    "numbered": numbered,
    "salmon": salmon,
}
"""Format name -> reader of choice tasks."""
