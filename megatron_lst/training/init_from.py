"""Is an export what a new run says that it starts from?  Shapes alone cannot tell: another number of heads, another
theta or another tokenizer fit as well, start at nearly the same loss, and are another model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_lst.config.load import to_plain
from megatron_lst.config.paths import told
from megatron_lst.config.schema import Config
from megatron_lst.errors import UserError
from megatron_lst.inference.export import Export, load_export
from megatron_lst.patching.strategies import generation_patch_size
from megatron_lst.training.provenance import COMPARED

_FREE = ("model.init_std", "vocabulary.multiple")
"""Keys that mean nothing once there are weights of the right shapes."""


def check_export(config: Config, provenance: Mapping[str, Any]) -> list[str]:
    """Compare `training.init_from` with the run; no weights are read.

    Args:
        provenance: of the run's own shards, as `provenance.record` gives it.

    Returns:
        What could not be compared, and what differs on purpose, for the run's log.

    Raises:
        UserError: names every difference that `training.init_may_differ` does not name.
    """
    folder = Path(str(config.training.init_from))
    if not folder.is_dir():
        raise UserError(f"training.init_from: {told(str(config.training.init_from))}: there is no such folder")
    export = load_export(folder, weights=False)
    meant = config.training.init_may_differ
    found = _differences(export, config)
    notes: list[str] = []
    for key in COMPARED:
        here = (provenance.get(key) or {}).get("fingerprint")
        there = _fingerprints(export.metadata, key)
        if here is None:
            continue
        if not there:
            notes.append(f"{folder} does not record its {key}: whether it is the shards' cannot be told")
        elif here not in there:
            found[key] = (here, there[0])
    if unknown := sorted(set(meant) - {*_keys(config), *COMPARED}):
        raise UserError(
            f"training.init_may_differ: {unknown[0]} is not compared; there are model.*, vocabulary.*, "
            f"patching.size, {', '.join(COMPARED)}"
        )
    said = {key: f"{key}: {mine!r} here, {theirs!r} in the export" for key, (mine, theirs) in found.items()}
    wrong = [line for key, line in said.items() if key not in meant]
    if wrong:
        raise UserError(
            f"training.init_from: {folder} is another model than the configured one:\n  "
            + "\n  ".join(wrong)
            + "\nName a key in training.init_may_differ where the difference is meant"
        )
    notes += [f"differs on purpose: {line}" for line in said.values()]
    return notes


def _keys(config: Config) -> set[str]:
    sections = {"model": to_plain(config.model), "vocabulary": to_plain(config.vocabulary)}
    return {f"{name}.{key}" for name, section in sections.items() for key in section} | {"patching.size"}


def _differences(export: Export, config: Config) -> dict[str, tuple[Any, Any]]:
    """Key -> (here, in the export), values that are computed where they are left open compared as computed."""
    found: dict[str, tuple[Any, Any]] = {}
    for section, mine, theirs in (
        ("model", config.model, export.config),
        ("vocabulary", config.vocabulary, export.vocabulary),
    ):
        here, there = to_plain(mine), to_plain(theirs)
        found |= {f"{section}.{key}": (here[key], there[key]) for key in here if here[key] != there[key]}
    for key, computed in (
        ("model.kv_heads", "global_kv_heads"),
        ("model.head_size", "global_head_size"),
        ("model.ffn", "global_ffn"),
        ("model.local_ffn", "local_ffn_size"),
    ):
        if getattr(config.model, computed) == getattr(export.config, computed):
            found.pop(key, None)
    size = generation_patch_size(config.model, config.patching)
    if size != export.patch_size:
        found["patching.size"] = (size, export.patch_size)
    return {key: values for key, values in found.items() if key not in _FREE}


def _fingerprints(metadata: Mapping[str, Any], key: str) -> list[str]:
    """The export's fingerprint; a warm start knows those of all tokenizer files of the language model."""
    one = (metadata.get(key) or {}).get("fingerprint")
    return [one] if one else list((metadata.get(f"{key}s") or {}).values())
