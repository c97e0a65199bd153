"""Make the embedded corpus: synthetic speech in four voices, human recordings, and public-domain text.

Needs Debian packages that the project itself does not need (as root):

    apt-get install -y flite espeak-ng pocketsphinx-testdata bible-kjv bible-kjv-text ffmpeg \\
        asterisk-core-sounds-en asterisk-core-sounds-en-g722

and then, from the repository's root, with the `prep` extra installed:

    python data_prep/make_corpus.py --out data_prep/corpus --minutes 45

What it writes is described in `data_prep/corpus/README.md`.  More minutes, other seeds and other books give a larger
corpus of the same kind.  The output is a function of the arguments and of the synthesisers' versions, except for the
serial numbers that Ogg puts into its files.
"""

import argparse
import io
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import zstandard
from pocketsphinx import Decoder
from scipy.signal import resample_poly

from lst_prep.pronounce import flite_pronunciation
from lst_prep.transcript import normalise
from make_prompts import make_prompts
from megatron_lst.documents.heldout import HeldOut

RATE = 16000
VOICES = ("slt", "rms", "awb", "kal16")
"""flite voices; `--voices` takes `espeak` too (its formant speech aligns badly: 4 of 10 passages are rejected)."""
SPEECH_BOOKS = ["Ge", "Exo", "Ruth", "1Sm", "Jonah", "Prv", "Eccl", "Mat", "Mark", "Luke", "John", "Acts"]
HELD_OUT_TEXT_EVERY = 97
"""Every 97th chapter of the text is held out (about 1 %)."""
LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")
LIBRIVOX_TEXT = {
    "0870": "And Mr. John Dashwood had then leisure to consider how much there might be prudently in his power "
    "to do for them.",
    "0880": "He was not an ill-disposed young man,",
    "0890": "unless to be rather cold hearted and rather selfish is to be ill-disposed:",
    "0920": "Had he married a more amiable woman, he might have been made still more respectable than he was:",
    "0930": "he might even have been made amiable himself;",
}


def read_kjv() -> dict[tuple[str, int], list[str]]:
    """(book, chapter) -> verses, in the order of the book."""
    dump = subprocess.run(
        ["bible", "-f", "-l100000", "gen1:1-rev22:21"], capture_output=True, text=True, check=True
    ).stdout
    chapters: dict[tuple[str, int], list[str]] = {}
    for line in dump.splitlines():
        match = re.fullmatch(r"(\d?[A-Za-z]+)(\d+):(\d+) (.+)", line.strip())
        if match:
            chapters.setdefault((match[1], int(match[2])), []).append(match[4].strip())
    return chapters


