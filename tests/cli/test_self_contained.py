"""`lst export` of a run on real units and a real tokenizer: with the shards gone, from another folder, the export alone
goes from text or audio to text or sound, and refuses a codebook or tokenizer of another model."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("mistral_common")
pytest.importorskip("soundfile")

from lst_prep.tokenizer import load_tokenizer
from lst_prep.units import Codebook
from lst_prep.units.mfcc import MfccExtractor
from megatron_lst.cli import export, generate
from megatron_lst.config.load import dump_yaml
from megatron_lst.config.schema import SourceConfig
from megatron_lst.documents.writing import write_set
from megatron_lst.errors import UserError
from megatron_lst.inference import load_export
from megatron_lst.inference.vocoder import write_wav
from megatron_lst.vocabulary import Vocabulary
from tests.cli.test_evaluate import document
from tests.cli.test_models import MAKE_RUN
from tests.support.toy import toy_config

app = typer.Typer()
app.command()(export.export)
app.command()(generate.generate)


def lst(*arguments: object) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None:
        raise result.exception
    return result.output


def lst_process(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(Path.cwd())!r}); from tests.cli.test_self_contained import app; app()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=300, cwd=folder,
        check=False,
    )  # fmt: skip


def codebook(path: Path, seed: int = 0) -> Codebook:
    extractor = MfccExtractor()
    centres = np.random.default_rng(seed).standard_normal((50, extractor.dim)).astype(np.float32)
    made = Codebook(centres, extractor.name, extractor.fingerprint)
    made.save(path)
    return made


RECORD = """
import sys
from megatron_lst.config.load import load_config
from megatron_lst.training.provenance import record
record(load_config(sys.argv[1] + "/config.yaml"), False, print)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(folder that the run's paths are relative to, a copy of the run elsewhere; the shards are gone)."""
    home = tmp_path_factory.mktemp("home")
    book, text = codebook(home / "sets" / "codebook.safetensors"), load_tokenizer("mistral-v1")
    write_set(
        home / "sets" / "speech", [document(i) for i in range(3)], "speech", text.info, book.codec,
    )  # fmt: skip
    source = SourceConfig("speech", "interleaved", ("sets/speech",))
    config = toy_config(data__units=64, data__sources=(source,), run__dir="run")
    vocabulary = Vocabulary(text.info.size, 50, text.info.bos, text.info.eos)
    (home / "run").mkdir()
    (home / "run" / "config.yaml").write_text(dump_yaml(dataclasses.replace(config, vocabulary=vocabulary)))
    where: dict[str, Any] = {"cwd": home, "check": True, "env": {**os.environ, "PYTHONPATH": _paths()}}
    subprocess.run([sys.executable, "-c", RECORD, "run"], **where)
    subprocess.run([sys.executable, "-c", MAKE_RUN, "run"], **where)
    copy = tmp_path_factory.mktemp("elsewhere") / "run"
    shutil.copytree(home / "run", copy)
    shutil.rmtree(home / "sets")
    return home, copy


def _paths() -> str:
    root = Path(__file__).resolve().parents[2]
    return ":".join(map(str, (root, root / "kernels", root / "data_prep")))


@pytest.fixture(scope="module")
def exported(run: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    done = lst_process(tmp_path_factory.mktemp("cwd"), "export", run[1], folder)
    assert done.returncode == 0, done.stderr
    assert "note:" not in done.stdout
    return folder


def test_fingerprints_and_files_are_in_the_export(exported: Path) -> None:
    opened = load_export(exported)
    assert opened.tokenizer == str(exported / "text_tokenizer.model")
    assert load_tokenizer(opened.tokenizer).info.fingerprint == opened.metadata["tokenizer"]["fingerprint"]
    assert Codebook.load(opened.codebook).fingerprint == opened.metadata["codebook"]["fingerprint"]  # type: ignore[arg-type]
    assert opened.units == 64


def test_every_file_has_the_usual_mode(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode & 0o777
    assert {path.name: path.stat().st_mode & 0o777 for path in exported.iterdir()} == {
        path.name: usual for path in exported.iterdir()
    }


def test_text_and_audio_in_text_and_sound_out(exported: Path, tmp_path: Path) -> None:
    lst("generate", exported, "--text", "In the beginning", "--to", "speech", "--out", tmp_path / "a.wav",
        "--max-tokens", 9)  # fmt: skip
    assert (tmp_path / "a.wav").stat().st_size > 1000
    write_wav(tmp_path / "q.wav", np.random.default_rng(0).standard_normal(16000) / 10)
    assert "text: " in lst("generate", exported, "--audio", tmp_path / "q.wav", "--to", "text", "--max-tokens", 9)


def test_a_prompt_is_the_beginning_of_a_recording(exported: Path, tmp_path: Path) -> None:
    write_wav(tmp_path / "q.wav", np.random.default_rng(0).standard_normal(32000) / 10)
    spoken = ("--audio", tmp_path / "q.wav", "--to", "speech", "--max-tokens", 9, "--out", tmp_path / "a.wav",
              "--temperature", 9, "--top-p", 1, "--seed", 1)  # fmt: skip
    assert "the prompt 0.8 s" in lst("generate", exported, *spoken, "--prompt-seconds", 0.8)
    assert "the prompt 2.0 s" in lst("generate", exported, *spoken)
    assert "the prompt 2.0 s" in lst("generate", exported, *spoken, "--prompt-seconds", 9)
    with pytest.raises(UserError, match="--prompt-seconds cuts --audio, and there is none"):
        lst("generate", exported, "--text", "In the", "--prompt-seconds", 1)


def test_another_codebook_is_refused_whatever_it_is_for(exported: Path, tmp_path: Path) -> None:
    codebook(tmp_path / "same.safetensors")
    codebook(tmp_path / "other.safetensors", seed=1)
    write_wav(tmp_path / "q.wav", np.random.default_rng(0).standard_normal(16000) / 10)
    prompts: list[tuple[object, ...]] = [
        ("--text", "In the", "--to", "speech"), ("--text", "In the", "--to", "speech", "--out", tmp_path / "a.wav"),
        ("--units", "1 2 3", "--to", "speech"), ("--audio", tmp_path / "q.wav", "--to", "text"),
    ]  # fmt: skip
    for prompt in prompts:
        lst("generate", exported, *prompt, "--max-tokens", 2, "--codebook", tmp_path / "same.safetensors")
        with pytest.raises(UserError, match="trained with the codebook of fingerprint"):
            lst("generate", exported, *prompt, "--max-tokens", 2, "--codebook", tmp_path / "other.safetensors")


def test_auto_tokenizer_gives_the_models_ids(exported: Path) -> None:
    transformers = pytest.importorskip("transformers")
    made, opened = transformers.AutoTokenizer.from_pretrained(exported), load_export(exported)
    v, ours = opened.vocabulary, load_tokenizer(str(opened.tokenizer))
    for said in ("And the king said unto the people,", "  two  spaces", "Größe 42% 中文 🙂"):
        assert made(said).input_ids == [v.bos, *ours.encode(said)]
        assert made.decode(ours.encode(said)).strip() == ours.decode(ours.encode(said)).strip()
    assert made.convert_tokens_to_ids(["<|unit_49|>", "<|text|>", "<|speech|>", "<|pad|>"]) == [
        v.text_size + 49, v.text_marker, v.speech_marker, v.pad,
    ]  # fmt: skip
    assert (made.pad_token_id, made.bos_token_id, made.eos_token_id) == (v.pad, v.bos, v.eos)
    assert made("Say<|speech|><|unit_7|>").input_ids[-2:] == [v.speech_marker, v.text_size + 7]


def test_the_pipeline_of_transformers_continues_text(exported: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import megatron_lst.hf  # noqa: F401 - registers the model

    pipe = transformers.pipeline("text-generation", model=str(exported), device="cpu")
    said = ["And the king said", "In"]
    together = pipe(said, batch_size=2, max_new_tokens=4, modality="text")
    alone = [pipe(s, max_new_tokens=4, modality="text")[0]["generated_text"] for s in said]
    assert [answers[0]["generated_text"] for answers in together] == alone
    assert all(answer.startswith(s) and len(answer) > len(s) for answer, s in zip(alone, said, strict=True))
    assert len(pipe(said[0], max_new_tokens=4, num_return_sequences=2, do_sample=True)) == 2
    with pytest.raises(UserError, match="repetition_penalty=1.3"):
        pipe(said[0], repetition_penalty=1.3)


def test_a_run_without_a_record_is_not_exported_blindly(run: tuple[Path, Path], tmp_path: Path) -> None:
    old = Path(shutil.copytree(run[1], tmp_path / "run"))
    shutil.rmtree(old / "provenance")
    done = lst_process(tmp_path, "export", old, tmp_path / "out")
    assert "does not record what its ids mean" in done.stderr
    assert done.returncode
    assert not (tmp_path / "out").exists()
    assert lst_process(tmp_path, "export", old, tmp_path / "out", "--weights-only").returncode == 0
    assert load_export(tmp_path / "out").codebook is None


def test_a_codebook_that_is_not_at_hand_is_asked_for(run: tuple[Path, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run[1], tmp_path / "run"))
    (copy / "provenance" / "codebook.safetensors").unlink()
    with pytest.raises(UserError, match=r"the codebook .* is not at hand: give --codebook FILE, or --weights-only"):
        lst("export", copy, tmp_path / "out")
    codebook(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(UserError, match="the run was trained with"):
        lst("export", copy, tmp_path / "out", "--codebook", tmp_path / "other.safetensors")
    assert not list(tmp_path.glob("out*"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        lst("export", copy, tmp_path / "file" / "out", "--weights-only")
    with pytest.raises(UserError, match="no complete checkpoint of step 9"):
        lst("export", copy, tmp_path / "out", "--weights-only", "--step", 9)
    assert not list(tmp_path.glob("out*"))
