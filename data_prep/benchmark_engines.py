"""Speed of the engines: units and alignment at 1 and 2 workers, local and Ray, and what handing out an item costs.

    python data_prep/benchmark_engines.py [PIECES]        from the repository's root; Ray is started here, on 127.0.0.1

Items hold about 30 s of the embedded corpus. Rates are those between the first and the last receipt, so that starting
workers and loading models is not in them. The files of both engines are compared first.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lst_prep.config import AlignConfig, JobConfig, PrepConfig, UnitsConfig
from lst_prep.engine import run_stage
from lst_prep.items import Stage, Work
from lst_prep.jobs import Jobs
from lst_prep.pipeline import Preparation

CORPUS = Path("data_prep/corpus")
NOTHING = 400
"""Items without work."""


def nothing_factory() -> Work:
    """Items without work: what is left is the engine, and the receipt."""
    return lambda item: {"files": {}}


def between(work: Path, stage: str) -> tuple[float, int]:
    """(seconds from the first receipt to the last, receipts)."""
    times = sorted(path.stat().st_mtime for path in (work / stage / "receipts").rglob("*.json"))
    return times[-1] - times[0], len(times)


def speech(folder: Path, manifest: Path, jobs: JobConfig) -> dict[str, Any]:
    """Units and alignment once; x real time of each."""
    prepared = Preparation(
        PrepConfig(
            manifests=(str(manifest),),
            out=str(folder),
            units=UnitsConfig(extractor="whisper", codebook_size=50, fit_frames=2000),
            align=AlignConfig(pronunciations=(str(CORPUS / "pronunciations.txt"),), flite=False),
            jobs=jobs,
        ),
        quiet=True,
    )
    prepared.manifest()
    prepared.codebook()
    found = {}
    for name, stage in (("units", prepared.units), ("align", prepared.align)):
        began = time.monotonic()
        stage()
        whole = time.monotonic() - began
        seconds, items = between(prepared.layout.work, name)
        every = list(prepared.results(name, items))
        audio = sum(result["audio_seconds"] for result in every if result) * (items - 1) / items
        found[name] = {"x real time": round(audio / seconds, 1), "s an item": round(seconds / (items - 1), 3)}
        found[name]["start, s"] = round(whole - seconds, 1)
    return found


def main() -> None:
    """Print one line of JSON for each measurement."""
    os.environ["OMP_NUM_THREADS"] = "1"
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 96
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = [json.loads(line) for line in (CORPUS / "manifest.jsonl").read_text().splitlines()]
        rows = rows[:: max(1, len(rows) // most)]
        for row in rows:
            row["audio"] = str((CORPUS / row["audio"]).resolve())
        manifest = folder / "manifest.jsonl"
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        made: dict[str, dict[str, bytes]] = {}
        for workers in (2, 1):  # Ray is started once, with as many CPUs as the first asks for
            for engine in ("local", "ray"):
                given = {"engine": engine, "address": "local", "workers": workers}
                out = folder / f"{engine}-{workers}"
                stage = Stage("nothing", NOTHING, nothing_factory)
                run_stage(stage, out / "toy", "p", Jobs(**given), quiet=True)
                seconds, items = between(out / "toy", "nothing")
                print(
                    json.dumps({**given, "nothing": {"ms an item": round(seconds / (items - 1) * 1e3, 2)}}), flush=True
                )
                print(json.dumps({**given, **speech(out, manifest, JobConfig(**given, item_pieces=4))}), flush=True)
                made[out.name] = {
                    str(path.relative_to(out)): path.read_bytes()
                    for stage in ("units", "align")
                    for path in sorted((out / "work" / stage).rglob("*.*"))
                }
        assert len(made["local-1"]) > 10 and all(files == made["local-1"] for files in made.values()), "other files"
        print(f"{len(made['local-1'])} files of units and alignment, receipts included, are the same for all four")


if __name__ == "__main__":
    main()
