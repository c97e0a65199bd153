"""An export whose units are made by a model: from preparation, with a layer and padding that are not the defaults, to
`lst generate EXPORT --audio` in another folder, with the real HuBERT and Whisper classes and tiny weights."""

import dataclasses
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mistral_common")
pytest.importorskip("soundfile")
pytest.importorskip("transformers")

import transformers

from lst_prep.config import JobConfig, PrepConfig, UnitsConfig
from lst_prep.pipeline import Preparation
from lst_prep.tokenizer import load_tokenizer
from lst_prep.units import Codebook, make_extractor
from megatron_lst.cli.encoders import audio_encoder
from megatron_lst.config.load import dump_yaml
from megatron_lst.config.schema import Config, SourceConfig
from megatron_lst.documents.writing import write_set
from megatron_lst.errors import UserError
from megatron_lst.inference import load_export
from megatron_lst.inference.vocoder import write_wav
from megatron_lst.training.provenance import record
from megatron_lst.vocabulary import Vocabulary
from tests.cli.test_evaluate import document
from tests.cli.test_models import MAKE_RUN
from tests.cli.test_self_contained import lst, lst_process
from tests.data_prep.test_neural import KERNELS, SMALL
from tests.support.slow import with_slow
from tests.support.toy import toy_config

SECONDS = (2.0, 2.4, 2.8, 3.2, 3.6, 4.0)  # no two pieces share a batch
WHISPER = {"d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 48,
           "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 48, "vocab_size": 64,
           "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1, "decoder_start_token_id": 2}  # fmt: skip


@dataclass
class Made:
    """What preparation made of six wav files: its codebook, and the units of the first file."""

    options: UnitsConfig
    codebook: Path
    wav: Path
    units: list[int]


def make_model(kind: str, folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    if kind == "hubert":
        config = transformers.HubertConfig(**SMALL, conv_kernel=KERNELS, conv_stride=(5, 2, 2, 2, 2, 2, 4))
        transformers.HubertModel(config).save_pretrained(folder)
    else:
        transformers.WhisperModel(transformers.WhisperConfig(**WHISPER)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=with_slow(["hubert", "whisper", "embedded"], "whisper"))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    rng = np.random.default_rng(0)
    lines = []
    for number, seconds in enumerate(SECONDS):  # every fifth of a second another loudness and another colour
        count = int(5 * seconds)
        loud, wide = rng.uniform(0.02, 0.3, count), rng.integers(1, 30, count)
        parts = [np.convolve(rng.normal(0, a, 3200), np.ones(w) / w, "same") for a, w in zip(loud, wide, strict=True)]
        write_wav(folder / f"{number}.wav", np.concatenate(parts))
        lines.append({"id": str(number), "audio": f"{number}.wav", "text": "hello", "license": "CC0", "split": "train"})
    (folder / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {
        "hubert": lambda: UnitsConfig("hubert", str(make_model("hubert", folder / "model")), layer=1, padding=64),
        "whisper": lambda: UnitsConfig("whisper", str(make_model("whisper", folder / "model")), layer=2),
        "embedded": lambda: UnitsConfig("whisper", layer=2),
    }[request.param]()
    options = dataclasses.replace(options, codebook_size=50, device="cpu", precision="fp32")
    config = PrepConfig(
        manifests=(str(folder / "m.jsonl"),), out=str(folder / "out"), units=options, jobs=JobConfig(workers=1)
    )
    preparation = Preparation(config, quiet=True)
    preparation.manifest()
    preparation.codebook()
    preparation.units()
    with np.load(preparation.layout.item("units", 0, ".npz")) as found:
        lengths = found["lengths"]
        first = int(np.flatnonzero(found["lines"] == 0)[0])
        units = found["units"][lengths[:first].sum() :][: lengths[first]].tolist()
    assert len(units) == 50
    assert len(set(units)) > 5
    return Made(options, preparation.layout.codebook, folder / "0.wav", units)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A run whose one checkpoint holds initial weights; it has recorded nothing of its shards yet."""
    folder = tmp_path_factory.mktemp("run") / "run"
    source = SourceConfig("speech", "interleaved", (str(folder.parent / "sets" / "speech"),))
    info = load_tokenizer("mistral-v1").info
    config = dataclasses.replace(
        toy_config(data__units=64, data__sources=(source,), run__dir=str(folder)),
        vocabulary=Vocabulary(info.size, 50, info.bos, info.eos),
    )
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_yaml(config))
    subprocess.run([sys.executable, "-c", MAKE_RUN, str(folder)], check=True)
    return folder, config


@pytest.fixture(scope="module")
def run(made: Made, untrained: tuple[Path, Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run on shards of this codebook, which are gone."""
    folder = Path(shutil.copytree(untrained[0], tmp_path_factory.mktemp("copy") / "run"))
    sets, book = untrained[0].parent / "sets", Codebook.load(made.codebook)
    documents = [document(i) for i in range(3)]
    write_set(sets / "speech", documents, "speech", load_tokenizer("mistral-v1").info, book.codec)
    shutil.copyfile(made.codebook, sets / "codebook.safetensors")
    config = untrained[1]
    record(dataclasses.replace(config, run=dataclasses.replace(config.run, dir=str(folder))), False, print)
    shutil.rmtree(sets)
    return folder


@pytest.fixture(scope="module")
def exported(made: Made, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    model = ["--units-model", made.options.model] if made.options.model else []  # the embedded one comes by itself
    done = lst_process(tmp_path_factory.mktemp("cwd"), "export", run, folder, *model)
    assert done.returncode == 0, done.stderr
    assert "note:" not in done.stdout
    return folder


def said(export: Path, prompt: tuple[object, ...], out: Path, *more: object) -> bytes:
    """The sound of prompt and response, which tells the units of both; empty where the response is."""
    lst("generate", export, *prompt, "--to", "speech", "--out", out, "--max-tokens", 4, "--temperature", 0,
        "--device", "cpu", *more)  # fmt: skip
    return out.read_bytes() if out.exists() else b""


def test_the_export_alone_gives_the_units_that_preparation_gave(
    made: Made, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Path(shutil.copytree(exported, tmp_path / "away"))
    monkeypatch.chdir(tmp_path)
    opened = load_export(away)
    encode, _ = audio_encoder(opened.codebook, str(opened.units_model))  # type: ignore[arg-type]
    assert encode(made.wav).tolist() == made.units
    numbers = [" ".join(map(str, units)) for units in (made.units, [*made.units[:-1], (made.units[-1] + 1) % 50])]
    heard = said(away, ("--audio", made.wav), tmp_path / "a.wav")
    assert heard
    assert heard == said(away, ("--units", numbers[0]), tmp_path / "b.wav")
    assert heard != said(away, ("--units", numbers[1]), tmp_path / "c.wav")  # control: one other unit is heard
    if not made.options.model:
        assert (away / "units_model" / "LICENSE").is_file()


def test_a_fitted_codebook_takes_positions_away_and_can_be_heard(made: Made) -> None:
    """Whisper's states tell where they stand, HuBERT's do not; both codebooks say what their units sound like."""
    book, extractor = Codebook.load(made.codebook), make_extractor(made.options)
    places = extractor.positions(25)
    assert (book.position_mean is None) == (places is None) == (made.options.extractor == "hubert")
    assert book.sound is not None
    assert book.sound.shape == (len(book.centres), 13)
    assert np.ptp(book.sound, axis=0).min() > 0
    if book.position_mean is not None:
        assert book.position_mean.shape[1] == extractor.dim
        silent = np.zeros((25, extractor.dim), np.float32)
        assert (book.encode(silent, places) != book.encode(silent + book.position_mean[places], places)).any()


def test_a_codebook_without_settings_means_the_defaults_and_is_refused_by_name(
    made: Made, exported: Path, tmp_path: Path
) -> None:
    """The control: with the settings of older versions' files, the features would be others."""
    old = Codebook.load(made.codebook)
    assert old.settings == dict(make_extractor(made.options).settings)
    old.settings = {}
    old.save(tmp_path / "old.safetensors")
    assert Codebook.load(tmp_path / "old.safetensors").fingerprint == Codebook.load(made.codebook).fingerprint
    expected = "hidden layers 0..3" if made.options.extractor == "hubert" else "does not say its layer"
    with pytest.raises(UserError, match=expected):
        said(exported, ("--audio", made.wav), tmp_path / "a.wav", "--codebook", tmp_path / "old.safetensors")
    other = Codebook.load(made.codebook)
    other.settings["layer"] = 3
    other.save(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"fitted on .* the units are to be made with .*layer 3"):
        said(exported, ("--audio", made.wav), tmp_path / "a.wav", "--codebook", tmp_path / "other.safetensors")
    other.settings = {"dither": 1.0}
    other.save(tmp_path / "newer.safetensors")
    with pytest.raises(UserError, match="setting 'dither', which this version does not know"):
        Codebook.load(tmp_path / "newer.safetensors")
    other.settings = {"layer": 1.5}
    other.save(tmp_path / "half.safetensors")
    with pytest.raises(UserError, match=r"settings.layer is 1.5, expected a whole number from 0"):
        Codebook.load(tmp_path / "half.safetensors")


def test_a_file_without_settings_gives_the_default_layers_units(made: Made, tmp_path: Path) -> None:
    default = dataclasses.replace(made.options, layer=3 if made.options.extractor == "hubert" else None, padding=40)
    extractor = make_extractor(default)
    book = Codebook(np.eye(50, extractor.dim, dtype=np.float32), extractor.name, extractor.fingerprint)
    book.save(tmp_path / "old.safetensors")
    if made.options.extractor == "hubert":  # of the published model: layer 11, which this one lacks
        with pytest.raises(UserError, match=r"units.layer 11"):
            audio_encoder(tmp_path / "old.safetensors", made.options.model)
        return
    encode, _ = audio_encoder(tmp_path / "old.safetensors", made.options.model)
    assert len(encode(made.wav)) == 50


def test_a_model_that_does_not_make_the_units_is_not_exported(made: Made, run: Path, tmp_path: Path) -> None:
    kind = made.options.extractor
    wrong = make_model(kind, tmp_path / "wrong", seed=1)
    with pytest.raises(UserError, match=rf"{wrong}: the codebook was fitted on {kind} features .*layer"):
        lst("export", run, tmp_path / "out", "--units-model", wrong)
    with pytest.raises(UserError, match="--weights-only leaves that out"):
        lst("export", run, tmp_path / "out", "--units-model", wrong, "--weights-only")
    (wrong / "model.safetensors").rename(wrong / "model.bin")
    with pytest.raises(UserError, match="no weights in .safetensors"):
        lst("export", run, tmp_path / "out", "--units-model", wrong)
    assert not list(tmp_path.glob("out*"))


def test_an_export_without_the_model_asks_for_it(made: Made, exported: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(exported, tmp_path / "bare"))
    shutil.rmtree(bare / "units_model")
    if not made.options.model:  # the repository has it
        assert said(bare, ("--audio", made.wav), tmp_path / "a.wav")
        return
    with pytest.raises(UserError, match=rf"of {made.options.extractor} features: give the folder of their model"):
        said(bare, ("--audio", made.wav), tmp_path / "a.wav")
    assert said(bare, ("--audio", made.wav), tmp_path / "a.wav", "--units-model", made.options.model)
