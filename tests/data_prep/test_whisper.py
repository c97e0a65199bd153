"""Units from Whisper's encoder: the real encoder of tiny.en that comes with the repository, on real speech."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from lst_prep.audio import load
from lst_prep.config import AudioConfig, PrepConfig, UnitsConfig
from lst_prep.units import Codebook, make_extractor
from lst_prep.units.codebook import agreement, fit, position_mean, without_position
from lst_prep.units.whisper import EMBEDDED, EMBEDDED_FINGERPRINTS, WhisperExtractor, load_encoder
from megatron_lst.errors import UserError
from megatron_lst.inference.vocoder import SpectralVocoder

transformers = pytest.importorskip("transformers")

CORPUS = Path(__file__).parents[2] / "data_prep" / "corpus"


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """36 s of one recording, float32 at 16 kHz."""
    line = json.loads((CORPUS / "manifest.jsonl").read_text().splitlines()[0])
    return load(CORPUS / line["audio"], 0.0, 36.0, AudioConfig()).samples


@pytest.fixture(scope="module")
def whisper() -> WhisperExtractor:
    extractor = make_extractor(UnitsConfig("whisper"))
    assert isinstance(extractor, WhisperExtractor)
    assert extractor.fingerprint == EMBEDDED_FINGERPRINTS[4]
    return extractor


@pytest.fixture(scope="module")
def codebook(whisper: WhisperExtractor) -> Codebook:
    """Fitted as preparation fits it, on half a minute of each of sixteen recordings."""
    lines = [json.loads(line) for line in (CORPUS / "manifest.jsonl").read_text().splitlines()[1:17]]
    features = whisper.features([load(CORPUS / line["audio"], 0.0, 30.0, AudioConfig()).samples for line in lines])
    positions = np.concatenate([whisper.positions(len(found)) for found in features])
    joined = np.concatenate(features)
    place = position_mean(joined, positions, 17)
    centres = fit(without_position(joined, positions, place), 50, 0)
    return Codebook(centres, "whisper", whisper.fingerprint, position_mean=place)


def test_thirty_seconds_are_transformers_own_hidden_states(whisper: WhisperExtractor, speech: np.ndarray) -> None:
    piece = speech[: 16000 * 30]
    encoder, mel = load_encoder("")
    waves = mel([piece], sampling_rate=16000, return_tensors="pt").input_features
    with torch.inference_mode():
        states = encoder(waves).last_hidden_state[0].numpy()
    mine = whisper.features([piece])[0]
    assert mine.shape == (750, 384)
    np.testing.assert_allclose(mine, states.reshape(750, 2, 384).mean(1), atol=2e-4)


def test_batches_and_lengths_change_nothing(whisper: WhisperExtractor, speech: np.ndarray) -> None:
    pieces = [speech[:n] for n in (16000, 40000, 100, 16000 + 639)] + [speech[16000:32000]]
    together = whisper.features(pieces)
    assert [len(found) for found in together] == [25, 62, 0, 25, 25]
    for piece, features in zip(pieces, together, strict=True):
        np.testing.assert_allclose(whisper.features([piece])[0], features, atol=1e-4)
    np.testing.assert_array_equal(together[0], together[3])  # less than a frame at the end is left out


def test_silence_up_to_thirty_seconds_would_change_units(
    whisper: WhisperExtractor, codebook: Codebook, speech: np.ndarray
) -> None:
    """The control of `true length`: the decoder's convention gives other units."""
    piece = speech[: 16000 * 6]
    padded = np.concatenate([piece, np.zeros(16000 * 24, np.float32)])
    mine, theirs = codebook.units(whisper, [piece, padded])
    assert 0.005 < (mine != theirs[:150]).mean() < 0.3


def test_units_tell_what_is_said_and_not_where(
    whisper: WhisperExtractor, codebook: Codebook, speech: np.ndarray
) -> None:
    """The same speech heard five seconds later has the same units, away from the cut; not so with raw states."""
    begin, margin = 5 * 25, 25
    early, late = codebook.units(whisper, [speech[16000 * 5 : 16000 * 25], speech[: 16000 * 25]])
    inner = slice(margin, len(early) - margin)
    assert (early[inner] == late[begin:][inner]).mean() > 0.8
    blind = Codebook(fit(whisper.features([speech[: 16000 * 30]])[0], 50, 0), "whisper", whisper.fingerprint)
    early, late = blind.units(whisper, [speech[16000 * 5 : 16000 * 25], speech[: 16000 * 25]])
    assert (early[inner] == late[begin:][inner]).mean() < 0.3


def test_long_audio_is_read_in_windows_that_agree_with_one_pass(
    whisper: WhisperExtractor, codebook: Codebook, speech: np.ndarray
) -> None:
    piece = speech[: 16000 * 30]
    shorter = make_extractor(UnitsConfig("whisper", piece_seconds=20.0))
    (one,), (several,) = (codebook.units(extractor, [piece]) for extractor in (whisper, shorter))
    assert (one == several).mean() > 0.85
    # Without overlap each edge would be heard without what stands beside it.
    blind = np.concatenate(codebook.units(whisper, [piece[:240000], piece[240000:]]))
    near = slice(365, 385)
    assert (one[near] == several[near]).mean() > (one[near] == blind[near]).mean()
    assert len(codebook.units(whisper, [speech])[0]) == 900
    assert whisper.positions(900).tolist() == [*range(450), *range(300, 750)]


