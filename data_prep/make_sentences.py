"""Make the same sentences in several voices: what `lst prep units-quality` compares units on.

    python data_prep/make_sentences.py data_prep/corpus/sentences

Short verses of held-out chapters of the embedded text, each spoken by flite's four voices (apt-get install flite).
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zstandard

from make_corpus import VOICES, speak, write_ogg

TEXT = Path(__file__).parent / "corpus/text/kjv.jsonl.zst"


def sentences(count: int, path: Path = TEXT) -> list[str]:
    """Verses of 9 to 11 words, evenly spread over the held-out chapters."""

    def found() -> Iterator[str]:
        raw = zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read()
        for line in map(json.loads, raw.decode().splitlines()):
            if line["split"] == "heldout":
                yield from (verse for verse in line["text"].split("\n") if 9 <= len(verse.split()) <= 11)

    every = list(found())
    return every[:: len(every) // count][:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sentences", type=int, default=12)
    options = parser.parse_args()
    entries = []
    for number, text in enumerate(sentences(options.sentences)):
        for voice in VOICES:
            audio, file = speak(text, voice), Path(f"{voice}-{number:02}.ogg")
            write_ogg(options.out / file, 0.6 * audio / np.abs(audio).max())
            entries.append({"id": file.stem, "audio": str(file), "text": text, "speaker": voice})
    (options.out / "manifest.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


if __name__ == "__main__":
    main()
