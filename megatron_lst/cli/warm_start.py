"""`lst warm-start`: an export to begin from, with the trunk of another model."""

from pathlib import Path
from typing import Annotated

import typer


def warm_start(
    config: Annotated[Path, typer.Argument(help="Configuration of the model to be trained")],
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a Llama, Mistral or Qwen3 checkpoint (safetensors)")],
    out: Annotated[Path, typer.Argument(help="Export to write; name it in training.init_from")],
) -> None:
    """Fresh weights with the global transformer (and text tables) of a Llama, Mistral or Qwen3 checkpoint."""
    from megatron_lst.config.load import load_config
    from megatron_lst.inference.export import write_export
    from megatron_lst.inference.warm_start import warm_start as take
    from megatron_lst.reference import ReferenceModel

    settings = load_config(config)
    weights = dict(ReferenceModel(settings.model, settings.vocabulary, settings.training.seed).state_dict())
    result = take(checkpoint, weights, settings.model, settings.vocabulary, settings.data.units)
    metadata = {"step": 0, "warm_start": str(checkpoint), "tokenizers": _tokenizers(checkpoint)}
    write_export(out, weights, settings, metadata)
    print(result.report())
    print(f"{out}: train with training.init_from={out}")


def _tokenizers(checkpoint: Path) -> dict[str, str]:
    """Fingerprint of each tokenizer file of a language model; data may have been prepared with any of them."""
    from lst_prep.tokenizer import load_tokenizer
    from megatron_lst.errors import UserError

    found = {}
    for name in ("tokenizer.model", "tokenizer.json"):
        try:
            found[name] = load_tokenizer(str(checkpoint / name)).info.fingerprint
        except UserError:  # not there, or of a kind that data preparation does not read either
            continue
    return found
