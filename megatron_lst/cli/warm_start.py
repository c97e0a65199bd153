"""`lst warm-start`: an export to begin from, with the trunk of a language model; `--init`: the configuration for it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from megatron_lst.documents.format import TokenizerInfo


def warm_start(
    config: Annotated[Path, typer.Argument(help="Configuration of the model to be trained; with --init: CHECKPOINT")],
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder of a checkpoint (safetensors, config.json); with --init: OUT.yaml to write")
    ],
    out: Annotated[Path | None, typer.Argument(help="Export to write; name it in training.init_from")] = None,
    init: Annotated[
        bool,
        typer.Option("--init", help="Write the configuration that fits: --init CHECKPOINT OUT.yaml"),
    ] = False,
) -> None:
    """Fresh weights with the global transformer (and text tables) of a language model's checkpoint."""
    from megatron_lst.errors import UserError

    if init:
        if out is not None:
            raise UserError(f"--init takes CHECKPOINT and OUT.yaml, and {out} is a third")
        return _init(config, checkpoint)
    if out is None:
        raise UserError("give CONFIG CHECKPOINT OUT, or --init CHECKPOINT OUT.yaml")
    from megatron_lst.config.load import load_config
    from megatron_lst.inference.export import write_export
    from megatron_lst.inference.warm_start import warm_start as take
    from megatron_lst.reference import ReferenceModel

    settings = load_config(config)
    tokenizers = _tokenizers(checkpoint)
    for name, info in tokenizers.items():
        if info.size > settings.vocabulary.text_size:
            raise UserError(
                f"{checkpoint / name} has {info.size} pieces, vocabulary.text_size={settings.vocabulary.text_size}: "
                "it is not this model's tokenizer"
            )
    weights = dict(ReferenceModel(settings.model, settings.vocabulary, settings.training.seed).state_dict())
    result = take(checkpoint, weights, settings.model, settings.vocabulary, settings.data.units)
    fingerprints = {name: info.fingerprint for name, info in tokenizers.items()}
    write_export(out, weights, settings, {"step": 0, "warm_start": str(checkpoint), "tokenizers": fingerprints})
    print(result.report())
    print(f"{out}: train with training.init_from={out}")


def _init(checkpoint: Path, out: Path) -> None:
    """Write the configuration that fits a checkpoint; an existing file is not overwritten."""
    from megatron_lst.config.load import load_config
    from megatron_lst.errors import UserError
    from megatron_lst.files import write_text
    from megatron_lst.flops import parameters
    from megatron_lst.inference.fitting import TextTokenizer, fitting_yaml

    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"{out}: expected a name that ends in .yaml")
    if out.exists():
        raise UserError(f"{out} is there already; name another file")
    found = _tokenizers(checkpoint)
    first = next(iter(found.items()), None)
    tokenizer = TextTokenizer(first[0], first[1].size, first[1].bos, first[1].eos) if first else None
    text = fitting_yaml(checkpoint, out, tokenizer)
    write_text(out, text)
    config = load_config(out)
    print(f"{out}: fits {checkpoint}; an LST of {parameters(config):,} parameters")
    if tokenizer is None:
        print("no tokenizer.json or tokenizer.model there: bos and eos are those of its config.json")


def _tokenizers(checkpoint: Path) -> dict[str, "TokenizerInfo"]:
    """Each tokenizer file of a language model that data preparation reads; data may be prepared with any of them."""
    from lst_prep.tokenizer import load_tokenizer
    from megatron_lst.errors import UserError

    found = {}
    for name in ("tokenizer.model", "tokenizer.json"):
        try:
            found[name] = load_tokenizer(str(checkpoint / name)).info
        except UserError:  # not there, or of a kind that data preparation does not read either
            continue
    return found
