"""Judges by name, command and folder: tiny Wav2Vec2 and Whisper models made here, read back offline."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from megatron_lst.errors import UserError
from megatron_lst.evaluation.error_rates import error_rate
from megatron_lst.evaluation.recogniser import RATE, of_speech_ids, open_judge
from megatron_lst.inference.vocoder import SpectralVocoder

pytest.importorskip("transformers")
MANIFEST = Path(__file__).parents[2] / "data_prep" / "corpus" / "manifest.jsonl"


def tone(seconds: float, rate: int = RATE) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 220 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_a_command_hears_the_file_and_its_failure_is_told(tmp_path: Path) -> None:
    script = tmp_path / "hear.py"
    script.write_text(
        "import sys, wave\n"
        "with wave.open(sys.argv[1]) as f: print(f.getframerate(), 'Hz', f.getnframes() / f.getframerate(), 's')\n"
    )
    hear = open_judge(f"{sys.executable} {script} {{wav}}", None)
    assert hear(tone(0.5), RATE) == "16000 Hz 0.5 s"
    assert hear(tone(0.5, 8000), 8000) == "8000 Hz 0.5 s"
    script.write_text("raise SystemExit('no ears')")
    with pytest.raises(UserError, match=r"failed \(1\): no ears"):
        hear(tone(0.1), RATE)
    with pytest.raises(UserError, match="is not installed"):
        open_judge("no-such-program {wav}", None)
    with pytest.raises(UserError, match="expected whisper, pocketsphinx, a command"):
        open_judge(str(tmp_path), None)


def test_units_are_heard_through_a_vocoder() -> None:
    heard: list[tuple[int, int]] = []

    def hear(samples: np.ndarray, rate: int) -> str:
        heard.append((len(samples), rate))
        return "yes"

    transcribe = of_speech_ids(hear, SpectralVocoder(np.zeros((4, 39))))
    assert transcribe(np.array([0, 1, 2, 3, 3])) == "yes"
    assert heard == [(5 * 640, RATE)]
    assert transcribe(np.zeros(0, int)) == ""


def wav2vec2(folder: Path) -> None:
    """A CTC model that hears nothing but `h` and `i`."""
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    folder.mkdir()
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "h": 5, "i": 6}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True)
    Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)
    config = Wav2Vec2Config(
        vocab_size=7, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8, 8), conv_stride=(20, 16), conv_kernel=(20, 16), num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    model = Wav2Vec2ForCTC(config)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.copy_(torch.tensor([0.0, 0, 0, 0, 0, 1, 0]))
    model.save_pretrained(folder)


def whisper(folder: Path) -> None:
    """A Whisper that says its first word until it is cut off."""
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    folder.mkdir()
    words = [
        "h",
        "i",
        "Ġ",
        "!",
        "<|endoftext|>",
        "<|startoftranscript|>",
        "<|en|>",
        "<|transcribe|>",
        "<|notimestamps|>",
    ]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    WhisperProcessor(WhisperFeatureExtractor(feature_size=8), tokenizer).save_pretrained(folder)
    layers = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    layers |= {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    tokens = {"decoder_start_token_id": 5, "bos_token_id": 4, "eos_token_id": 4, "pad_token_id": 4}
    config = WhisperConfig(
        vocab_size=len(words), num_mel_bins=8, d_model=16, max_target_positions=16, suppress_tokens=[],
        begin_suppress_tokens=[], **layers, **tokens,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        model.model.decoder.layer_norm.weight.zero_()
        model.model.decoder.layer_norm.bias.fill_(1.0)
        model.model.decoder.embed_tokens.weight.fill_(-1.0)
        model.model.decoder.embed_tokens.weight[1].fill_(1.0)
    model.save_pretrained(folder)


@pytest.mark.parametrize(("make", "expected"), [(wav2vec2, "h"), (whisper, "iiiiiiii")])
def test_a_local_model_hears(tmp_path: Path, make, expected: str) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "model")
    hear = open_judge(str(tmp_path / "model"), None)
    assert hear(tone(0.5), RATE) == expected
    assert hear(tone(0.5, 8000), 8000) == expected


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="not a model of speech recognition"):
        open_judge(str(tmp_path), None)


def test_whisper_by_name(tmp_path: Path) -> None:
    whisper(tmp_path / "model")
    assert open_judge("whisper", str(tmp_path / "model"))(tone(0.5), RATE) == "iiiiiiii"
    assert open_judge("whisper", str(tmp_path / "model"))(tone(31.0), RATE) == "iiiiiiii iiiiiiii", "two windows"
    with pytest.raises(UserError, match="hears English alone, the language is 'fr'"):
        open_judge("whisper", str(tmp_path / "model"), "fr")
    tokens = {"lang_to_id": {"<|en|>": 6, "<|fr|>": 3}, "task_to_id": {"transcribe": 7}, "is_multilingual": True}
    path = tmp_path / "model" / "generation_config.json"
    stated = json.loads(path.read_text()) | tokens | {"no_timestamps_token_id": 8, "_from_model_config": False}
    path.write_text(json.dumps(stated))
    assert open_judge("whisper", str(tmp_path / "model"), "fr")(tone(0.5), RATE) == "iiiiiiii"
    with pytest.raises(UserError, match="knows no language 'xx'; it knows en, fr"):
        open_judge("whisper", str(tmp_path / "model"), "xx")


def test_what_is_no_whisper_is_refused_by_name(tmp_path: Path) -> None:
    wav2vec2(tmp_path / "model")
    with pytest.raises(UserError, match=r"model: is a 'wav2vec2', not a Whisper"):
        open_judge("whisper", str(tmp_path / "model"))
    with pytest.raises(UserError, match="cannot be loaded as a Whisper"):
        open_judge("whisper", str(tmp_path))
    with pytest.raises(UserError, match="--judge whisper needs --judge-model"):
        open_judge("whisper", None)
    with pytest.raises(UserError, match="--judge-model is for --judge whisper"):
        open_judge("pocketsphinx", str(tmp_path))
    from safetensors.torch import load_file, save_file

    whisper(tmp_path / "part")
    tensors = load_file(tmp_path / "part" / "model.safetensors")
    del tensors["model.decoder.layers.0.fc1.weight"]
    save_file(tensors, tmp_path / "part" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="1 tensors are missing, the first is model.decoder.layers.0.fc1.weight"):
        open_judge("whisper", str(tmp_path / "part"))


def test_pocketsphinx_hears_english_alone() -> None:
    pytest.importorskip("pocketsphinx")
    with pytest.raises(UserError, match="hears English alone, the language is 'de'"):
        open_judge("pocketsphinx", None, "de")
    line = next(line for line in map(json.loads, MANIFEST.read_text().splitlines()) if line["source"] == "librivox")
    audio, rate = soundfile.read(MANIFEST.parent / line["audio"], dtype="float32")
    hear = open_judge("pocketsphinx", None)
    assert error_rate([line["text"]], [hear(audio, rate)]).rate < 0.35
    assert error_rate([line["text"]], [hear(audio[::-1].copy(), rate)]).rate > 0.7
