"""Common Voice and LJSpeech, made small: spoken by espeak-ng, or flite where that is missing, as MP3 and as WAV."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import soundfile

from lst_prep import corpora, manifest
from lst_prep.audio import load
from lst_prep.config import AudioConfig
from lst_prep.corpora import Corpus
from lst_prep.corpora.writing import write_manifest

COLUMNS = (
    "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale segment"
)


def speak(path: Path, text: str) -> None:
    """One sentence, in the format that the suffix says."""
    wave, speaker = path.with_suffix(".wav"), shutil.which("espeak-ng") or shutil.which("flite")
    if speaker is None:
        pytest.skip("neither espeak-ng nor flite is installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["-w", str(wave), text] if "espeak" in speaker else ["-t", text, "-o", str(wave)]
    subprocess.run([speaker, *command], check=True, capture_output=True)
    if path.suffix != ".wav":
        samples, rate = soundfile.read(wave)
        soundfile.write(path, samples, rate)  # libsndfile writes MP3
        wave.unlink()


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cv/it of four speakers, with dev, and all that is wrong with a row."""
    folder = tmp_path_factory.mktemp("cv") / "it"
    said = {"1": "buongiorno a tutti", "2": 'disse "ciao" e basta', "3": "una frase nuova", "4": "questa resta fuori"}
    for name, text in said.items():
        speak(folder / "clips" / f"common_voice_it_{name}.mp3", text)

    def row(speaker: str, clip: str, text: str) -> str:
        return "\t".join([speaker, clip, "x", text, "", "2", "0", "", "", "", "", "it", ""])

    head = COLUMNS.replace(" ", "\t")
    mp3 = "common_voice_it_{}.mp3"
    good = {name: row(f"speaker-{name}", mp3.format(name), text) for name, text in said.items()}
    bad = [
        row("speaker-9", "common_voice_it_9.mp3", "non ha un clip"),
        row("speaker-1", "../clips/common_voice_it_1.mp3", "altrove"),
        row("speaker-1", mp3.format(1), " "),
        "speaker-1\tcommon_voice_it_1.mp3",
        row("speaker-4", mp3.format(3), "chi parla si sente solo in dev"),
    ]
    (folder / "validated.tsv").write_text("\n".join([head, *good.values(), *bad]) + "\n")
    (folder / "dev.tsv").write_text("\n".join([head, good["4"]]) + "\n")
    (folder / "train.tsv").write_text("\n".join([head, good["1"]]) + "\n")
    (folder / "invalidated.tsv").write_text("\n".join([head, row("x", mp3.format(1), "nessuno garantisce")]) + "\n")
    return folder


def test_common_voice(voice: Path, tmp_path: Path) -> None:
    out = tmp_path / "manifest.jsonl"
    told = write_manifest("common-voice", voice, out)
    entries = {entry.id[-1]: entry for entry in manifest.read([out], lambda where, why: pytest.fail(f"{where}: {why}"))}
    assert {name: entry.split for name, entry in entries.items()} == {
        "4": "heldout", "1": "train", "2": "train", "3": "train"
    }  # fmt: skip
    two = entries["2"]
    assert (two.text, two.speaker, two.source) == ('disse "ciao" e basta', "speaker-2", "common-voice-it")
    assert load(Path(two.audio), None, None, AudioConfig()).samples.size > 8000
    skipped = [json.loads(line) for line in (tmp_path / "manifest.jsonl.skipped.jsonl").read_text().splitlines()]
    table = voice / "validated.tsv"
    assert [(line["where"], line["why"]) for line in skipped] == [
        (f"{table}:6", "no such clip"),
        (f"{table}:7", "not the name of a clip"),
        (f"{table}:8", "no sentence"),
        (f"{table}:9", "not as many columns as the first line"),
        (f"{table}:10", "a speaker of dev or test"),
    ]
    assert "4 pieces; 5 lines or files were left out" in told


def test_common_voice_of_several_languages_and_of_a_part(voice: Path, tmp_path: Path) -> None:
    part = tmp_path / "release" / "it"
    shutil.copytree(voice, part)
    (part / "validated.tsv").unlink()
    (tmp_path / "release" / "de").mkdir()
    shutil.copy(voice / "train.tsv", tmp_path / "release" / "de")
    corpus = Corpus(tmp_path / "release")
    assert sorted(entry.id[-1] for entry in corpora.read("common-voice", corpus)) == ["1", "4"]
    assert list(corpus.skipped.counts) == ["a language without its clips/"]


def test_ljspeech(tmp_path: Path) -> None:
    root = tmp_path / "LJ"
    speak(root / "wavs" / "LJ001-0001.wav", "printing in nineteen hundred")
    speak(root / "wavs" / "LJ001-0002.wav", "in being modern")
    lines = ["LJ001-0001|Printing in 1900|Printing in nineteen hundred", "LJ001-0002|in being modern", "LJ9|gone|", "x"]
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    corpus = Corpus(root)
    found = {entry.id: entry.text for entry in corpora.read("ljspeech", corpus)}
    assert found == {"LJ/LJ001-0001": "Printing in nineteen hundred", "LJ/LJ001-0002": "in being modern"}
    assert dict(corpus.skipped.counts) == {
        "no audio of that name in wavs/": 1, "not ID|TEXT or ID|TEXT|NORMALISED TEXT": 1
    }  # fmt: skip
