"""Units by the same sentences in several voices: measures by hand, then mfcc and whisper on the repository's set."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lst_prep.config import PrepConfig, UnitsConfig
from lst_prep.units.quality import Utterance, edit_distance, markdown, measure, unit_error
from lst_prep.units_quality import SENTENCES, quality
from megatron_lst.cli.prep import prep_app
from megatron_lst.errors import UserError

ROOT = Path(__file__).parents[2]


def slow_distance(a: list[int], b: list[int]) -> int:
    """As the definition has it."""
    if not a or not b:
        return len(a) + len(b)
    change = slow_distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(change, slow_distance(a[1:], b) + 1, slow_distance(a, b[1:]) + 1)


def test_edit_distance_is_the_definition() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        a, b = (rng.integers(0, 3, rng.integers(0, 7)) for _ in range(2))
        assert edit_distance(a, b) == slow_distance(a.tolist(), b.tolist())


def test_unit_error_counts_runs_once() -> None:
    assert unit_error(np.array([1, 1, 2, 2, 3]), np.array([1, 2, 3, 3])) == 0.0
    assert unit_error(np.array([1, 2, 3, 4]), np.array([1, 9, 3])) == 0.5
    assert unit_error(np.zeros(0, int), np.array([1, 2])) == 1.0


def made(words: bool, voices: int = 3, sentences: int = 4) -> list[Utterance]:
    """Units that are the words, or units that are the voice."""
    rng = np.random.default_rng(0)
    spoken = rng.integers(0, 50, (sentences, 20))
    own = rng.integers(0, 50, (sentences, voices, 20))
    return [
        Utterance(f"s{s}", f"v{v}", spoken[s] if words else own[s, v] + 50 * v)
        for s in range(sentences)
        for v in range(voices)
    ]


def test_units_of_words_and_units_of_voices() -> None:
    words, voices = measure(made(True)), measure(made(False))
    assert (words.same.value, words.retrieved.value) == (0.0, 1.0)
    assert (words.same.count, words.other.count, words.retrieved.count) == (3 * 4, 3 * 12, 3 * 2 * 4)
    assert words.other.value > 0.8
    assert voices.same.value > 0.9
    assert voices.retrieved.value < 0.5
    assert words.voice.value == pytest.approx(words.voice_chance, abs=0.1)
    assert voices.voice.value > 0.6 > 0.4 > voices.voice_chance
    page = markdown({"a": words})
    assert "| a | " in page
    assert "24 of 24" in page


def test_one_speaker_is_refused() -> None:
    with pytest.raises(UserError, match="no two speakers who say the same two sentences"):
        measure([u for u in made(True) if u.speaker == "v0"])


def test_a_tie_is_no_find() -> None:
    same = [Utterance(f"s{s}", f"v{v}", np.array([1, 2, 3])) for s in range(2) for v in range(2)]
    assert measure(same).retrieved.value == 0.0


def test_mfcc_tells_the_voice_and_whisper_the_words(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    corpus = str(ROOT / "data_prep/corpus/manifest.jsonl")

    def of(extractor: str) -> PrepConfig:
        return PrepConfig(manifests=(corpus,), out=str(tmp_path), units=UnitsConfig(extractor, codebook_size=100))

    lines = [json.loads(line) for line in SENTENCES.read_text().splitlines()]
    few = tmp_path / "few.jsonl"  # six sentences
    kept = [{**line, "audio": str(SENTENCES.parent / line["audio"])} for line in lines[:24]]
    few.write_text("".join(json.dumps(line) + "\n" for line in kept))
    said = list[str]()
    mfcc, whisper = (quality(of(name), few, 4.0, said.append) for name in ("mfcc", "whisper"))
    assert said[0].startswith("mfcc: codebook fitted on ")
    assert whisper.same.value < 0.5 < 0.7 < mfcc.same.value
    assert whisper.retrieved.value > 0.95 > 0.8 > mfcc.retrieved.value
    assert whisper.retrieved.count == mfcc.retrieved.count == 4 * 3 * 6
    assert whisper.voice.value < mfcc.voice.value


def test_the_command_wants_sentences_and_known_extractors(tmp_path: Path) -> None:
    config = tmp_path / "prep.yaml"
    config.write_text("units: {extractor: mfcc}\n")
    missing = CliRunner().invoke(prep_app, ["units-quality", str(config), "--sentences", str(tmp_path / "none")])
    assert "give --sentences" in str(missing.exception)
    unknown = CliRunner().invoke(prep_app, ["units-quality", str(config), "--extractor", "mfccs"])
    assert "not one of mfcc, whisper, hubert" in str(unknown.exception)
    empty = CliRunner().invoke(prep_app, ["units-quality", str(config)])
    assert "no training recording to fit a codebook on" in str(empty.exception)
