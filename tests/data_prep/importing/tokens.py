"""The same records in every format that `lst prep import` reads, written by the formats' own writers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

RATE, BOOKS = 12.5, (30, 20, 40)
CODEC = {"name": "toy", "rate": RATE, "codebooks": list(BOOKS)}
WORDS = "in the beginning god created the heaven and the earth and the earth was without form".split()


def records(count: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """Records with codes int [T, Q], text (None for each sixth) and seconds."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        frames = int(rng.integers(10, 60))
        codes = np.stack([rng.integers(0, size, frames) for size in BOOKS], axis=1)
        text = None if i % 6 == 5 else " ".join(rng.choice(WORDS, int(rng.integers(3, 12))))
        found.append({"id": f"r{i:03d}", "codes": codes, "text": text, "seconds": frames / RATE})
    return found


def plain(record: dict[str, Any]) -> dict[str, Any]:
    codes = record["codes"]
    return {**record, "codes": codes.tolist() if isinstance(codes, np.ndarray) else codes}


def write_parquet(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    for part, begin in enumerate(range(0, len(rows), 10)):
        table = pa.Table.from_pylist([plain(r) for r in rows[begin : begin + 10]])
        parquet.write_table(table, folder / f"part-{part}.parquet", row_group_size=4)
    return {"format": "parquet", "path": str(folder)}


def write_arrow(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    from datasets import Dataset

    Dataset.from_list([plain(r) for r in rows]).save_to_disk(str(folder), num_shards=2)
    return {"format": "arrow", "path": str(folder)}


def write_arrow_array2d(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    from datasets import Array2D, Dataset, Features, Value

    features = Features(
        id=Value("string"),
        codes=Array2D(shape=(None, len(BOOKS)), dtype="int16"),
        text=Value("string"),
        seconds=Value("float32"),
    )
    Dataset.from_list([plain(r) for r in rows], features=features).save_to_disk(str(folder))
    return {"format": "arrow", "path": str(folder)}


def write_webdataset(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    import webdataset

    folder.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(str(folder / "s-%03d.tar"), maxcount=9, verbose=0) as writer:
        for record in rows:
            about = {"seconds": record["seconds"], "text": record["text"]}
            writer.write({"__key__": record["id"], "codes.npy": record["codes"], "json": about})
    columns = {"tokens": "codes.npy", "text": "json.text", "seconds": "json.seconds"}
    return {"format": "webdataset", "path": str(folder), "columns": columns}


def write_webdataset_npz(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    import webdataset

    folder.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(folder / "all.tar.gz")) as writer:
        for record in rows:
            sample = {"__key__": f"deep/{record['id']}", "npz": {"codes": record["codes"], "other": np.zeros(3)}}
            writer.write(sample | ({"txt": record["text"]} if record["text"] else {}))
    return {"format": "webdataset", "path": str(folder), "columns": {"tokens": "npz.codes", "text": "txt"}}


def write_jsonl(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "all.jsonl"
    path.write_text("".join(json.dumps(plain(r)) + "\n" for r in rows))
    return {"format": "jsonl", "path": str(path)}


def write_jsonl_paths(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Codes in .npy files beside the lines, which are packed."""
    import gzip

    (folder / "codes").mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "all.jsonl.gz", "wt") as out:
        for record in rows:
            np.save(folder / "codes" / f"{record['id']}.npy", record["codes"])
            out.write(json.dumps({**record, "codes": f"codes/{record['id']}.npy"}) + "\n")
    return {"format": "jsonl", "path": str(folder / "all.jsonl.gz")}


def write_nemo(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "audio_filepath": f"{r['id']}.wav",
            "duration": r["seconds"],
            "text": r["text"] or "",
            "codes": r["codes"].tolist(),
        }
        for r in rows
    ]
    (folder / "manifest.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = {"tokens": "codes", "id": "audio_filepath"}
    return {"format": "nemo", "path": str(folder / "manifest.json"), "columns": columns}


def write_npy(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    for record in rows:
        place = folder / record["id"][:3]
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{record['id']}.npy", record["codes"])
        (place / f"{record['id']}.json").write_text(json.dumps({"seconds": record["seconds"]}))
        if record["text"]:
            (place / f"{record['id']}.txt").write_text(record["text"] + "\n")
    columns = {"tokens": "npy", "text": "txt", "seconds": "json.seconds"}
    return {"format": "npy", "path": str(folder), "columns": columns}


def _cuts(folder: Path, rows: list[dict[str, Any]], store: bool) -> Any:
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
    from lhotse.array import TemporalArray
    from lhotse.audio import AudioSource
    from lhotse.features.io import NumpyFilesWriter, get_memory_writer

    folder.mkdir(parents=True, exist_ok=True)
    writer = NumpyFilesWriter(folder / "arrays") if store else get_memory_writer("memory_raw")()
    cuts = []
    for record in rows:
        array = writer.store_array(record["id"], record["codes"], frame_shift=1 / RATE, temporal_dim=0, start=0)
        assert isinstance(array, TemporalArray)
        source = AudioSource("file", [0], f"{record['id']}.wav")
        recording = Recording(record["id"], [source], 16000, round(record["seconds"] * 16000), record["seconds"])
        said = [SupervisionSegment(record["id"], record["id"], 0, record["seconds"], text=record["text"], speaker="s")]
        cut = MonoCut(
            record["id"], 0, record["seconds"], 0, supervisions=said if record["text"] else [],
            recording=recording, custom={"codes": array},
        )  # fmt: skip
        cuts.append(cut)
    return CutSet.from_cuts(cuts)


def write_lhotse(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    _cuts(folder, rows, store=True).to_file(folder / "cuts.jsonl.gz")
    return {"format": "lhotse", "path": str(folder / "cuts.jsonl.gz"), "columns": {"tokens": "codes"}}


def write_shar(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    from lhotse.shar import SharWriter

    with SharWriter(str(folder), fields={"codes": "numpy"}, shard_size=10) as writer:
        for cut in _cuts(folder / "x", rows, store=True):
            writer.write(cut)
    return {"format": "lhotse", "path": str(folder), "columns": {"tokens": "codes"}}


COLUMNS = {"id": "id", "tokens": "codes", "text": "text", "seconds": "seconds"}
WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], dict[str, Any]]] = {
    name.removeprefix("write_"): function for name, function in list(globals().items()) if name.startswith("write_")
}


def configuration(out: Path, *sources: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Values of an ImportConfig."""
    found = [{"name": f"s{i}" if i else "talks", "columns": COLUMNS, **source} for i, source in enumerate(sources)]
    jobs = {"workers": 1, "item_megabytes": 0.002}
    reading = {"attempts": 1, "pause_seconds": 0.0}
    return {"out": str(out), "codec": CODEC, "sources": found, "jobs": jobs, "reading": reading, **more}
