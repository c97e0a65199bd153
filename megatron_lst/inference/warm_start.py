"""Start the global transformer from a language model's checkpoint on disk, of a family in `families.FAMILIES`.

The layers map one to one.  Text tables and heads map where the architecture has a place for them: the baseline, and
an LST with `text_path: direct`, whose text logits then equal the language model's.  Speech ids, markers and padding
keep their fresh weights, and so does everything that the other checkpoint does not have.  What would make the model
compute something else is refused by the name of the key or tensor, before anything is taken.
"""

import json
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_lst.config.schema import ModelConfig
from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.inference.families import differences, is_tied, notes
from megatron_lst.rope import scaled
from megatron_lst.vocabulary import Vocabulary
from megatron_lst.weights import text_weights

_LAYER = {
    "input_layernorm": "input_norm",
    "post_attention_layernorm": "post_attention_norm",
    "self_attn.q_proj": "attention.q_proj",
    "self_attn.k_proj": "attention.k_proj",
    "self_attn.v_proj": "attention.v_proj",
    "self_attn.o_proj": "attention.o_proj",
    "self_attn.q_norm": "attention.q_norm",
    "self_attn.k_norm": "attention.k_norm",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
}


_TEXT = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
"""In the order of `weights.text_weights`."""
_FREQUENCIES = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
_DTYPES = ("F64", "F32", "BF16", "F16")


@dataclass
class WarmStart:
    """What happened.

    Attributes:
        taken: our name -> theirs; a table is taken for its text rows alone.
        fresh: our weights that stay as they were.
        unused: their weights that have no place here, and why.
        notes: differences that change no logit.
    """

    taken: dict[str, str] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def report(self) -> str:
        lines = [f"{len(self.taken)} weights taken, {len(self.fresh)} stay fresh, {len(self.unused)} not used"]
        groups = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in self.fresh})
        lines += [f"  fresh: {name}" for name in groups]
        lines += [f"  not used: {name}: {why}" for name, why in self.unused.items()]
        lines += [f"  note: {line}" for line in self.notes]
        return "\n".join(lines)


def warm_start(
    folder: Path | str,
    weights: MutableMapping[str, Tensor],
    config: ModelConfig,
    vocabulary: Vocabulary,
    context: int | None = None,
) -> WarmStart:
    """Overwrite fresh weights in place with those of a checkpoint folder (config.json, *.safetensors).

    Args:
        weights: canonical names, freshly initialised; untouched where the checkpoint is refused.
        context: most positions of the global transformer in a row (`data.units`); a checkpoint with a sliding window
            is taken only where the window covers them.

    Raises:
        UserError: another architecture, or a key, tensor, dtype or shape that has no place here; names every one.
        DamagedDataError: files that are missing or cannot be read, values that are not finite.
    """
    folder = Path(folder)
    theirs = read_object(folder / "config.json")
    if wrong := differences(theirs, config, vocabulary, context):
        raise UserError(f"{folder}: another model than the configured one:\n  " + "\n  ".join(wrong))
    stored = _stored_tensors(folder)
    plan, unused = _plan(folder, stored, weights, config, vocabulary, is_tied(theirs))
    _check_frequencies(stored, config)
    for ours, name in plan.items():
        weights[ours] = _merged(_read(stored[name].path, name), weights[ours], name in _TEXT, vocabulary)
    fresh = sorted(n for n in weights if n not in plan)
    return WarmStart(plan, fresh, unused, notes(theirs, vocabulary))


def text_places(config: ModelConfig) -> dict[str, str]:
    """Their text tables and final norm -> ours; empty where there is no place for them."""
    return dict(zip(_TEXT, text_weights(config), strict=False))


