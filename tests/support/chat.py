"""A tokenizer with a chat's special tokens, templates, and what conversations are made of, in real files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from lst_prep.chat.config import ChatConfig
from lst_prep.chat.pipeline import run_chat
from lst_prep.tokenizer import load_tokenizer
from lst_prep.units import Codebook
from lst_prep.units.mfcc import MfccExtractor
from megatron_lst.config.load import build
from megatron_lst.documents.schema import Document
from megatron_lst.documents.shards import ShardSet
from megatron_lst.documents.writing import write_set

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nBe brief."
    "<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GENERATION = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = (  # as Qwen3's: the last answer alone has an empty thought before it
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if loop.last and message['role'] == 'assistant' %}(thought)\n{% endif %}{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (  # as Mistral's: roles alternate, and the generation prompt is nothing
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "[INST] {{ message['content'] }} [/INST]{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")


def chat_tokenizer(folder: Path, template: str = CHATML) -> Path:
    """Write tokenizer.json (bytes, with the special tokens of ChatML) and tokenizer_config.json with a template."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll")]
    vocabulary = {name: i for i, name in enumerate([*alphabet, *(a + b for a, b in merges)])}
    model = Tokenizer(models.BPE(vocabulary, merges))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    model.save(str(folder / "tokenizer.json"))
    about = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


WORDS = ["one", "two,", "three", "four", "five."]


def spoken(i: int, codebook: Codebook) -> Document:
    """Five words of 6 frames, gaps of 2 between them, 3 frames of silence at the end."""
    begin = np.arange(5) * 8
    chars = np.cumsum([0, *(len(w) + 1 for w in WORDS)])
    ids = np.random.default_rng(i).integers(0, len(codebook.centres), 43).astype(np.int16)
    return Document(
        id=f"doc-{i}", source="corpus", text=" ".join(WORDS), speech_ids=ids, token_ids=np.arange(5, dtype=np.int32),
        word_frames=np.stack([begin, begin + 6], 1).astype(np.int32),
        word_tokens=np.stack([np.arange(5), np.arange(5) + 1], 1).astype(np.int32),
        word_chars=np.stack([chars[:-1], chars[1:] - 1], 1).astype(np.int32), word_scores=np.ones(5, np.float32),
    )  # fmt: skip


class ChatWorld:
    """A tokenizer, a codebook, a shard set of speech, a recording."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = chat_tokenizer(folder / "tokenizer")
        extractor = MfccExtractor()
        centres = np.random.default_rng(0).normal(size=(20, extractor.dim)).astype(np.float32)
        self.book = Codebook(centres, extractor.name, extractor.fingerprint)
        self.book.save(folder / "codebook.safetensors")
        self.documents = [spoken(i, self.book) for i in range(3)]
        info = load_tokenizer(str(self.tokenizer)).info
        write_set(folder / "corpus", self.documents, "speech", info, self.book.codec)
        sound = 0.3 * np.sin(np.arange(16_000) * np.linspace(0.05, 0.4, 16_000))
        soundfile.write(folder / "question.wav", sound, 16_000)

    def write(self, name: str, conversations: list[Any]) -> Path:
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in conversations))
        return path

    def config(self, out: str, path: Path, **changes: Any) -> ChatConfig:
        source = {"name": "talk", "path": str(path), "styles": changes.pop("styles", ["as_given"])}
        values = {
            "out": str(self.folder / out),
            "sources": [source, *changes.pop("more", [])],
            "tokenizer": str(self.tokenizer),
            "codebook": str(self.folder / "codebook.safetensors"),
            "spans": {"corpus": str(self.folder / "corpus")},
            "jobs": {"workers": 1},
            **changes,
        }
        return build(ChatConfig, values, "")

    def run(self, out: str, path: Path, **changes: Any) -> list[Document]:
        run_chat(self.config(out, path, **changes), quiet=True)
        return list(ShardSet.open(self.folder / out / "talk", kind="chat"))


def span(i: int, begin: int = 0, end: int = 43, **more: Any) -> dict[str, Any]:
    return {"type": "audio", "span": {"source": "corpus", "id": f"doc-{i}", "from": begin, "to": end}, **more}


TALK = {
    "id": "talk-1",
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "listen"}, {"type": "audio", "path": "question.wav"}]},
        {"role": "assistant", "content": [{"type": "audio", "units": [3, 1, 4, 1, 5], "transcript": "pi"}]},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": [span(1, 8, 40)]},
    ],
}
