"""Telephone prompts read by one woman, as documents of about a minute: the human speech of the embedded corpus.

Debian's `asterisk-core-sounds-en-g722` holds the recordings (16 kHz, G.722), `asterisk-core-sounds-en` what they say.
Prompts that stand next to each other by name are about one thing, so they are joined, with a pause between them, until
a document is a minute long; in the manifest each prompt stays a piece of its own with its times.
"""

import gzip
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lst_prep.rejection import Rejection
from lst_prep.transcript import normalise

RATE = 16000
SOUNDS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
TRANSCRIPTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
LICENSE = "CC-BY-SA-3.0"
PAUSE_SECONDS = 0.4
DOCUMENT_SECONDS = 60.0
HELD_OUT_EVERY = 8
"""Of the documents of long prompts; a prompt of one word, held out, would take that word from every text."""
LONG_WORDS = 8


def transcripts(path: Path = TRANSCRIPTS) -> dict[str, str]:
    """name -> what the prompt says; tones and silences, which stand in brackets, are left out."""
    found = {}
    for line in gzip.decompress(path.read_bytes()).decode("utf-8").splitlines():
        name, separator, text = line.partition(":")
        text = re.sub(r"\s+", " ", text).strip()
        if separator and not line.startswith(";") and text and "[" not in text and "(" not in text:
            try:
                normalise(text)
            except Rejection as rejection:
                print(f"left out: {name}: {rejection}")
            else:
                found[name.strip()] = text
    return found


def decode(path: Path) -> np.ndarray:
    """float32 [samples] at 16 kHz of a G.722 file."""
    command = ["ffmpeg", "-v", "error", "-f", "g722", "-i", str(path), "-f", "f32le", "-ar", str(RATE), "-ac", "1", "-"]
    return np.frombuffer(subprocess.run(command, check=True, capture_output=True).stdout, np.float32)


def encode(path: Path, audio: np.ndarray) -> None:
    """Write Ogg Opus at 24 kbit/s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["ffmpeg", "-v", "error", "-y", "-f", "f32le", "-ar", str(RATE), "-ac", "1", "-i", "-", "-c:a", "libopus"]
    command += ["-b:a", "24k", "-fflags", "+bitexact", "-flags:a", "+bitexact", str(path)]
    subprocess.run(command, check=True, input=audio.astype("<f4").tobytes())


def documents(texts: dict[str, str]) -> Iterator[tuple[str, list[tuple[str, np.ndarray]], str]]:
    """(name, [(prompt, audio)], split) of about a minute each. Long prompts and short ones are not mixed."""
    for kind in ("long", "short"):
        number, seconds, held = 0, 0.0, list[tuple[str, np.ndarray]]()
        names = [n for n, text in sorted(texts.items()) if (len(text.split()) >= LONG_WORDS) == (kind == "long")]
        for name in names:
            path = SOUNDS / f"{name}.g722"
            if path.is_file():
                audio = decode(path)
                held.append((name, audio))
                seconds += len(audio) / RATE + PAUSE_SECONDS
            if held and (seconds >= DOCUMENT_SECONDS or name == names[-1]):
                heldout = kind == "long" and number % HELD_OUT_EVERY == 3
                yield f"prompts-{kind}-{number:02}", held, "heldout" if heldout else "train"
                number, seconds, held = number + 1, 0.0, []


def make_prompts(out: Path) -> list[dict[str, object]]:
    """Write the recordings below OUT/audio; returns their manifest lines."""
    texts = transcripts()
    entries: list[dict[str, object]] = []
    pause = np.zeros(int(PAUSE_SECONDS * RATE), np.float32)
    for document, prompts, split in documents(texts):
        file, parts, at = Path("audio", f"{document}.ogg"), [], 0
        for name, audio in prompts:
            parts += [audio, pause]
            entries.append(
                {
                    "id": f"prompt-{name.replace('/', '-')}",
                    "audio": str(file),
                    "text": texts[name],
                    "start": round(at / RATE, 3),
                    "end": round((at + len(audio)) / RATE, 3),
                    "document": document,
                    "speaker": "allison",
                    "license": LICENSE,
                    "source": "asterisk-prompts",
                    "seconds": round(len(audio) / RATE, 2),
                    "split": split,
                }
            )
            at += len(audio) + len(pause)
        encode(out / file, np.concatenate(parts))
    return entries
