"""Units to waveform: the inverse spectrum against the features' own definition, and a tiny HiFi-GAN checkpoint."""

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lst_prep.units import Codebook
from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.inference import vocoder
from megatron_lst.inference.hifigan import Generator, HifiGanVocoder
from megatron_lst.inference.vocoder import SpectralVocoder, cosine_basis, filter_bank, inverse_stft, stft, write_wav


def test_filters_and_basis_are_those_of_the_features() -> None:
    mfcc = pytest.importorskip("lst_prep.units.mfcc")
    bank, basis = mfcc._matrices()
    np.testing.assert_allclose(filter_bank(), bank, atol=1e-6)
    np.testing.assert_allclose(cosine_basis(), basis, atol=1e-6)


def test_inverse_stft_undoes_stft() -> None:
    samples = np.random.default_rng(0).standard_normal(3200)
    back = inverse_stft(stft(samples))
    np.testing.assert_allclose(back[200:-200], samples[200:-200], atol=1e-8)


def test_the_waveform_has_the_spectrum_that_the_units_name() -> None:
    """Encode the vocoder's own output with the features: cepstra of the result follow the centres' cepstra."""
    mfcc = pytest.importorskip("lst_prep.units.mfcc")
    rng = np.random.default_rng(1)
    centres = np.zeros((4, 39))
    centres[:, :6] = rng.standard_normal((4, 6))
    units = np.repeat([0, 1, 2, 3, 1, 0], 10)
    samples = SpectralVocoder(centres, pitch=None)(units)
    assert samples.dtype == np.float32
    assert len(samples) == 640 * len(units)
    assert np.abs(samples).max() == pytest.approx(0.7, abs=1e-3)
    measured = mfcc.cepstra(samples).reshape(-1, 4, 13).mean(1)
    wanted = SpectralVocoder(centres).cepstra[units]
    steady = np.arange(len(units)) % 10 >= 3
    for coefficient in range(1, 6):
        correlation = np.corrcoef(measured[steady, coefficient], wanted[steady, coefficient])[0, 1]
        assert correlation > 0.9, (coefficient, correlation)
    shuffled = SpectralVocoder(centres).cepstra[np.repeat([2, 0, 3, 1, 3, 2], 10)]
    assert np.corrcoef(measured[steady, 1], shuffled[steady, 1])[0, 1] < 0.8


def test_pitch_is_heard_and_empty_is_empty() -> None:
    centres = np.zeros((2, 39))
    voiced = SpectralVocoder(centres, pitch=125.0)(np.zeros(50, int)).astype(np.float64)
    lags = np.correlate(voiced[8000:16000], voiced[8000:16000], "full")[8000 - 1 :]
    assert 120 <= np.argmax(lags[100:200]) + 100 <= 136, "a period of 128 samples is 125 Hz"
    assert len(SpectralVocoder(centres)(np.zeros(0, int))) == 0


def test_reads_a_codebook_and_refuses_others(tmp_path: Path) -> None:
    path = tmp_path / "codebook.safetensors"
    centres = np.zeros((3, 39), np.float32)
    Codebook(centres, "mfcc", "some fingerprint").save(path)
    speak = SpectralVocoder.from_codebook(path)
    with pytest.raises(UserError, match=r"units must be in \[0, 3\)"):
        speak(np.array([3]))
    Codebook(centres, "hubert", "another").save(path)
    with pytest.raises(UserError, match="of hubert features and does not say"):
        SpectralVocoder.from_codebook(path)
    with pytest.raises(UserError, match="cannot be read"):
        SpectralVocoder.from_codebook(tmp_path / "none")
    with pytest.raises(UserError, match="expected"):
        SpectralVocoder(np.zeros((3, 5)))


def test_wav(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.array([0.0, 0.5, -2.0]))
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getframerate(), file.getnchannels()) == (vocoder.RATE, 1)
        assert np.frombuffer(file.readframes(3), "<i2").tolist() == [0, 16384, -32767]


CONFIG = {
    "model_in_dim": 6, "num_embeddings": 5, "embedding_dim": 6, "upsample_rates": [5, 4],
    "upsample_kernel_sizes": [11, 8], "upsample_initial_channel": 8, "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
    "sampling_rate": 500,
}  # fmt: skip