def speak(text: str, voice: str) -> np.ndarray:
    """Synthesise one passage. Returns float32 [samples] at 16 kHz."""
    spoken = text.replace("LORD", "Lord").replace("GOD", "God")
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder, "out.wav")
        if voice == "espeak":
            command = ["espeak-ng", "-v", "en-us", "-s", "150", "-w", str(wav), spoken]
        else:
            command = ["flite", "-voice", voice, "-t", spoken, "-o", str(wav)]
        subprocess.run(command, check=True, capture_output=True)
        audio, rate = soundfile.read(wav, dtype="float32")
    if rate != RATE:
        divisor = int(np.gcd(rate, RATE))
        audio = resample_poly(audio, RATE // divisor, rate // divisor).astype(np.float32)
    return audio


def passages(chapters: dict[tuple[str, int], list[str]], rng: np.random.Generator) -> Iterator[tuple[str, list[str]]]:
    """Endless stream of (name, verses): consecutive verses of one chapter, 30 to 90 s long when read aloud."""
    keys = [key for key in chapters if key[0] in SPEECH_BOOKS]
    assert {key[0] for key in keys} == set(SPEECH_BOOKS), {key[0] for key in keys}
    for key in (keys[i] for i in rng.permutation(len(keys))):
        verses, words = [], int(rng.integers(85, 215))
        first = int(rng.integers(1, max(2, len(chapters[key]) - 8)))
        for verse in chapters[key][first - 1 :]:
            verses.append(verse)
            if sum(len(v.split()) for v in verses) >= words:
                yield f"{key[0].lower()}{key[1]}-{first}", verses
                break


def write_ogg(path: Path, audio: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(path, "w", RATE, 1, format="OGG", subtype="VORBIS", compression_level=0.9) as file:
        for begin in range(0, len(audio), RATE):
            file.write(audio[begin : begin + RATE])


def make_speech(
    out: Path,
    chapters: dict[tuple[str, int], list[str]],
    voices: list[str],
    minutes: float,
    held_minutes: float,
    seed: int,
) -> list[dict[str, object]]:
    """Write the synthetic recordings; returns their manifest lines."""
    rng = np.random.default_rng(seed)
    stream = passages(chapters, rng)
    entries: list[dict[str, object]] = []
    held = HeldOut()
    for key in held_out_chapters(chapters):
        held.add("\n".join(chapters[key]))
    for split, target in (("heldout", held_minutes), ("train", minutes)):
        seconds = dict.fromkeys(VOICES, 0.0)
        while sum(seconds.values()) < target * 60:
            voice = min(voices, key=seconds.__getitem__)
            name, verses = next(stream)
            text = " ".join(verses)
            if split == "heldout":
                held.add(text)
            elif held.find(text):
                continue
            audio = speak(text, voice)
            audio = 0.6 * audio / np.abs(audio).max() + rng.normal(0, 1e-4, len(audio)).astype(np.float32)
            file = Path("audio", f"{voice}-{name}.ogg")
            write_ogg(out / file, audio)
            seconds[voice] += len(audio) / RATE
            entries.append(
                {
                    "id": file.stem,
                    "audio": str(file),
                    "text": text,
                    "speaker": voice,
                    "license": "public domain text; see README.md for the voice",
                    "source": "kjv-synthetic",
                    "seconds": round(len(audio) / RATE, 2),
                    "split": split,
                }
            )
        print(split, {voice: round(s / 60, 1) for voice, s in seconds.items()}, "minutes")
    return entries


def make_human(out: Path) -> list[dict[str, object]]:
    """The LibriVox sentences of pocketsphinx-testdata, consecutive pieces of one document where they are."""
    entries: list[dict[str, object]] = []
    for number, text in LIBRIVOX_TEXT.items():
        audio, rate = soundfile.read(LIBRIVOX / f"sense_and_sensibility_01_austen_64kb-{number}.wav", dtype="float32")
        assert rate == RATE, rate
        file = Path("audio", f"librivox-sense-{number}.ogg")
        write_ogg(out / file, audio)
        entries.append(
            {
                "id": file.stem,
                "audio": str(file),
                "text": text,
                "speaker": "librivox-sense",
                "license": "public domain",
                "source": "librivox",
                "document": "librivox-sense-" + ("a" if number < "0900" else "b"),
                "seconds": round(len(audio) / RATE, 2),
                "split": "train",
            }
        )
    return entries


def held_out_chapters(chapters: dict[tuple[str, int], list[str]]) -> set[tuple[str, int]]:
    return {key for index, key in enumerate(chapters) if index % HELD_OUT_TEXT_EVERY == 40}


def make_text(out: Path, chapters: dict[tuple[str, int], list[str]]) -> None:
    lines, held = [], held_out_chapters(chapters)
    for (book, chapter), verses in chapters.items():
        split = "heldout" if (book, chapter) in held else "train"
        lines.append(json.dumps({"id": f"{book.lower()}{chapter}", "text": "\n".join(verses), "split": split}))
    path = out / "text" / "kjv.jsonl.zst"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.ZstdCompressor(level=19).compress(("\n".join(lines) + "\n").encode()))
    words = sum(len(verse.split()) for verses in chapters.values() for verse in verses)
    print(f"text: {len(lines)} chapters, {words} words, {path.stat().st_size} bytes")


def make_pronunciations(out: Path, entries: list[dict[str, object]]) -> None:
    """Pronunciations of the words that the aligner's own dictionary lacks, by flite's letter-to-sound rules."""
    decoder = Decoder(lm=None, loglevel="FATAL")
    words = {spoken for entry in entries for word in normalise(str(entry["text"])) for spoken in word.spoken}
    table = io.StringIO()
    missing = sorted(word for word in words if decoder.lookup_word(word) is None)
    for word in missing:
        table.write(f"{word}\t{' '.join(flite_pronunciation(word))}\n")
    (out / "pronunciations.txt").write_text(table.getvalue())
    print(f"pronunciations: {len(missing)} of {len(words)} words are not in the aligner's dictionary")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data_prep/corpus"))
    parser.add_argument("--voices", nargs="+", default=list(VOICES))
    parser.add_argument("--minutes", type=float, default=45.0, help="training speech, all voices together")
    parser.add_argument("--heldout-minutes", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    chapters = read_kjv()
    entries = make_speech(
        arguments.out,
        chapters,
        arguments.voices,
        arguments.minutes,
        arguments.heldout_minutes,
        arguments.seed,
    )
    entries += make_human(arguments.out)
    entries += make_prompts(arguments.out)
    (arguments.out / "manifest.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    make_pronunciations(arguments.out, entries)
    make_text(arguments.out, chapters)


if __name__ == "__main__":
    main()
