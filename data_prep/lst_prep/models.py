"""One output folder, one model of each kind: a file that was replaced under its old name must not be mixed in.

Hashes of the models stand in what they made: `tokenizer.json`, `codebook.safetensors` and the receipts of items.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lst_prep.align import Aligners
from lst_prep.config import PrepConfig
from lst_prep.items import Receipts
from lst_prep.languages import ENGLISH
from lst_prep.layout import Layout
from lst_prep.places import path_of
from lst_prep.tokenizer import Tokenizer, load_tokenizer
from lst_prep.units import Codebook, make_extractor
from lst_prep.units.codebook import import_codebook
from megatron_lst.errors import UserError
from megatron_lst.files import read_json


def require_same(key: str, model: str, found: str, recorded: str, redo: Sequence[Path]) -> None:
    """Refuse a model that is not the one that a folder was begun with.

    Args:
        key: where the configuration names the model.
        found, recorded: its fingerprint now, and in what it made.
        redo: what to remove so that everything that it made is made again.
    """
    if found != recorded:
        raise UserError(
            f"{key} {model!r} is another model now: its fingerprint is {found}, the finished work is of {recorded}. "
            f"Put the old model back, choose another `out`, or remove {', '.join(map(str, redo))} to do that work again"
        )


def open_tokenizer(layout: Layout, config: PrepConfig) -> Tokenizer:
    """The configured tokenizer. Raises UserError when it is not the one that the folder was begun with."""
    tokenizer = load_tokenizer(config.tokenizer)
    there = read_json(layout.tokenizer)
    if there is not None:
        redo = [layout.work / name for name in ("text", "shards")]
        recorded = str(there["fingerprint"])
        require_same("tokenizer", config.tokenizer, tokenizer.info.fingerprint, recorded, [layout.tokenizer, *redo])
    return tokenizer


def require_extractor(layout: Layout, config: PrepConfig) -> None:
    """Compare the models of units with those of the folder's codebook: loads the extractor.

    A file `units.codebook` that is gone is not missed: the folder has its own copy.

    Raises:
        UserError: the extractor or `units.codebook` is not the one that the codebook was made with.
    """
    codebook, options = Codebook.load(layout.codebook), config.units
    redo = [layout.codebook, *(layout.work / name for name in ("units", "shards"))]
    extractor = make_extractor(replace(options, device="cpu", precision="fp32"))  # its hash depends on neither
    model = options.model or options.extractor
    require_same("units.model", model, extractor.fingerprint, codebook.extractor_fingerprint, redo)
    inputs = layout.inputs(config)
    if options.codebook and inputs.is_there(path_of(options.codebook)):
        with inputs.local(options.codebook) as file:
            source = import_codebook(file, extractor)
        require_same("units.codebook", options.codebook, source.fingerprint, codebook.fingerprint, redo)


def require_aligner(layout: Layout, config: PrepConfig, plan: str) -> None:
    """Compare the aligner with those that cut recordings and aligned pieces so far; loads it where there are any.

    Raises:
        UserError: it is another one.
    """
    aligned = [layout.work / name for name in ("align", "shards")]
    of_pieces = [layout.pieces.items, layout.codebook, *(layout.work / name for name in ("cut", "units"))]
    recorded = {stage: Receipts(layout.work, stage, plan).any("aligner") for stage in ("cut", "align")}
    if not any(recorded.values()):
        return
    options = config.align
    found = Aligners(replace(options, device="cpu", precision="fp32"))
    fingerprints = {"cut": found.fingerprint_of(ENGLISH), "align": found.fingerprint}
    for stage, redo in (("cut", of_pieces + aligned), ("align", aligned)):
        if recorded[stage]:
            require_same("align.model", options.model or options.aligner, fingerprints[stage], recorded[stage], redo)


def require_done(layout: Layout, plan: str, stage: str, items: int, model: str = "") -> None:
    """Every item of a stage is done, and with one model.

    Args:
        model: what the receipts of items that needed it call it; empty: there is none.

    Raises:
        UserError: names the first item that is missing, or the first of each model.
    """
    receipts = Receipts(layout.work, stage, plan)
    missing, models = list[int](), dict[str, int]()
    for item in range(items):
        result = receipts.read(item)
        if result is None:
            missing.append(item)
        elif model and result.get(model) is not None:
            models.setdefault(result[model], item)
    if missing:
        raise UserError(
            f"stage {stage}: {len(missing)} of {items} items are not done yet (first: {missing[0]}); run "
            f"`lst prep {stage}` until they are"
        )
    if len(models) > 1:  # replaced while it ran, or not the same on every machine
        first = ", ".join(f"{found} (item {item})" for found, item in models.items())
        raise UserError(
            f"stage {stage}: its items were made with different models; the fingerprints of the {model}, and the "
            f"first item of each: {first}. Remove {layout.work / stage} and run `lst prep {stage}` again"
        )
