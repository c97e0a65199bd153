"""`lst init`: spoken recordings up to configurations that are right, and (slow) up to a sample."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lst_prep.config import PrepConfig
from lst_prep.starting import recognise
from megatron_lst.cli.app import app
from megatron_lst.config import load_config
from megatron_lst.config.load import build, read_yaml
from megatron_lst.errors import UserError

WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 sentences, a .txt beside each; one recording without a transcript, and one that is no audio."""
    speaker = shutil.which("espeak-ng") or shutil.which("flite")
    if speaker is None:
        pytest.skip("neither espeak-ng nor flite is installed")
    folder = tmp_path_factory.mktemp("own") / "recordings"
    folder.mkdir()
    for number in range(25):
        text = " ".join(WORDS[(number + i * (1 + number % 5)) % len(WORDS)] for i in range(7))
        wave = folder / f"{number:02d}.wav"
        subprocess.run([speaker, *(["-w", str(wave), text] if "espeak" in speaker else ["-t", text, "-o", str(wave)])])
        if number < 24:
            wave.with_suffix(".txt").write_text(text)
    (folder / "broken.wav").write_bytes(b"no audio")
    (folder / "broken.txt").write_text("no audio at all")
    return folder


def lst(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(
    ("language", "strategy", "aligner"), [("en", "curriculum", "pocketsphinx"), ("", "static", "none")]
)
def test_what_is_written_fits_the_recordings(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str, strategy: str, aligner: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("some words of a book")
    more = ["--language", language] if language else []
    said = lst("init", "mine", "--audio", recordings, "--text", "book.txt", *more)
    assert "folder; 24 recordings" in said
    assert "1 left out: no transcript" in said
    assert "1 left out: audio that libsndfile cannot read" in said
    prep = build(PrepConfig, read_yaml("mine/prep.yaml"))
    run = load_config("mine/train.yaml")
    assert (prep.out, prep.manifests, prep.text[0].path) == ("mine/data", ("mine/manifest.jsonl",), "book.txt")
    assert (run.data.sources[0].shards, run.run.dir) == (("mine/data/speech",), "mine/run")
    assert (run.vocabulary.speech_size, prep.align.aligner) == (prep.units.codebook_size, aligner)
    assert run.patching.strategy == strategy
    manifest = (tmp_path / "mine" / "manifest.jsonl").read_text()
    assert manifest.count('"heldout"') == 5  # each fifth of few
    with pytest.raises(UserError, match="not empty"):
        lst("init", "mine", "--audio", recordings)


def test_what_is_not_understood_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is empty"):
        recognise(tmp_path)
    (tmp_path / "a.wav").touch()
    with pytest.raises(UserError, match="1 audio files and no transcript of any"):
        recognise(tmp_path)
    (tmp_path / "a.txt").touch()
    assert recognise(tmp_path) == "folder"
    (tmp_path / "wavs").mkdir()
    (tmp_path / "metadata.csv").touch()
    assert recognise(tmp_path) == "ljspeech"
    (tmp_path / "1-2.trans.txt").touch()
    with pytest.raises(UserError, match="several layouts: ljspeech in .*, librispeech in"):
        recognise(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        recognise(tmp_path / "gone")


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "it"])
def test_from_recordings_to_a_sample(recordings: Path, tmp_path: Path, language: str) -> None:
    """Every command as `lst init` prints it, with fewer steps."""
    run = [sys.executable, "-P", "-m", "megatron_lst"]

    def call(*arguments: str) -> str:
        done = subprocess.run([*run, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    printed = call("init", "mine", "--audio", str(recordings), "--language", language)
    commands = [line.split()[1:] for line in printed.splitlines() if line.startswith("lst ")]
    for command in commands:
        more = ["training.steps=2", "training.warmup_steps=1"] if command[0] == "train" else []
        said = call(*command, *more)
        if command[:2] == ["prep", "run"]:
            assert f'shards: ["{tmp_path / "mine/data/speech"}"]' in said
            assert "vocabulary: {speech_size: " in said
        if command[0] == "generate":
            lengths = re.search(r"sample\.wav \((.*) s: the prompt (.*) s, the response (.*) s\)", said)
            assert lengths is not None and 0.5 <= float(lengths[2]) <= 4.0, said
    assert (tmp_path / "mine" / "sample.wav").stat().st_size > 1000