@dataclass(frozen=True)
class _Stored:
    """A tensor of the checkpoint, not read yet."""

    path: Path
    shape: tuple[int, ...]
    dtype: str


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file of a Hugging Face checkpoint.

    Raises:
        UserError: it is not there.
        DamagedDataError: it holds no JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path.parent}: no {path.name} of a Hugging Face checkpoint ({error.strerror})") from None
    except ValueError as error:
        raise DamagedDataError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise DamagedDataError(f"{path}: not a JSON object")
    return content


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        named = read_object(index).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(n, str) and Path(n).name == n for n in named.values()):
            raise DamagedDataError(f"{index}: its weight_map does not name files of this folder")
        names = sorted(set(named.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DamagedDataError(f"{folder}: {', '.join(missing)} missing (only safetensors are read)")
    return [folder / name for name in names]


def _stored_tensors(folder: Path) -> dict[str, _Stored]:
    found: dict[str, _Stored] = {}
    for path in _files(folder):
        with path.open("rb") as file:
            if file.read(34) == b"version https://git-lfs.github.com":
                raise DamagedDataError(f"{path}: a pointer of Git LFS instead of the weights; `git lfs pull` gets them")
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    part = file.get_slice(name)
                    if name in found:
                        raise DamagedDataError(f"{path}: {name} is in {found[name].path.name} as well")
                    found[name] = _Stored(path, tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise DamagedDataError(f"{path}: {error}") from None
    return found


def _plan(
    folder: Path,
    stored: Mapping[str, _Stored],
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    vocabulary: Vocabulary,
    tied: bool,
) -> tuple[dict[str, str], dict[str, str]]:
    """(our name -> theirs, theirs without a place -> why)."""
    places = text_places(config)
    plan: dict[str, str] = {}
    unused: dict[str, str] = {}
    wrong: list[str] = []
    for name, tensor in stored.items():
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        ours = places.get(name)
        if layer and layer[2] in _LAYER:
            ours = f"global_transformer.layers.{layer[1]}.{_LAYER[layer[2]]}.{layer[3]}"
        if name == "lm_head.weight" and tied:
            _check_tied(stored)
            unused[name] = "the head is the embedding's table"
        elif ours is not None and ours in weights:
            wanted = tuple(weights[ours].shape)
            if name in _TEXT and len(wanted) == 2:
                wanted = (vocabulary.text_size, wanted[1])
            if tensor.dtype not in _DTYPES:
                wrong.append(f"{name}: stored as {tensor.dtype}; only {', '.join(_DTYPES)} are read")
            elif tensor.shape != wanted:
                wrong.append(f"{name}: shape {tensor.shape}, expected {wanted}")
            plan[ours] = name
        elif name in _TEXT:
            unused[name] = "taken only with text_path=direct or a baseline"
        elif _FREQUENCIES.fullmatch(name):
            unused[name] = "follows from model.rope_theta and model.rope_scaling"
        else:
            wrong.append(f"{name}: there is no place for this tensor here, and it may change what is computed")
    if wrong:
        more = f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise UserError(f"{folder}: tensors that do not fit:\n  " + "\n  ".join(wrong[:20]) + more)
    if tied and "lm_head.weight" in places and "model.embed_tokens.weight" in stored:
        plan[places["lm_head.weight"]] = "model.embed_tokens.weight"
    missing = [n for n in weights if n not in plan and (n.startswith("global_transformer.") or n in places.values())]
    if missing:
        raise DamagedDataError(
            f"{folder}: the checkpoint lacks {len(missing)} weights, such as the one for {missing[0]}"
        )
    return plan, unused


def _read(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise DamagedDataError(f"{path}: {name}: {error}") from None
    if not torch.isfinite(tensor).all():
        raise DamagedDataError(f"{path}: {name} holds values that are not finite")
    return tensor


def _merged(tensor: Tensor, fresh: Tensor, is_text: bool, vocabulary: Vocabulary) -> Tensor:
    """Their tensor in our dtype; a table keeps its fresh rows beside the text ids."""
    tensor = tensor.to(fresh.dtype)
    return torch.cat([tensor, fresh[vocabulary.text_size :]]) if is_text and tensor.dim() == 2 else tensor


def _check_tied(stored: Mapping[str, _Stored]) -> None:
    """A head that is stored although it is tied is the embedding's table; transformers reads that one."""
    name, table = "lm_head.weight", stored.get("model.embed_tokens.weight")
    if table is not None and not torch.equal(
        _read(stored[name].path, name), _read(table.path, "model.embed_tokens.weight")
    ):
        raise UserError(f"{stored[name].path}: {name} differs from the embedding although tie_word_embeddings is set")


def _check_frequencies(stored: Mapping[str, _Stored], config: ModelConfig) -> None:
    """Old checkpoints hold RoPE's frequencies: they must be those of the theta, for other ones are not used."""
    size = config.global_head_size
    expected = config.rope_theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    expected = scaled(expected, config.rope_scaling)
    for name, tensor in stored.items():
        if _FREQUENCIES.fullmatch(name):
            found = _read(tensor.path, name).double()
            if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-2, atol=0):
                raise UserError(f"{tensor.path}: {name} is not RoPE of theta {config.rope_theta}")
