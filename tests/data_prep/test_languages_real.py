"""French recordings of people and Chinese of a synthesiser, from audio to ten steps of training; Whisper base aligns.

Needs espeak-ng, ffmpeg, and Debian's asterisk-core-sounds-fr and asterisk-core-sounds-fr-g722 (CC-BY-SA 3.0).
"""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lst_prep.config import AlignConfig, JobConfig, PrepConfig, UnitsConfig
from lst_prep.pipeline import run
from lst_prep.plausible import doubts
from lst_prep.tokenizer import load_tokenizer
from megatron_lst.documents.schema import Document
from megatron_lst.documents.shards import ShardSet
from tests.evaluation.test_judge import _model

pytest.importorskip("icu4py")
SOUNDS = Path("/usr/share/asterisk/sounds/fr_CA_f_June")
TEXTS = Path("/usr/share/doc/asterisk-core-sounds-fr/core-sounds-fr.txt.gz")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.models,
    pytest.mark.skipif(not (shutil.which("espeak-ng") and shutil.which("ffmpeg")), reason="needs espeak-ng and ffmpeg"),
    pytest.mark.skipif(
        not (SOUNDS.is_dir() and TEXTS.is_file()), reason="needs asterisk-core-sounds-fr-g722 and its texts"
    ),
]
CHINESE = [
    "今天天气很好，我们去公园散步。", "他昨天买了一本新书。", "北京是中国的首都。", "我喜欢喝茶，你呢？",
    "这个问题很难回答。", "明天上午九点我们开会。", "她的中文说得非常好。", "请把门关上，谢谢。",
    "火车站离这里不远。", "孩子们在花园里玩。", "我每天早上六点起床。", "学习语言需要时间。",
]  # fmt: skip


def french(folder: Path, most: int) -> list[dict[str, str]]:
    """Prompts of five words and more, as they were recorded."""
    lines = list[dict[str, str]]()
    for content in gzip.decompress(TEXTS.read_bytes()).decode().splitlines():
        name, _, text = content.partition(": ")
        source = SOUNDS / f"{name}.g722"
        if (
            content.startswith(";")
            or len(text.split()) < 5
            or "[" in text
            or not source.is_file()
            or len(lines) >= most
        ):
            continue
        wav = folder / f"{name.replace('/', '-')}.wav"
        subprocess.run(["ffmpeg", "-v", "error", "-f", "g722", "-i", source, "-ar", "16000", wav], check=True)
        lines.append(
            {"id": f"fr-{name}", "audio": wav.name, "text": text.strip(), "language": "fr", "source": "asterisk"}
        )
    return lines


def chinese(folder: Path) -> list[dict[str, str]]:
    lines = []
    for number, text in enumerate(CHINESE):
        wav = folder / f"zh-{number}.wav"
        subprocess.run(["espeak-ng", "-v", "cmn", "-s", "150", "-w", str(wav), text], check=True)
        lines.append({"id": f"zh-{number}", "audio": wav.name, "text": text, "language": "zh", "source": "espeak"})
    return lines


def look_at(document: Document) -> str:
    """A line a word, for people who run this with -s."""
    words = zip(document.word_chars, document.word_frames, strict=True)
    return " ".join(f"{document.text[a:b]}[{begin / 25:.2f}-{end / 25:.2f}]" for (a, b), (begin, end) in words)


def test_french_and_chinese_are_prepared_and_trained(tmp_path: Path) -> None:
    model = _model("base", tmp_path)
    lines = [*french(tmp_path, 24), *chinese(tmp_path)]
    for number, line in enumerate(lines):
        line["split"] = "heldout" if number % 10 == 9 else "train"
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    config = PrepConfig(
        manifests=(str(tmp_path / "m.jsonl"),), out=str(tmp_path / "out"), units=UnitsConfig(codebook_size=64),
        align=AlignConfig("whisper", str(model)), jobs=JobConfig(workers=1),
    )  # fmt: skip
    summary = run(config, quiet=True)
    print(summary["rejected"], summary["languages"])
    assert sum(summary["rejected"].values()) <= 0.1 * len(lines)
    tokenizer, seen = load_tokenizer("mistral-v1"), {"asterisk": 0, "espeak": 0}
    for document in ShardSet.open(tmp_path / "out" / "speech"):
        document.check(64, 32000)
        assert doubts(document, tokenizer.info, tokenizer) == []
        assert document.token_ids.tolist() == tokenizer.encode(document.text)
        seen[document.source] += 1
        if seen[document.source] <= 4:
            print(look_at(document))
        spoken = np.diff(document.word_frames, axis=1)[:, 0]
        assert np.median(spoken) <= 25, look_at(document)  # most words take less than a second
    assert seen["asterisk"] >= 18
    assert seen["espeak"] >= 9
    said = summary["languages"]
    assert 1.5 < said["speech/fr"]["words"] / said["speech/fr"]["seconds"] < 4
    assert 1.5 < said["speech/zh"]["words"] / said["speech/zh"]["seconds"] < 5
    out = tmp_path / "out"
    (tmp_path / "run.yaml").write_text(
        f"""
model: {{hidden: 64, layers: 2, heads: 2, local_hidden: 32, local_heads: 2, decoder_layers: 1, window: 64}}
vocabulary: {{speech_size: 64}}
patching: {{strategy: aligned}}
data:
  units: 128
  workers: 0
  sources: [{{name: speech, kind: interleaved, shards: [{out / "speech"}], weight: 1}}]
training: {{steps: 10, global_batch: 2, micro_batch: 2, precision: fp32, lr: 3.0e-3, warmup_steps: 2}}
run: {{dir: {tmp_path / "run"}}}
"""
    )
    command = [sys.executable, "-m", "megatron_lst", "train", str(tmp_path / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps if "loss" in step]
    print(losses)
    assert len(losses) == 10
    assert losses[-1] < losses[0]