PUBLISHED = {
    # The keys of a published configuration, smaller: what training alone needs is there too, and is passed over.
    **CONFIG, "resblock": "1", "f0": False, "multispkr": "from_input_file", "num_speakers": 3, "multistyle": True,
    "num_styles": 2, "model_in_dim": 18, "num_gpus": 0, "batch_size": 16, "code_hop_size": 20, "num_mels": 80,
    "dur_predictor_params": {"encoder_embed_dim": 6, "var_pred_hidden_dim": 6, "var_pred_kernel_size": 3,
                             "var_pred_dropout": 0.5},
}  # fmt: skip


def checkpoint(folder: Path, config: dict[str, Any] = CONFIG, name: str = "config.json") -> Generator:
    """A checkpoint in the published layout: weight norm apart, under `generator`."""
    torch.manual_seed(0)
    generator = Generator(config)
    weights = {}
    for key, value in generator.state_dict().items():
        if key.endswith("weight") and value.dim() == 3:
            norm = value.flatten(1).norm(dim=1).view(-1, *[1] * (value.dim() - 1))
            weights[key + "_g"], weights[key + "_v"] = norm, value * 3.0
        else:
            weights[key] = value
    weights["dur_predictor.proj.weight"] = torch.zeros(1, 2)
    folder.mkdir()
    (folder / name).write_text(json.dumps(config))
    torch.save({"generator": weights}, folder / "g_00001")
    return generator


def test_hifigan_loads_the_published_layout(tmp_path: Path) -> None:
    generator = checkpoint(tmp_path / "v")
    speak = HifiGanVocoder(tmp_path / "v", units=5)
    units = np.array([0, 4, 2, 2, 1])
    samples = speak(units)
    assert (speak.rate, samples.dtype, len(samples)) == (500, np.float32, 100)
    with torch.no_grad():
        np.testing.assert_allclose(samples, generator(torch.from_numpy(units), 0), atol=1e-6)
    with pytest.raises(UserError, match="has 5 units, the model's codebook has 501"):
        HifiGanVocoder(tmp_path / "v", units=501)


def test_hifigan_refuses_what_does_not_fit_and_code(tmp_path: Path) -> None:
    checkpoint(tmp_path / "v")
    (tmp_path / "v" / "config.json").write_text(json.dumps({**CONFIG, "upsample_initial_channel": 16}))
    with pytest.raises(UserError, match="do not fit"):
        HifiGanVocoder(tmp_path / "v")
    torch.save({"generator": Path("/")}, tmp_path / "v" / "g_00001")
    with pytest.raises(DamagedDataError, match="plain tensors"):
        HifiGanVocoder(tmp_path / "v")
    with pytest.raises(UserError, match=r"config\.json"):
        HifiGanVocoder(tmp_path)


def test_hifigan_of_several_speakers_and_styles(tmp_path: Path) -> None:
    generator = checkpoint(tmp_path / "v", PUBLISHED, "hifigan-config.json")
    units = np.array([0, 4, 2])
    spoken = {
        (speaker, style): HifiGanVocoder(tmp_path / "v", speaker=speaker, style=style)(units)
        for speaker in (0, 2)
        for style in (0, 1)
    }
    with torch.no_grad():
        np.testing.assert_allclose(spoken[2, 1], generator(torch.from_numpy(units), 2, 1), atol=1e-6)
    assert not np.allclose(spoken[0, 0], spoken[2, 0])
    assert not np.allclose(spoken[0, 0], spoken[0, 1])
    with pytest.raises(UserError, match="speaker 3, it has 3"):
        HifiGanVocoder(tmp_path / "v", speaker=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"f0": True}, "pitch contour"),
        ({"embedder_params": {"x": 1}}, "embedding of the speaker's voice"),
        ({"resblock": "2"}, "resblock 2"),
        ({"sampling_rate": 1000}, "of 50 units a second"),
        ({"num_embeddings": None}, "has no num_embeddings"),
    ],
)
def test_hifigan_says_what_it_cannot_do(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    checkpoint(tmp_path / "v")
    config = {key: value for key, value in {**CONFIG, **change}.items() if value is not None}
    (tmp_path / "v" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        HifiGanVocoder(tmp_path / "v")
