"""Rows and units per second of the training stream: one core, then with workers, and whether memory stays flat.

    python benchmarks/data.py [--rows 400] [--workers 0 1 2]

The documents have the statistics of SPEC 7 (9.4 frames and 1.4 pieces a word, 10 minutes a recording), the mixture is
1 : 2, the rows have 4096 units.  Before anything is timed the rows are checked: with and without workers they are the
same, and sound.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from megatron_lst.config.load import build
from megatron_lst.config.schema import Config
from megatron_lst.data import open_loader
from megatron_lst.documents.codec import Codec
from megatron_lst.documents.format import TokenizerInfo
from megatron_lst.documents.schema import Document
from megatron_lst.documents.writing import write_set
from megatron_lst.patching.row import batch_hash


def recording(i: int, words: int = 1600) -> Document:
    """About ten minutes of speech."""
    rng = np.random.default_rng(i)
    gap = rng.integers(1, 8, words) * (rng.random(words) < 0.7)
    end = np.cumsum(gap + np.clip(rng.normal(6.4, 2.5, words).round(), 1, None).astype(int))
    length = np.diff(end, prepend=0) - gap
    pieces = np.concatenate([[0], np.cumsum(1 + (rng.random(words) < 0.35) + (rng.random(words) < 0.05))])
    return Document(
        id=f"recording-{i}",
        source="speech",
        text="word " * words,
        speech_ids=rng.integers(0, 501, int(end[-1]) + 3).astype(np.int16),
        token_ids=rng.integers(3, 32000, int(pieces[-1])).astype(np.int32),
        word_frames=np.stack([end - length, end], 1).astype(np.int32),
        word_tokens=np.stack([pieces[:-1], pieces[1:]], 1).astype(np.int32),
        word_chars=np.stack([np.arange(words) * 5, np.arange(words) * 5 + 4], 1).astype(np.int32),
        word_scores=np.ones(words, np.float32),
    )


def article(i: int) -> Document:
    rng = np.random.default_rng(10**6 + i)
    count = int(np.clip(rng.lognormal(6.5, 1.0), 30, 20_000))
    return Document(
        id=f"article-{i}", source="text", text="a", token_ids=rng.integers(3, 32000, count).astype(np.int32)
    )


def make_config(folder: Path, strategy: str, workers: int) -> Config:
    values: dict[str, Any] = {
        "patching": {"strategy": strategy},
        "data": {
            "workers": workers,
            "cache": str(folder / "cache"),
            "sources": [
                {"name": "speech", "kind": "interleaved", "shards": [str(folder / "speech")], "weight": 1},
                {"name": "text", "kind": "text", "shards": [str(folder / "text")], "weight": 2},
            ],
        },
        "training": {"global_batch": 16, "micro_batch": 4},
    }
    return build(Config, values)


def measure(config: Config, rows: int) -> tuple[float, float, float]:
    """Rows per second after a warm-up, rows per second of this process's CPU time (on a busy machine the truer figure
    for workers=0), and growth of its memory between the first and last third, MiB."""
    batch = config.training.global_batch
    process, memory = psutil.Process(), []
    with open_loader(config, 0, 1) as loader:
        # Warm-up: the first step, and what the workers built meanwhile.
        for _ in range(1 + 4 * (config.data.workers > 0)):
            next(loader)
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(rows // batch):
            next(loader)
            memory.append(process.memory_info().rss / 2**20)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    third = max(1, len(memory) // 3)
    done = rows // batch * batch
    return done / seconds, done / cpu, float(np.median(memory[-third:]) - np.median(memory[:third]))


def check(folder: Path) -> None:
    """Refuse to time rows that are wrong."""
    for strategy in ("static", "aligned"):
        found = []
        for workers in (0, 1):
            with open_loader(make_config(folder, strategy, workers), 0, 1) as loader:
                step = next(loader)
            for row in step.rows:
                row.check(make_config(folder, strategy, workers).vocabulary)
            found.append(batch_hash([r.hash for r in step.rows]))
        if found[0] != found[1]:
            raise SystemExit(f"{strategy}: rows differ with workers ({found}); nothing is timed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = TokenizerInfo("bench", 32000, 1, 2)
        write_set(folder / "speech", map(recording, range(200)), "speech", tokenizer, Codec("bench", (501,)))
        write_set(folder / "text", map(article, range(4000)), "text", tokenizer)
        check(folder)
        print(f"{os.cpu_count()} cores, {arguments.rows} rows of 4096 units")
        print(f"{'strategy':12}{'workers':>8}{'rows/s':>10}{'units/s':>12}{'units/CPU s':>14}{'memory':>14}")
        for strategy in ("none", "static", "aligned", "curriculum"):
            for workers in arguments.workers:
                config = make_config(folder, strategy, workers)
                speed, per_cpu, growth = measure(config, arguments.rows)
                alone = f"{per_cpu * 4096:14,.0f}" if not workers else f"{'':14}"
                print(f"{strategy:12}{workers:8d}{speed:10.1f}{speed * 4096:12,.0f}{alone}{growth:+11.1f} MiB")


if __name__ == "__main__":
    main()
