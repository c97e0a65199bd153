"""What pages have to show: a small preparation that rejects some of its pieces, and a run that was cut off.

The texts of both are hostile.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import soundfile

from lst_prep.config import AlignConfig, JobConfig, PrepConfig, TextSource, UnitsConfig
from lst_prep.pipeline import run as run_preparation
from lst_prep.units import Codebook
from megatron_lst.evaluation.report import write_results
from megatron_lst.training.metrics import MetricsWriter
from megatron_lst.training.resilience.events import EventLog
from tests.data.toy import SPEECH
from tests.training.tiny import write_run

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
    run_preparation(config, quiet=True)
    return config


def run_folder(folder: Path) -> Path:
    """A run as training leaves it, cut off in the middle: texts are hostile here, too."""
    write_run(folder)
    shutil.copytree(folder / "sets" / "speech", folder / "sets" / "held-out")
    held_out = [{"name": "speech", "kind": "interleaved", "shards": [str(folder / "sets" / "held-out")]}]
    config = write_run(
        folder,
        training={"steps": 40},
        evaluation={"every": 10},
        patching={"strategy": "curriculum"},
        data={"validation": held_out},
    )
    run = folder / "run"
    run.mkdir(parents=True)
    shutil.copyfile(config, run / "config.yaml")
    with MetricsWriter(run, 0) as metrics:
        for step in range(1, 31):
            loss = 5 / step**0.5
            record = {"step": step, "loss": loss, "loss_speech": loss + 1, "loss_text": loss - 1, "grad_norm": 1.0}
            record |= {"lr": 1e-3, "units": 256, "tokens": 900, "seconds": 0.5, "units_per_second": 512.0}
            if step % 10 == 0:
                record |= {"heldout_speech_loss": loss, "heldout_speech_loss_speech": loss + 1.1}
                record |= {"heldout_choice_S->S": 0.5 + step / 100}
            metrics.write(record)
    centres = np.random.default_rng(0).standard_normal((SPEECH, 39))
    (run / "provenance").mkdir()
    Codebook(centres, "mfcc", "toy").save(run / "provenance" / "codebook.safetensors")
    log = EventLog(run / "events.log")
    log.write("engine", f"attention: {SCRIPT}", 0)
    log.write("checkpoint_failed", "No space left on device", 20)
    samples = run / "samples"
    samples.mkdir()
    tone = 0.3 * np.sin(np.arange(16000) * 0.2)
    soundfile.write(samples / "speech.wav", tone, 16000)
    (samples / "speech.txt").write_text(f"[0] units 3 17 {SCRIPT}")
    (samples / "text.txt").write_text(f"In the beginning {IMAGE}")
    (samples / "broken.wav").write_bytes(b"RIFF")
    measure = {"mean": 0.6, "low": 0.5, "high": 0.7, "count": 40}
    task = {"task": "heldout_continuation", "direction": "S->S", "items": 40, "refused": [], "ties": {}, "chance": 0.5}
    task |= {"accuracy": {"mean": measure, "sum": measure, "per_character": None}, "published": {}, "scores": []}
    write_results(run / "eval", {"name": "run"}, [task], {"speech_loss": 4.5, "text_loss_speech": float("nan")})
    return run
