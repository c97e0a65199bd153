"""Measure data preparation: times real time of each stage, tokens a second of shard writing, memory over ten hours.

    python data_prep/benchmark.py                      the embedded path, on this machine's cores
    python data_prep/benchmark.py --memory energy      peak memory while a ten-hour recording is cut and becomes units
    python data_prep/benchmark.py --hubert PATH --ctc PATH [--device cuda]      the neural path, with real models

Checks come first: a figure is printed only after the stage's output was found right.
"""

import argparse
import json
import resource
import tempfile
import time
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lst_prep.align import Piece, make_aligner
from lst_prep.audio import RATE, load
from lst_prep.config import AlignConfig, AudioConfig, CuttingConfig, PrepConfig, UnitsConfig
from lst_prep.cutting import Cutter
from lst_prep.manifest import Entry
from lst_prep.tokenizer import load_tokenizer
from lst_prep.transcript import normalise
from lst_prep.units import Codebook, make_extractor
from megatron_lst.documents.schema import Document
from megatron_lst.documents.shards import ShardSet
from megatron_lst.documents.writing import write_set

CORPUS = Path(__file__).parent / "corpus"


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds of one call; on a busy machine the CPU seconds are the fairer ones."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.process_time() - cpu, time.perf_counter() - wall


def line(name: str, amount: float, cpu: float, wall: float, unit: str) -> None:
    print(f"{name:<28} {amount / wall:>14,.0f} {unit} by the clock {amount / cpu:>14,.0f} a CPU second", flush=True)


def embedded(recordings: int) -> None:
    entries = [json.loads(row) for row in (CORPUS / "manifest.jsonl").read_text().splitlines()][:recordings]
    sounds: list[np.ndarray] = []

    def decode() -> None:
        sounds.extend(load(CORPUS / e["audio"], None, None, AudioConfig()).samples for e in entries)

    cpu, wall = timed(decode)
    seconds = sum(map(len, sounds)) / RATE
    line("decode Ogg", seconds, cpu, wall, "x real time")
    extractor = make_extractor(UnitsConfig())
    features = extractor.features(sounds[:2])
    codebook = Codebook(np.concatenate(features)[:501], extractor.name, extractor.fingerprint)
    exact = ((features[0][:50, None] - codebook.centres[None]) ** 2).sum(-1).argmin(1)
    assert (codebook.encode(features[0][:50]) == exact).all(), "units are not the nearest centres"
    cpu, wall = timed(lambda: [codebook.encode(f) for f in extractor.features(sounds)])
    line("units (mfcc, 501 entries)", seconds, cpu, wall, "x real time")
    aligner = make_aligner(AlignConfig(pronunciations=(str(CORPUS / "pronunciations.txt"),), flite=False))
    words = [normalise(e["text"]) for e in entries]
    aligned = aligner.align(sounds[0], words[0])
    assert (np.diff(aligned.seconds.ravel()) >= -1e-9).all(), "word times are not increasing"
    cpu, wall = timed(lambda: [aligner.align(s, w) for s, w in zip(sounds, words, strict=True)])
    line("alignment (pocketsphinx)", seconds, cpu, wall, "x real time")


def shards() -> None:
    """Writing and reading of text shards, 20 M tokens."""
    info = load_tokenizer("mistral-v1").info
    rng = np.random.default_rng(0)
    documents = [
        Document(
            id=str(i),
            source="bench",
            text="word " * 1500,
            token_ids=rng.zipf(1.3, 2000).clip(3, 31999).astype(np.int32),
        )
        for i in range(500)
    ]
    repeat = 20
    with tempfile.TemporaryDirectory() as folder:
        cpu, wall = timed(lambda: write_set(folder, documents * repeat, "text", info))
        made = ShardSet.open(folder)
        assert (made.get(7).token_ids == documents[7].token_ids).all(), "what was written does not come back"
        tokens = float(made.pieces.sum())
        line("write shards (zstd, hashed)", tokens, cpu, wall, "tokens/s")
        cpu, wall = timed(lambda: [document.id for document in made])
        line("read and verify shards", tokens, cpu, wall, "tokens/s")


def neural(hubert: str, ctc: str, layer: int, device: str, recordings: int) -> None:
    entries = [json.loads(row) for row in (CORPUS / "manifest.jsonl").read_text().splitlines()][:recordings]
    sounds = [load(CORPUS / e["audio"], None, None, AudioConfig()).samples for e in entries]
    seconds = sum(map(len, sounds)) / RATE
    if hubert:
        extractor = make_extractor(UnitsConfig("hubert", hubert, layer=layer, device=device))
        assert len(extractor.features(sounds[:1])[0]) == len(sounds[0]) // 640
        cpu, wall = timed(lambda: extractor.features(sounds))
        line("units (hubert)", seconds, cpu, wall, "x real time")
    if ctc:
        aligner = make_aligner(AlignConfig("ctc", ctc, device=device))
        words = [normalise(e["text"]) for e in entries]
        one = aligner.align(sounds[0], words[0])
        assert len(one.seconds) == len(words[0])
        cpu, wall = timed(lambda: aligner.align_batch([Piece(*one) for one in zip(sounds, words, strict=True)]))
        line("alignment (ctc)", seconds, cpu, wall, "x real time")


def memory(by: str) -> None:
    """A ten-hour recording is cut and its pieces become units: the peak must be that of its first hour."""
    with tempfile.TemporaryDirectory() as folder:
        path, config = Path(folder, "10h.wav"), PrepConfig(cutting=CuttingConfig(by))
        entry = json.loads((CORPUS / "manifest.jsonl").read_text().splitlines()[0])
        speech = load(CORPUS / entry["audio"], None, None, config.audio).samples
        minutes = (np.resize(speech, 60 * RATE) * 32767).astype("<i2").tobytes()
        with wave.open(str(path), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(RATE)
            for _ in range(600):
                out.writeframes(minutes)
        cutter, extractor, peaks = Cutter(config), make_extractor(config.units), []
        for hours in (1, 10):
            pieces: list[Entry] = []
            recording = Entry("x", str(path), "", 0.0, 3600.0 * hours)
            cpu, wall = timed(lambda: pieces.extend(cutter.cut(recording)))  # noqa: B023
            assert pieces[0].end, "not cut"
            assert pieces[-1].end == 3600.0 * hours, "not cut to its end"
            line(f"cutting {hours} h ({by})", 3600.0 * hours, cpu, wall, "x real time")
            for piece in pieces:
                extractor.features([load(path, piece.start, piece.end, config.audio).samples])
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        print(f"peak memory of 1 h {peaks[0]:,.0f} MiB, of 10 h {peaks[1]:,.0f} MiB")
        assert peaks[1] < peaks[0] + 40, "memory grows with the file"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=10)
    parser.add_argument("--memory", choices=("vad", "energy"))
    parser.add_argument("--hubert", default="")
    parser.add_argument("--layer", type=int, default=11)
    parser.add_argument("--ctc", default="")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    if arguments.memory:
        memory(arguments.memory)
    elif arguments.hubert or arguments.ctc:
        neural(arguments.hubert, arguments.ctc, arguments.layer, arguments.device, arguments.recordings)
    else:
        embedded(arguments.recordings)
        shards()


if __name__ == "__main__":
    main()
