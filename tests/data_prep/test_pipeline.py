"""A slice of the embedded corpus through the whole pipeline, for real."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lst_prep.config import AlignConfig, JobConfig, PrepConfig, ShardConfig, TextSource, UnitsConfig
from lst_prep.pipeline import run
from lst_prep.tokenizer import load_tokenizer
from megatron_lst.documents.heldout import HeldOut
from megatron_lst.documents.shards import ShardSet, verify
from megatron_lst.errors import UserError

CORPUS = Path(__file__).parents[2] / "data_prep" / "corpus"


def small_config(folder: Path) -> PrepConfig:
    """The human recordings, the two shortest synthetic ones and one held-out one; forty chapters of text."""
    lines = [json.loads(line) for line in (CORPUS / "manifest.jsonl").read_text().splitlines()]
    train = sorted((e for e in lines if e["source"] == "kjv-synthetic" and e["split"] == "train"), key=_seconds)
    held = sorted((e for e in lines if e["source"] == "kjv-synthetic" and e["split"] == "heldout"), key=_seconds)
    chosen = train[:2] + held[:1] + [e for e in lines if e["source"] == "librivox"]
    for entry in chosen:
        entry["audio"] = str(CORPUS / entry["audio"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(e) + "\n" for e in chosen))
    sample = [
        {"id": "a", "text": "In the beginning was the word.\nThis line is of no book. " + held[0]["text"]},
        {"id": "b", "text": "Quite another text, which stays."},
        {"id": "c", "text": "quite another TEXT which stays"},
        {"id": "h", "text": "A sentence that is held out. And one more of them.", "split": "heldout"},
        {"id": "d", "text": "Before it. And one more, of them! After it."},
    ]
    (folder / "text.jsonl").write_text("".join(json.dumps(e) + "\n" for e in sample) + "no json\n")
    return PrepConfig(
        manifests=(str(folder / "manifest.jsonl"),),
        text=(TextSource("toy", str(folder / "text.jsonl"), "none"),),
        out=str(folder / "out"),
        units=UnitsConfig(codebook_size=64),
        align=AlignConfig(pronunciations=(str(CORPUS / "pronunciations.txt"),), flite=False),
        shards=ShardConfig(size_limit=4096),
        jobs=JobConfig(workers=1, item_pieces=2),
    )


def _seconds(entry: dict[str, float]) -> float:
    return entry["seconds"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[PrepConfig, dict]:
    config = small_config(tmp_path_factory.mktemp("prep"))
    return config, run(config, quiet=True)


def test_every_set_is_there_and_whole(prepared: tuple[PrepConfig, dict]) -> None:
    config, summary = prepared
    assert set(summary["sets"]) == {"speech", "text", "heldout-speech", "heldout-text"}
    assert summary["sets"]["speech"]["documents"] == 4, summary["rejected"]
    for name in summary["sets"]:
        assert verify(Path(config.out) / name) == []


def test_speech_documents_are_aligned_and_tokenised(prepared: tuple[PrepConfig, dict]) -> None:
    config, _ = prepared
    tokenizer = load_tokenizer("mistral-v1")
    shards = ShardSet.open(Path(config.out) / "speech", kind="speech", tokenizer=tokenizer.info.fingerprint)
    for document in shards:
        document.check(64, tokenizer.info.size)
        assert tokenizer.encode(" ".join(document.text.split())) == document.token_ids.tolist()
        words = [document.text[a:b] for a, b in document.word_chars]
        assert " ".join(words).split() == document.text.split()
        assert len(words) >= 0.98 * len(document.text.split())  # a word without a frame of its own joins another
        spoken = (document.word_frames[:, 1] - document.word_frames[:, 0]).sum() / len(document.speech_ids)
        assert 0.5 < spoken < 0.99
        assert len(np.unique(document.speech_ids)) > 20
    ids = {document.id for document in shards}
    assert {"librivox-sense-a", "librivox-sense-b"} <= ids


def test_pieces_of_one_recording_are_joined(prepared: tuple[PrepConfig, dict]) -> None:
    config, _ = prepared
    document = next(d for d in ShardSet.open(Path(config.out) / "speech") if d.id == "librivox-sense-a")
    assert document.text.split()[:2] == ["And", "Mr."]
    assert document.text.split()[-1] == "ill-disposed:"
    assert 14 < len(document.speech_ids) / 25 < 16


def test_held_out_sentences_are_in_no_training_document(prepared: tuple[PrepConfig, dict]) -> None:
    config, summary = prepared
    heldout = HeldOut.load(Path(config.out) / "heldout.json")
    texts = [(d.id, d.text) for name in ("speech", "text") for d in ShardSet.open(Path(config.out) / name)]
    assert heldout.assert_disjoint(texts) == len(texts) > 6
    assert summary["heldout_sentences_removed_from_text"] >= 3
    kept = {d.id: d.text for d in ShardSet.open(Path(config.out) / "text")}
    assert kept["b"] == "Quite another text, which stays."
    assert "c" not in kept
    assert any(text == "Before it." for text in kept.values())
    assert any(text == "After it." for text in kept.values())
    held = [d.text for name in ("heldout-speech", "heldout-text") for d in ShardSet.open(Path(config.out) / name)]
    assert all(heldout.find(text) for text in held)


def test_rejections_are_counted(prepared: tuple[PrepConfig, dict]) -> None:
    assert prepared[1]["rejected"] == {"bad_text_line": 1, "duplicate_text": 1}


def test_the_report_has_a_section_a_source(prepared: tuple[PrepConfig, dict]) -> None:
    page = (Path(prepared[0].out) / "report.md").read_text()
    for heading, count in (("speech, librivox", 2), ("speech, kjv-synthetic", 2), ("heldout-speech, kjv-synthetic", 1)):
        assert f"## {heading}\n\n{count} documents looked at." in page
    assert prepared[1]["rejected_by_source"] == {"toy": {"bad_text_line": 1, "duplicate_text": 1}}


def test_a_rerun_does_nothing_and_another_plan_is_refused(prepared: tuple[PrepConfig, dict]) -> None:
    config, summary = prepared
    before = {p: p.stat().st_mtime_ns for p in Path(config.out).rglob("*.npz") if "sizes" not in p.name}
    assert run(config, quiet=True) == summary
    assert {p: p.stat().st_mtime_ns for p in before} == before
    with pytest.raises(UserError, match=r"units\.codebook_size was 64, is now 65"):
        run(replace(config, units=UnitsConfig(codebook_size=65)), quiet=True)
