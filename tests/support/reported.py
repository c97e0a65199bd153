"""A small preparation whose texts are hostile and which rejects some of its pieces: what its page has to show."""

import json
from pathlib import Path

import numpy as np
import soundfile

from lst_prep.config import AlignConfig, JobConfig, PrepConfig, TextSource, UnitsConfig
from lst_prep.pipeline import run

CORPUS = Path(__file__).parents[2] / "data_prep" / "corpus"
SCRIPT = "<script>alert(document.title)</script>"
IMAGE = "\"><img src=x onerror='alert(1)'>"


def prepared(folder: Path) -> PrepConfig:
    """Two human recordings by a hostile speaker, one of them held out; a silent one and one with a hostile transcript,
    which are rejected."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in (CORPUS / "manifest.jsonl").read_text().splitlines()]
    human = [{**e, "audio": str(CORPUS / e["audio"])} for e in lines if e["source"] == "librivox"]
    good = [{**e, "speaker": IMAGE, "split": "train", "document": ""} for e in human]
    good[-1]["split"] = "heldout"
    samples, rate = soundfile.read(good[0]["audio"], frames=16000)
    soundfile.write(folder / "hostile.wav", samples, rate)
    soundfile.write(folder / "silent.wav", np.zeros(16000), 16000)
    bad = [
        {"id": f"bad-{name}", "audio": f"{name}.wav", "text": text, "source": f"bad {IMAGE}"}
        for name, text in (("hostile", f"{SCRIPT} and more"), ("silent", "nothing is said"))
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(e) + "\n" for e in [*good, *bad]))
    (folder / "text.jsonl").write_text(json.dumps({"id": "a", "text": "In the beginning was the word."}) + "\n")
    config = PrepConfig(
        manifests=(str(folder / "manifest.jsonl"),),
        text=(TextSource("toy", str(folder / "text.jsonl"), "none"),),
        out=str(folder / "out"),
        units=UnitsConfig(codebook_size=32),
        align=AlignConfig(pronunciations=(str(CORPUS / "pronunciations.txt"),), flite=False),
        jobs=JobConfig(workers=1, item_pieces=2),
    )
    run(config, quiet=True)
    return config