def test_position_mean_is_the_mean_of_neighbours() -> None:
    positions = np.array([0, 1, 2, 3, 0, 1])
    features = np.array([[0.0], [1.0], [2.0], [9.0], [4.0], [3.0]], np.float32)
    np.testing.assert_allclose(position_mean(features, positions, 1)[:, 0], [2, 2, 2, 9])
    np.testing.assert_allclose(position_mean(features, positions, 3)[:, 0], [2, 2, 15 / 4, 5.5])
    shifted = without_position(np.zeros((2, 1), np.float32), np.array([1, 700]), np.array([[1.0], [2.0]], np.float32))
    assert shifted[:, 0].tolist() == [-2, -2]


@pytest.mark.parametrize(("rate", "frames"), [(50, 50), (12.5, 12), ("25/2", 12)])
def test_rates(speech: np.ndarray, rate: float | str, frames: int) -> None:
    extractor = make_extractor(UnitsConfig("whisper", rate=rate))
    assert extractor.rate == Fraction(str(rate))
    assert extractor.features([speech[:16000]])[0].shape == (frames, 384)


def test_bf16_agreement_is_measured(codebook: Codebook, whisper: WhisperExtractor, speech: np.ndarray) -> None:
    lower = make_extractor(UnitsConfig("whisper", precision="bf16"))
    assert isinstance(lower, WhisperExtractor)
    assert not lower.exact
    assert whisper.exact
    assert lower.fingerprint == whisper.fingerprint
    alike, frames = agreement(lower, codebook, [speech[:240000]])
    assert frames == 375
    assert 0.9 < alike / frames < 1


def test_a_whole_checkpoint_gives_what_its_encoder_gives(tmp_path: Path) -> None:
    sizes = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 48, "vocab_size": 64}
    ids = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1, "decoder_start_token_id": 2}
    torch.manual_seed(0)
    config = transformers.WhisperConfig(**sizes, **decoder, **ids)
    transformers.WhisperForConditionalGeneration(config).save_pretrained(tmp_path / "whole")
    audio = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    last, first = (make_extractor(UnitsConfig("whisper", str(tmp_path / "whole"), layer=n)) for n in (None, 1))
    assert last.dim == 32
    assert last.fingerprint != first.fingerprint
    assert not np.allclose(last.features([audio])[0], first.features([audio])[0])
    with pytest.raises(UserError, match=r"units.layer 3: the model has hidden layers 0..2"):
        make_extractor(UnitsConfig("whisper", str(tmp_path / "whole"), layer=3))


def test_what_is_no_whisper_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers.BertConfig(num_hidden_layers=1).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="is a 'bert', not a Whisper"):
        make_extractor(UnitsConfig("whisper", str(tmp_path / "bert")))
    with pytest.raises(UserError, match="cannot be loaded as a Whisper"):
        make_extractor(UnitsConfig("whisper", str(tmp_path)))
    with pytest.raises(UserError, match="windows of 20 to 30 s"):
        make_extractor(UnitsConfig("whisper", piece_seconds=12.0))
    with pytest.raises(UserError, match="50 Hz divided by a whole number"):
        make_extractor(UnitsConfig("whisper", rate=20))
    with pytest.raises(UserError, match="not one of mfcc, whisper, hubert"):
        PrepConfig(units=UnitsConfig("whispers"))


def test_an_encoder_with_other_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, _ = load_encoder("")
    with torch.no_grad():
        encoder.conv1.bias += 0.5
    tensors = {f"model.encoder.{name}": tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((EMBEDDED / "config.json").read_bytes())
    monkeypatch.setattr("lst_prep.units.whisper.EMBEDDED", tmp_path)
    with pytest.raises(UserError, match="take it from git again"):
        make_extractor(UnitsConfig("whisper"))
    del tensors["model.encoder.conv1.bias"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="its encoder lacks 1 tensors, the first is encoder.conv1.bias"):
        make_extractor(UnitsConfig("whisper", str(tmp_path)))


def test_a_codebook_that_says_how_its_units_sound_is_heard(tmp_path: Path) -> None:
    sound = np.random.default_rng(0).normal(0, 1, (3, 13)).astype(np.float32)
    place = np.ones((5, 384), np.float32)
    book = Codebook(np.eye(3, 384, dtype=np.float32), "whisper", "f", sound=sound, position_mean=place)
    book.save(tmp_path / "codebook.safetensors")
    assert Codebook.load(tmp_path / "codebook.safetensors").fingerprint == book.fingerprint
    speak = SpectralVocoder.from_codebook(tmp_path / "codebook.safetensors")
    np.testing.assert_array_equal(speak(np.array([0, 1, 2])), SpectralVocoder(sound)(np.array([0, 1, 2])))
    mute = Codebook(book.centres, "whisper", "f")
    assert mute.fingerprint != book.fingerprint
    mute.save(tmp_path / "mute.safetensors")
    with pytest.raises(UserError, match="does not say what its units sound like"):
        SpectralVocoder.from_codebook(tmp_path / "mute.safetensors")
