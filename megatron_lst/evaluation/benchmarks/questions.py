"""Readers of spoken questions: LLaMA-Questions, WebQuestions and TriviaQA in the forms in which they are published.

OpenAudioBench       SET/SET.csv beside SET/audios/: Questions, Answer (llama_questions); question, answers, separated
                     by `;` (web_questions); question, answer_normalized_aliases, by `,` (trivia_qa); audio_filename
Hugging Face         *.parquet with question, answer or answers, and audio {bytes, path} (fixie-ai/llama-questions) or
                     none (web_questions, trivia_qa)
TriviaQA             *.json: Data: [{Question, QuestionId, Answer: {Value, Aliases}}]; text alone
WebQuestions         *.json: [{utterance, targetValue: (list (description ...) ...)}]; text alone
one's own            *.jsonl: question, answers (or answer), id, audio relative to the file
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lst.errors import UserError

SUFFIXES = (".jsonl", ".csv", ".json", ".parquet")
QUESTION = ("question", "Questions", "Question", "utterance")
ANSWERS = ("answers", "answer_normalized_aliases", "answer", "Answer", "targetValue")
AUDIO = ("audio", "audio_filename")
NAME = ("id", "question_id", "QuestionId")
SEPARATORS = {"answers": ";", "answer_normalized_aliases": ","}
"""How the columns of OpenAudioBench that hold several answers part them."""


@dataclass(frozen=True)
class Question:
    """A spoken question: text, every answer that counts, and its recording where there is one."""

    id: str
    question: str
    answers: tuple[str, ...]
    audio: Path | None = None


def questions(path: Path, extracted: Path | None = None) -> tuple[list[Question], dict[str, str]]:
    """Read a file, or a folder that holds one.

    Args:
        extracted: existing folder for recordings that stand inside the file (parquet); None: they are left out.

    Returns:
        The questions, and id -> why of those that were refused.

    Raises:
        UserError: no such file, of another form, or not one question in it.
    """
    file = _file(path)
    found: list[Question] = []
    refused: dict[str, str] = {}
    for number, record in enumerate(_records(file), 1):
        name = f"line-{number}"
        if not isinstance(record, dict):
            refused[name] = f"not a question: {record}"
            continue
        name = str(_first(record, NAME) or name)
        said = str(_first(record, QUESTION) or "").strip()
        answers = _answers(record)
        audio = _audio(record, file, extracted, name)
        if not said or not answers:
            refused[name] = "no question or no answer"
        elif audio is not None and not audio.is_file():
            refused[name] = f"audio missing: {audio}"
        else:
            found.append(Question(name, said, answers, audio))
    if not found:
        raise UserError(f"{file}: not one question in it ({len(refused)} refused: {list(refused.values())[:3]})")
    return found, refused


def _file(path: Path) -> Path:
    if path.is_file() and path.suffix in SUFFIXES:
        return path
    files = [p for p in sorted(path.iterdir()) if p.suffix in SUFFIXES] if path.is_dir() else []
    if len(files) != 1:
        raise UserError(f"{path}: expected one file of questions ({', '.join(SUFFIXES)}), found {len(files)}; name it")
    return files[0]


def _records(file: Path) -> Iterator[Any]:
    """Records of a file; a line that is not JSON comes as the text of its error."""
    try:
        if file.suffix == ".csv":
            with file.open(encoding="utf-8-sig", newline="") as stream:
                yield from csv.DictReader(stream)
        elif file.suffix == ".json":
            content = json.loads(file.read_text(encoding="utf-8"))
            yield from content["Data"] if isinstance(content, dict) else content
        elif file.suffix == ".jsonl":
            for line in file.read_text(encoding="utf-8").splitlines():
                if line.strip():
                    try:
                        yield json.loads(line)
                    except ValueError as error:
                        yield str(error)
        else:
            yield from _parquet(file)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{file}: cannot be read as questions ({error!r})") from None


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{file}: reading parquet needs pyarrow: pip install pyarrow") from None
    for batch in ParquetFile(file).iter_batches(batch_size=64):
        yield from batch.to_pylist()


def _first(record: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


def _answers(record: dict[str, Any]) -> tuple[str, ...]:
    name = next((name for name in ANSWERS if record.get(name) is not None), None)
    value = record.get(name) if name else None
    if isinstance(value, dict):  # TriviaQA
        aliases = value.get("Aliases", value.get("aliases")) or []
        value = [value.get("Value", value.get("value")), *aliases]
    elif isinstance(value, str) and value.startswith("(list"):  # WebQuestions
        value = [a or b for a, b in re.findall(r'\(description (?:"((?:[^"\\]|\\.)*)"|([^)]*))\)', value)]
    elif isinstance(value, str):
        value = value.strip("[]").split(SEPARATORS[name]) if name in SEPARATORS else [value]
        value = [v.strip().strip("'\"") for v in value]
    return tuple(dict.fromkeys(str(v).strip() for v in value or () if v is not None and str(v).strip()))


def _audio(record: dict[str, Any], file: Path, extracted: Path | None, name: str) -> Path | None:
    value = _first(record, AUDIO)
    if isinstance(value, dict):
        if value.get("bytes") is None or extracted is None:
            return None
        suffix = Path(value.get("path") or ".wav").suffix or ".wav"
        target = extracted / f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)}{suffix}"
        target.write_bytes(value["bytes"])
        return target
    if not value:
        return None
    beside = file.parent / "audios" / str(value)
    return beside if beside.is_file() else file.parent / str(value)
