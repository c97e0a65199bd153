"""What a training configuration says of a preparation's sets: its vocabulary, and lines under `data`."""

import json
from pathlib import Path
from typing import Any

from megatron_lst.config.load import dump_yaml
from megatron_lst.documents.codec import Codec
from megatron_lst.documents.format import TokenizerInfo
from megatron_lst.documents.shards import ShardSet
from megatron_lst.files import read_json
from megatron_lst.vocabulary import Vocabulary

WEIGHTS = {"speech": 1.0, "text": 2.0}
"""The paper's mixture, in raw tokens (SPEC 7)."""


def vocabulary_of(tokenizer: TokenizerInfo, codec: Codec | None) -> dict[str, Any]:
    """`vocabulary` of runs on sets of this tokenizer and this codec."""
    found: dict[str, Any] = {"text_size": tokenizer.size, "bos": tokenizer.bos, "eos": tokenizer.eos}
    if codec is None:
        return found
    rate = float(codec.rate) if codec.rate == float(codec.rate) else str(codec.rate)
    return found | {
        "speech_size": codec.size,
        "codebooks": list(codec.codebooks),
        "frame_rate": rate,
        "codec": codec.fingerprint,
    }


def changed(vocabulary: dict[str, Any]) -> dict[str, Any]:
    """The keys that are not the default, which is the paper's vocabulary."""
    default = Vocabulary()
    paper = {"codebooks": [vocabulary.get("speech_size")], "frame_rate": float(default.rate)}  # one needs no list
    return {key: value for key, value in vocabulary.items() if value != paper.get(key, getattr(default, key))}


def training_lines(out: Path) -> str:
    """YAML for a training configuration: the sets that are there, with absolute paths; empty: there is none."""
    sets = {name: out / name for name in ("speech", "text", "heldout-speech", "heldout-text")}
    sets = {name: path for name, path in sets.items() if (path / "manifest.json").is_file()}
    if not sets:
        return ""
    tokenizer = read_json(out / "tokenizer.json") or {}
    info = TokenizerInfo(*(tokenizer[key] for key in ("fingerprint", "size", "bos", "eos", "name")))
    codec = next((ShardSet.open(path).codec for name, path in sets.items() if name.endswith("speech")), None)
    vocabulary = changed(vocabulary_of(info, codec))
    lines = [f"vocabulary: {dump_yaml(vocabulary, flow=True).strip()}"] if vocabulary else []
    lines.append("data:")
    for key, prefix in (("sources", ""), ("validation", "heldout-")):
        found = [name for name in WEIGHTS if prefix + name in sets]
        lines += [f"  {key}:"] if found else []
        for name in found:
            kind = "interleaved" if name == "speech" else "text"
            weight = f", weight: {WEIGHTS[name]}" if key == "sources" else ""
            path = json.dumps(str((out / (prefix + name)).resolve()), ensure_ascii=False)
            lines.append(f"    - {{name: {name}, kind: {kind}, shards: [{path}]{weight}}}")
    return "\n".join(lines)
