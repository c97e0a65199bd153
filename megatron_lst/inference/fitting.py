"""The configuration that fits a language model's checkpoint: `lst warm-start --init`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lst.config.schema import ModelConfig, RopeScalingConfig
from megatron_lst.errors import UserError
from megatron_lst.inference.families import described
from megatron_lst.inference.warm_start import read_object

LONGEST_ROW = 4096
HEAD = 64
"""Width of the local modules' heads, where it divides them."""


@dataclass(frozen=True)
class TextTokenizer:
    """What of a tokenizer a configuration holds.

    Attributes:
        name: of its file.
        size: pieces.
        bos, eos: ids that begin and end a document in prepared data.
    """

    name: str
    size: int
    bos: int
    eos: int


def fitting_sections(theirs: Mapping[str, Any], tokenizer: TextTokenizer | None) -> dict[str, dict[str, Any]]:
    """Sections `vocabulary`, `model` and `data` that fit a config.json; defaults are left out.

    Args:
        tokenizer: the checkpoint's own; None: it has none, and config.json names BOS and EOS.

    Raises:
        UserError: a family or key that has no place here, a tokenizer that is not the checkpoint's, or no EOS.
    """
    there = described(theirs)
    if there.wrong:
        raise UserError("this checkpoint is not supported:\n  " + "\n  ".join(there.wrong))
    vocabulary: dict[str, Any] = {"text_size": there.text_size}
    if tokenizer is None:
        bos, eos = (_first(theirs.get(key)) for key in ("bos_token_id", "eos_token_id"))
        if eos is None:
            raise UserError("config.json names no eos_token_id and there is no tokenizer: which id ends a document?")
        vocabulary |= {"bos": eos if bos is None else bos, "eos": eos}
    else:
        if tokenizer.size > there.text_size:
            raise UserError(
                f"{tokenizer.name} has {tokenizer.size} pieces, the checkpoint's table {there.text_size}: "
                "it is another model's tokenizer"
            )
        if tokenizer.size < there.text_size:
            vocabulary["tokenizer_size"] = tokenizer.size
        vocabulary |= {"bos": tokenizer.bos, "eos": tokenizer.eos}
    limits = (LONGEST_ROW, theirs.get("max_position_embeddings"), there.window)
    units = min(limit for limit in limits if limit)
    return {"vocabulary": vocabulary, "model": _model(there.model), "data": {"units": units}}


def _model(trunk: Mapping[str, Any]) -> dict[str, Any]:
    """The trunk as it is, and local modules in the proportions of `configs/sizes`."""
    found: dict[str, Any] = {"text_path": "direct"}
    default = ModelConfig()
    for key, value in trunk.items():
        if key == "kv_heads" and value == trunk["heads"]:
            continue
        if key == "head_size" and value * trunk["heads"] == trunk["hidden"]:
            continue
        if isinstance(value, RopeScalingConfig):
            if value.kind != "none":
                found[key] = {"kind": value.kind, "factor": value.factor, "low_frequency": value.low_frequency,
                              "high_frequency": value.high_frequency, "context": value.context}  # fmt: skip
        elif key in ("hidden", "layers", "heads", "ffn") or value != getattr(default, key):
            found[key] = value
    queries, layers = (2, 9) if trunk["hidden"] <= default.hidden else (4, 6)
    width = -(-trunk["hidden"] // queries)
    heads = _local_heads(width + width % 2)
    return found | {
        "local_hidden": width + width % 2, "local_heads": heads, "queries": queries, "decoder_layers": layers
    }  # fmt: skip


def _local_heads(width: int) -> int:
    """Heads of an even size as near to 64 as can be, a multiple of 16 where there is one."""
    counts = [n for n in range(1, width // 2 + 1) if width % n == 0 and width // n % 2 == 0]
    return min(counts, key=lambda n: (width // n % 16 != 0, abs(width // n - HEAD)))


def _first(value: Any) -> int | None:
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def fitting_yaml(folder: Path, out: Path, tokenizer: TextTokenizer | None) -> str:
    """The file that `lst warm-start --init` writes.

    Raises:
        UserError: see `fitting_sections`; names the folder.
    """
    import yaml

    theirs = read_object(folder / "config.json")
    try:
        sections = fitting_sections(theirs, tokenizer)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    name = f"exports/warm-{folder.resolve().name}"  # beside the configuration
    if tokenizer is None:
        said = f"No tokenizer was found in {folder}: bos and eos are those of its config.json"
    else:
        said = f"Prepare the data with {folder / tokenizer.name}"
    training = {"init_from": name, "freeze_global_steps": 2000, "trunk_lr_ratio": 0.1}
    return (
        f"# Fits {folder} ({theirs['model_type']}). Written by `lst warm-start --init`; see docs/warm-start.md.\n"
        f"#   lst warm-start {out} {folder} {out.parent / name}\n"
        f"#   lst train {out}\n"
        f"# {said}. Name data.sources, and\n"
        "# vocabulary.speech_size, codebooks and frame_rate where your speech tokens are not 501 units at 25 Hz.\n"
        + yaml.safe_dump({**sections, "training": training}, sort_keys=False, default_flow_style=False)
    )
