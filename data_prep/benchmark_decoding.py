"""How busy the model of a worker is, with and without threads that decode: 44.1 kHz stereo as Ogg Vorbis and as MP3.

    python data_prep/benchmark_decoding.py [PIECES]        from the repository's root

Three models: `mfcc` and `whisper` compute on this machine's cores, which they share with the threads; `waits` stands
for a GPU: it takes no core, and a second for 300 s of audio. Items hold 4 pieces. The files of all runs are compared.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from scipy.signal import resample_poly

from lst_prep import stages
from lst_prep.audio import RATE, load
from lst_prep.config import AudioConfig, JobConfig, PrepConfig, UnitsConfig
from lst_prep.items import Receipts, do_item
from lst_prep.pipeline import Preparation
from lst_prep.units.extractor import Extractor
from lst_prep.units.mfcc import MfccExtractor

CORPUS = Path("data_prep/corpus")
FORMATS = {"ogg": ("OGG", "VORBIS"), "mp3": ("MP3", "MPEG_LAYER_III")}
SPEED = 300.0
"""x real time of the stand-in for a GPU."""


class Waits(MfccExtractor):
    """MFCC that take as long as a GPU would."""

    def features(self, pieces: Sequence[np.ndarray]) -> list[np.ndarray]:
        time.sleep(sum(map(len, pieces)) / RATE / SPEED)
        return super().features(pieces)


def stand_in(config: UnitsConfig) -> Extractor:
    """In place of `make_extractor`."""
    return Waits(config.hertz)


def recordings(folder: Path, most: int) -> None:
    """The first pieces of the corpus in both formats, and a manifest of each."""
    rows = [json.loads(line) for line in (CORPUS / "manifest.jsonl").read_text().splitlines()][:most]
    for suffix, (container, codec) in FORMATS.items():
        for row in rows:
            wave = resample_poly(load(CORPUS / row["audio"], None, None, AudioConfig()).samples, 441, 160).clip(-1, 1)
            name = f"{row['id'].replace('/', '-')}.{suffix}"
            with soundfile.SoundFile(folder / name, "w", 44100, 2, codec, format=container) as file:
                for begin in range(0, len(wave), 8192):  # libsndfile's Vorbis encoder overflows its stack on more
                    file.write(np.stack([wave[begin : begin + 8192]] * 2, 1))
            with (folder / f"{suffix}.jsonl").open("a") as manifest:
                manifest.write(json.dumps({"id": row["id"], "audio": name, "text": row["text"], "source": "s"}) + "\n")


def units(manifest: Path, out: Path, extractor: str, threads: int) -> dict[str, Any]:
    """One worker does every item."""
    options = UnitsConfig(extractor="whisper" if extractor == "whisper" else "mfcc", codebook_size=20, fit_frames=500)
    jobs = JobConfig(workers=1, item_pieces=4, decode_threads=threads)
    prepared = Preparation(PrepConfig(manifests=(str(manifest),), out=str(out), units=options, jobs=jobs), quiet=True)
    prepared.manifest()
    prepared.codebook()
    function = stages.units_factory(prepared.config)
    receipts = Receipts(prepared.layout.work, "units", prepared.plan)
    items, busy, audio, began = len(prepared.layout.pieces), 0.0, 0.0, time.perf_counter()
    for item in range(items):
        kind, found = do_item(function, receipts, item, item + 1 if item + 1 < items else None)
        assert kind == "done", found
        busy, audio = busy + found["busy"][0], audio + found["audio_seconds"]
    whole = time.perf_counter() - began
    return {"model busy": round(busy / whole, 3), "x real time": round(audio / whole)}


def main() -> None:
    """Print one line of JSON for each measurement; the rounds alternate, for machines that are shared."""
    os.environ["OMP_NUM_THREADS"] = "1"
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 32
    real = stages.make_extractor
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recordings(folder, most)
        for suffix in FORMATS:
            for model in ("waits", "mfcc", "whisper"):
                vars(stages)["make_extractor"] = stand_in if model == "waits" else real
                made: list[dict[str, bytes]] = []
                rounds: dict[int, list[dict[str, Any]]] = {}
                for number in range(3):
                    for threads in (0, 1, 2):
                        out = folder / f"{suffix}-{model}-{threads}-{number}"
                        rounds.setdefault(threads, []).append(units(folder / f"{suffix}.jsonl", out, model, threads))
                        files = sorted((out / "work" / "units").rglob("*.*"))
                        made.append({str(path.relative_to(out)): path.read_bytes() for path in files})
                assert made[0] and all(files == made[0] for files in made), "other files"
                for threads, found in rounds.items():
                    median = {key: float(np.median([one[key] for one in found])) for key in found[0]}
                    print(json.dumps({"audio": suffix, "model": model, "threads": threads, **median}), flush=True)


if __name__ == "__main__":
    main()
