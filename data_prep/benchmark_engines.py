"""Speed of the engines: units and alignment at 1 and 2 workers, local and Ray, and what handing out an item costs.

    python data_prep/benchmark_engines.py [PIECES [ROUNDS]]     from the repository's root; Ray listens on 127.0.0.1

Items hold about 30 s of the embedded corpus. Rates are those of the last third of them: by then every worker
has loaded its model (of fewer than 200 pieces the second worker sees few). The files of all runs are compared.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from lst_prep.config import AlignConfig, JobConfig, PrepConfig, UnitsConfig
from lst_prep.engine import run_stage
from lst_prep.items import Receipts, Stage, Work
from lst_prep.jobs import Jobs
from lst_prep.pipeline import Preparation

CORPUS = Path("data_prep/corpus")
NOTHING = 400
"""Items without work."""


def nothing_factory() -> Work:
    """Items without work: what is left is the engine, and the receipt."""
    return lambda item: {"files": {}}


def last_third(work: Path, stage: str) -> tuple[float, list[int]]:
    """(seconds, items) of the last third of the receipts."""
    times = sorted((path.stat().st_mtime, int(path.stem)) for path in (work / stage / "receipts").rglob("*.json"))
    first = len(times) - len(times) // 3
    return times[-1][0] - times[first - 1][0], [item for _, item in times[first:]]


def speech(folder: Path, manifest: Path, jobs: JobConfig, codebook: str) -> dict[str, float]:
    """Units and alignment once: what is measured of each. codebook: empty: fitted here."""
    prepared = Preparation(
        PrepConfig(
            manifests=(str(manifest),),
            out=str(folder),
            units=UnitsConfig(extractor="whisper", codebook_size=50, fit_frames=2000, codebook=codebook),
            align=AlignConfig(pronunciations=(str(CORPUS / "pronunciations.txt"),), flite=False),
            jobs=jobs,
        ),
        quiet=True,
    )
    prepared.manifest()
    prepared.codebook()
    found: dict[str, float] = {}
    for name, stage in (("units", prepared.units), ("align", prepared.align)):
        began = time.monotonic()
        stage()
        found[f"{name}, s in all"] = time.monotonic() - began
        seconds, items = last_third(prepared.layout.work, name)
        receipts = Receipts(prepared.layout.work, name, prepared.plan)
        done = [receipts.read(item) for item in items]
        found[f"{name}, x real time"] = sum(result["audio_seconds"] for result in done if result) / seconds
        found[f"{name}, s an item"] = seconds / len(items)
    return found


def nothing(folder: Path, jobs: Jobs) -> float:
    """Milliseconds of an item without work."""
    run_stage(Stage("nothing", NOTHING, nothing_factory), folder, "p", jobs, quiet=True)
    seconds, items = last_third(folder, "nothing")
    return seconds / len(items) * 1e3


def files_of(out: Path) -> dict[str, bytes]:
    """Files and receipts of units and alignment."""
    found = (path for stage in ("units", "align") for path in sorted((out / "work" / stage).rglob("*.*")))
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


def write_manifest(path: Path, pieces: int) -> None:
    """About so many pieces of the embedded corpus."""
    rows = [json.loads(line) for line in (CORPUS / "manifest.jsonl").read_text().splitlines()]
    rows = rows[:: max(1, len(rows) // pieces)]
    lines = [json.dumps({**row, "audio": str((CORPUS / row["audio"]).resolve())}) + "\n" for row in rows]
    path.write_text("".join(lines))


def main() -> None:
    """Print one line of JSON for each number of workers: medians over the rounds, in which the engines alternate."""
    os.environ["OMP_NUM_THREADS"] = "1"
    pieces, rounds = (int(value) for value in (*sys.argv[1:], *("240", "3")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_manifest(folder / "manifest.jsonl", pieces)
        expected: dict[str, bytes] = {}
        codebook = ""  # of the first run
        for workers in (2, 1):  # Ray is started once, with as many CPUs as the first asks for
            measured: dict[str, dict[str, list[float]]] = {engine: defaultdict(list) for engine in ("local", "ray")}
            for round in range(rounds):
                for engine, found in list(measured.items())[:: 1 if round % 2 else -1]:
                    given: dict[str, Any] = {"engine": engine, "address": "local", "workers": workers}
                    out = folder / f"{engine}-{workers}-{round}"
                    found["ms an item without work"].append(nothing(out / "toy", Jobs(**given)))
                    config = JobConfig(**given, item_pieces=4)
                    for name, value in speech(out, folder / "manifest.jsonl", config, codebook).items():
                        found[name].append(value)
                    if not codebook:
                        codebook = str(out / "codebook.safetensors")
                        continue  # its plan, which is in the receipts, names no codebook
                    expected = expected or files_of(out)
                    assert len(expected) > 10 and files_of(out) == expected, "other files"
            for engine, found in measured.items():
                medians = {name: float(f"{statistics.median(values):.3g}") for name, values in found.items()}
                print(json.dumps({"engine": engine, "workers": workers, "rounds": rounds, **medians}), flush=True)
        print(f"{len(expected)} files of units and alignment, receipts included, are the same in every run")


if __name__ == "__main__":
    main()
