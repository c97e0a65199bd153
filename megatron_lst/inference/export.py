"""The exported model: a folder that needs no Megatron to run.

    config.json           model, vocabulary, patching, fingerprints and where it comes from
    model.safetensors     weights under the canonical names (those of `reference`), [out, in], no biases; beyond the
                          shard size model-00001-of-0000N.safetensors with model.safetensors.index.json, as
                          transformers reads them
    generation_config.json  what `generate` of transformers does by default
    README.md             the model card
    text_tokenizer.model  the text tokenizer as it made the training data (.json: of the tokenizers library)
    tokenizer.json, ...   the same with speech units and markers, as transformers' AutoTokenizer reads it
    codebook.safetensors  the codebook of the units
    units_model/          the model whose features the codebook clusters, where it is one

A folder is written beside its name and renamed when complete.  `load_export` reads it strictly.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_lst.config.load import build, to_plain
from megatron_lst.config.schema import Config, ModelConfig, PatchingConfig
from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.files import with_usual_mode
from megatron_lst.inference.model import LatentSpeechTextModel
from megatron_lst.patching.strategies import generation_patch_size
from megatron_lst.vocabulary import Vocabulary

FORMAT = 2
DEFAULT_NEW_TOKENS = 250
"""Longest response of transformers' `generate` where nothing is asked for: 10 s of speech at 25 Hz."""
TOKENIZER_FILES = ("text_tokenizer.model", "text_tokenizer.json")
CODEBOOK_FILE, UNITS_MODEL = "codebook.safetensors", "units_model"
MODEL_TYPE = "megatron_lst"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class Export:
    """An exported model as read from disk.

    Attributes:
        config, vocabulary, patching: as trained.
        patch_size: p of generation.
        units: U of the rows that it was trained on; None where an older version did not write it down.
        metadata: everything else in config.json's `metadata`: fingerprints of tokenizer and codebook, step, commit,
            data, licences, results.
        weights: canonical name -> tensor.
    """

    folder: Path
    config: ModelConfig
    vocabulary: Vocabulary
    patching: PatchingConfig
    patch_size: int
    units: int | None
    metadata: dict[str, Any]
    weights: dict[str, Tensor]

    @property
    def tokenizer(self) -> str | None:
        """The tokenizer's file in the folder, or the name that the shards gave it; None: unknown."""
        for name in TOKENIZER_FILES:
            if (self.folder / name).is_file():
                return str(self.folder / name)
        return (self.metadata.get("tokenizer") or {}).get("name") or None

    @property
    def codebook(self) -> Path | None:
        """The codebook in the folder; None: it holds none."""
        path = self.folder / CODEBOOK_FILE
        return path if path.is_file() else None

    @property
    def units_model(self) -> Path | None:
        """Folder of the model whose features the codebook clusters; None: it needs none, or holds none."""
        path = self.folder / UNITS_MODEL
        return path if path.is_dir() else None

    def model(self, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> LatentSpeechTextModel:
        """The model, in the stored dtype unless told otherwise.

        Raises:
            UserError: names or shapes of the weights do not fit the configuration, or this machine lacks the device.
        """
        try:  # not empty(device=...): in a process that trained on a CPU that is the CPU (parallel/cpu.py)
            torch.empty(0).to(device)
        except (RuntimeError, AssertionError) as error:  # a device torch does not know, or was not built for
            why = str(error).splitlines()[0]
            why = "there is no such device; expected cpu or cuda" if why.startswith("Expected one of") else why
            raise UserError(f"device {str(device)!r} cannot be used: {why}") from None
        weights = {name: tensor.to(device=device, dtype=dtype) for name, tensor in self.weights.items()}
        return LatentSpeechTextModel.from_weights(self.config, self.vocabulary, weights, self.patch_size)

    def check_fingerprints(self, tokenizer: str | None = None, codebook: str | None = None) -> None:
        """Refuse a tokenizer or codebook other than the one that the model was trained with; None is not compared.

        Raises:
            UserError: names both fingerprints.
        """
        for name, given in (("tokenizer", tokenizer), ("codebook", codebook)):
            trained = (self.metadata.get(name) or {}).get("fingerprint")
            if given is not None and trained is not None and given != trained:
                raise UserError(
                    f"{self.folder} was trained with the {name} of fingerprint {trained}, this one has {given}: "
                    f"its ids would mean something else"
                )


def write_export(
    folder: Path | str,
    weights: Mapping[str, Tensor],
    config: Config,
    metadata: Mapping[str, Any] | None = None,
    model_card: str | None = None,
    dtype: str = "float32",
    shard_size: str | int = "5GB",
    beside: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Write an exported model; beside the given weights it needs the memory of one shard.

    Args:
        folder: must not exist, or be empty.
        weights: canonical names; checked against the configuration.
        config: the run's; model, vocabulary and patching are kept.
        metadata: plain values; `tokenizer` and `codebook` hold {"fingerprint": ...} and are compared at load.
        model_card: README.md; None writes one from the metadata.
        dtype: float32, bfloat16, float16 or float64.
        shard_size: largest file of weights, in bytes or such as "5GB".
        beside: writes more files into the folder before it gets its name.

    Raises:
        UserError: the folder is in use, or the weights do not fit.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    patch_size = generation_patch_size(config.model, config.patching)
    LatentSpeechTextModel.from_weights(config.model, config.vocabulary, weights, patch_size)
    temporary = claim_folder(folder)
    size = torch.empty(0, dtype=DTYPES[dtype]).element_size() * sum(t.numel() for t in weights.values())
    if (free := shutil.disk_usage(temporary).free) < size:
        raise UserError(f"{folder}: the weights take {size / 1e9:.2f} GB, {free / 1e9:.2f} GB are free there")
    hashes = _write_shards(temporary, weights, DTYPES[dtype], shard_size)
    vocabulary = config.vocabulary
    content = {
        "model_type": MODEL_TYPE,
        "architectures": ["LatentSpeechTextForCausalLM"],
        "format": FORMAT,
        "torch_dtype": dtype,
        "vocab_size": vocabulary.padded_size,
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.eos,
        "pad_token_id": vocabulary.pad,
        "patch_size": patch_size,
        "units": config.data.units,
        "model": to_plain(config.model),
        "vocabulary": to_plain(vocabulary),
        "patching": to_plain(config.patching),
        "metadata": dict(metadata or {}),
        "weights_xxh3_64": hashes,
    }
    (temporary / "config.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    defaults = {"max_new_tokens": DEFAULT_NEW_TOKENS, "do_sample": False}
    defaults |= {key: content[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (temporary / "generation_config.json").write_text(json.dumps(defaults, indent=2) + "\n")
    card = model_card if model_card is not None else default_card(content, weights)
    (temporary / "README.md").write_text(card)
    beside(temporary)
    if folder.exists():
        folder.rmdir()
    temporary.rename(folder)
    return folder


def tokenizer_file(path: Path) -> str:
    """What a tokenizer's file is called in an export and in a run."""
    return TOKENIZER_FILES[path.suffix == ".json"]


def claim_folder(folder: Path) -> Path:
    """Make the temporary folder of an export, which shows that it can be written before any work is done.

    Raises:
        UserError: the folder is in use, or cannot be made.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; give another folder")
    temporary = folder.absolute().with_name(folder.absolute().name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}: {error.filename})") from None
    return temporary


def load_export(folder: Path | str, *, verify: bool = True, weights: bool = True) -> Export:
    """Read an exported model.

    Args:
        verify: compare the hash of the weights with what was written, where the folder says it: one that
            `save_pretrained` of transformers wrote need not.
        weights: False leaves them out, for what the configuration alone answers.

    Raises:
        UserError: not an exported model, of another format, or with keys that this version does not know.
        DamagedDataError: truncated or altered.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / "config.json").read_text())
    except OSError:
        is_run = (folder / "config.yaml").is_file()
        what = "a run folder, not an exported model" if is_run else "no config.json, so not an exported model"
        how = f"lst export {folder} OUT" if is_run else f"lst export RUN {folder}"
        raise UserError(f"{folder}: {what} (`{how}` writes one)") from None
    except ValueError as error:
        raise DamagedDataError(f"{folder / 'config.json'}: not JSON ({error})") from None
    if content.get("model_type") != MODEL_TYPE:
        raise UserError(f"{folder}: model_type is {content.get('model_type')!r}, expected {MODEL_TYPE!r}")
    if content.get("format") != FORMAT:
        raise UserError(f"{folder}: export format {content.get('format')!r}; this version reads {FORMAT}")
    return Export(
        folder=folder,
        config=build(ModelConfig, content["model"], "model"),
        vocabulary=build(Vocabulary, content["vocabulary"], "vocabulary"),
        patching=build(PatchingConfig, content["patching"], "patching"),
        patch_size=content["patch_size"],
        units=content.get("units"),
        metadata=content["metadata"],
        weights=_load_weights(folder, content.get("weights_xxh3_64"), verify) if weights else {},
    )


def _load_weights(folder: Path, hashes: Mapping[str, str] | None, verify: bool) -> dict[str, Tensor]:
    """Every tensor of the folder's shards.

    Args:
        hashes: file -> hash; None: the files are those that transformers reads.
    """
    names = list(hashes) if hashes is not None else _weight_files(folder)
    weights: dict[str, Tensor] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise DamagedDataError(f"{path} is missing")
        if verify and hashes is not None and (found := _hash(path)) != hashes[name]:
            raise DamagedDataError(f"{path}: hash {found}, {hashes[name]} was written")
        try:
            weights |= load_file(path)
        except SafetensorError as error:
            raise DamagedDataError(f"{path}: {error}") from None
    return weights


def _weight_files(folder: Path) -> list[str]:
    """The files of the weights as transformers finds them."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"]
    try:
        named = set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DamagedDataError(f"{index}: not readable ({error})") from None
    if not all(Path(name).name == name for name in named):
        raise DamagedDataError(f"{index}: names files outside the folder")
    return sorted(named)


def hash_weights(folder: Path) -> dict[str, str]:
    """File name -> hash of the weights in a folder, as config.json holds them."""
    return {name: _hash(folder / name) for name in _weight_files(folder)}


def _write_shards(
    folder: Path, weights: Mapping[str, Tensor], dtype: torch.dtype, shard_size: str | int
) -> dict[str, str]:
    """Write the weights as transformers does. Returns file name -> hash."""
    from huggingface_hub import split_torch_state_dict_into_shards

    shapes = {name: torch.empty(tensor.shape, dtype=dtype, device="meta") for name, tensor in weights.items()}
    try:
        plan = split_torch_state_dict_into_shards(shapes, max_shard_size=shard_size)
    except ValueError as error:
        raise UserError(f"shard size {shard_size!r}: expected one such as 5GB ({error})") from None
    hashes = {}
    for file, names in plan.filename_to_tensors.items():
        shard = {name: weights[name].detach().to("cpu", dtype).contiguous().clone() for name in names}
        with with_usual_mode(folder / file):
            save_file(shard, folder / file, metadata={"format": "pt"})
        hashes[file] = _hash(folder / file)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return hashes


def default_card(content: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """README.md with what config.json knows: shapes, data, licences, fingerprints, commit, results."""
    model, metadata = content["model"], content["metadata"]
    count = sum(t.numel() for t in weights.values())
    kind = "Latent Speech-Text Transformer" if model["kind"] == "lst" else "Unpatched speech-text baseline"
    licences = ", ".join(metadata.get("licenses") or []) or "not recorded"
    lines = [
        "---",
        "library_name: transformers",
        "tags: [speech, text, latent-speech-text-transformer]",
        "---",
        f"# {kind}, {count / 1e6:,.1f}M parameters",
        "",
        "Trained with megatron-lst. Loads in transformers:",
        "",
        "```python",
        "import megatron_lst.hf",
        "from transformers import AutoModelForCausalLM",
        'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")',
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| global transformer | {model['layers']} layers, width {model['hidden']}, {model['heads']} heads |",
    ]
    if model["kind"] == "lst":
        lines.append(
            f"| encoder, decoder | {model['encoder_layers']} and {model['decoder_layers']} layers, "
            f"width {model['local_hidden']}, {model['queries']} queries a patch |"
        )
    lines += [
        f"| patching | {content['patching']['strategy']}; generation in patches of {content['patch_size']} |",
        f"| vocabulary | {content['vocabulary']['text_size']} text, {content['vocabulary']['speech_size']} speech |",
        f"| weights | {content['torch_dtype']} |",
        f"| licences of the training data | {licences} |",
    ]
    for key in ("step", "commit", "data", "tokenizer", "codebook"):
        if metadata.get(key) is not None:
            value = metadata[key]
            lines.append(f"| {key} | {value if isinstance(value, str | int) else json.dumps(value)} |")
    if metadata.get("attributions"):
        lines += ["", "## Training data", "", *(f"- {credit}" for credit in metadata["attributions"])]
    results = metadata.get("results")
    lines += ["", "## Results", "", str(results) if results else "None recorded: run `lst eval` on this folder.", ""]
    return "\n".join(lines)


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
