"""Residual vector quantisation of the embedded corpus, as one Parquet file: input for `lst prep import`.

    python data_prep/make_rvq.py data/rvq/talks.parquet          8 codebooks at 12.5 Hz, no word times

No weights of a neural codec come with this repository. These codes are those of residual k-means over real features
(MFCC with their differences, one frame every 80 ms): each codebook quantises what the ones before it leave over, as the
codebooks of Mimi or EnCodec do. They have a codec's shape and statistics of real speech; nobody could speak with them.
"""

import argparse
import json
from fractions import Fraction
from pathlib import Path

import numpy as np

CORPUS = Path(__file__).resolve().parent / "corpus"


def features(limit: int, rate: Fraction) -> list[tuple[dict[str, str], np.ndarray, float]]:
    """(manifest line, float32 [T, 39], seconds) of the corpus's first recordings."""
    from lst_prep.audio import load
    from lst_prep.config import AudioConfig
    from lst_prep.units.mfcc import MfccExtractor

    extractor, found = MfccExtractor(rate), []
    lines = (CORPUS / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    for line in lines[:limit] if limit else lines:
        entry = json.loads(line)
        sound = load(CORPUS / entry["audio"], None, None, AudioConfig())
        found.append((entry, extractor.features([sound.samples])[0], sound.seconds))
    return found


def residual_codes(frames: np.ndarray, depth: int, size: int, seed: int = 0) -> np.ndarray:
    """int64 [T, depth]: nearest centre of each codebook, fitted on what the ones before leave over."""
    from lst_prep.units.codebook import Codebook, fit

    left, codes = frames.astype(np.float32), []
    for book in range(depth):
        centres = fit(left, size, seed + book)
        code = Codebook(centres, "residual", str(book)).encode(left).astype(np.int64)
        codes.append(code)
        left = left - centres[code]
    return np.stack(codes, axis=1)


def make(path: Path, depth: int = 8, size: int = 256, rate: Fraction = Fraction(25, 2), limit: int = 0) -> int:
    """Write the file. Returns the number of recordings."""
    import pyarrow as pa
    from pyarrow import parquet

    found = features(limit, rate)
    codes = residual_codes(np.concatenate([f for _, f, _ in found]), depth, size)
    ends = np.cumsum([len(f) for _, f, _ in found])
    rows = [
        {
            "id": entry["id"],
            "codes": codes[end - len(f) : end].tolist(),
            "text": entry["text"],
            "seconds": seconds,
            "speaker": entry.get("speaker", ""),
            "split": entry.get("split", "train"),
        }
        for (entry, f, seconds), end in zip(found, ends, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=16)
    return len(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--codebooks", type=int, default=8)
    parser.add_argument("--size", type=int, default=256, help="entries of each codebook")
    parser.add_argument("--rate", type=Fraction, default=Fraction(25, 2), help="frames a second; 100 / a whole number")
    parser.add_argument("--recordings", type=int, default=0, help="0: all")
    given = parser.parse_args()
    count = make(given.out, given.codebooks, given.size, given.rate, given.recordings)
    print(f"{given.out}: {count} recordings, {given.codebooks} codebooks of {given.size} at {float(given.rate):g} Hz")
