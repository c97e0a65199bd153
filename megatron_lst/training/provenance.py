"""What the ids of a run mean: tokenizer, codebook and licences of its shards, kept from its first start.

    RUN/provenance/provenance.json        fingerprints, licences, names of the sources
    RUN/provenance/text_tokenizer.model   the tokenizer's file (.json: of the tokenizers library), where it was found
    RUN/provenance/codebook.safetensors   the codebook, where it was found

An export is made of these, so it does not matter whether the shards are there when it is made, or from which folder.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from megatron_lst.config.schema import Config
from megatron_lst.data.mixture import open_source
from megatron_lst.data.remote import is_remote
from megatron_lst.documents.codec import Codec, codebook_entry
from megatron_lst.errors import DamagedDataError, LstError, UserError
from megatron_lst.files import read_json, write_json
from megatron_lst.inference.export import CODEBOOK_FILE, TOKENIZER_FILES, tokenizer_file
from megatron_lst.training.resilience.events import EventKind

FOLDER, FILE = "provenance", "provenance.json"
COMPARED = ("tokenizer", "codebook")


def describe_sources(config: Config) -> dict[str, Any]:
    """`tokenizer`, `codebook`, `codec`, `chat`, `licenses`, `attributions` and `data` (names) of a run's sources.

    Raises:
        UserError: a set cannot be opened, or two were made with different tokenizers, codebooks or chat templates.
    """
    found: dict[str, Any] = {"data": [source.name for source in config.data.sources]}
    for_people: dict[str, set[str]] = {"licenses": set(), "attributions": set()}
    for source in config.data.sources:
        for shards in open_source(config, source).sets:
            manifest: Mapping[str, Any] = shards.manifest  # type: ignore[attr-defined]
            said: dict[str, Any] = {key: manifest.get(key) for key in (*COMPARED, "unit_bpe", "chat")}
            if shards.codec is not None:  # type: ignore[attr-defined]
                codec: Codec = shards.codec  # type: ignore[attr-defined]
                said |= {"codec": codec.to_plain(), "codebook": codebook_entry(codec)}
            for key, value in said.items():
                if value:
                    found.setdefault(key, value)
            for key in COMPARED:
                if said[key] and said[key]["fingerprint"] != found[key]["fingerprint"]:
                    raise UserError(
                        f"source {source.name!r}: made with the {key} of fingerprint {said[key]['fingerprint']}, "
                        f"other sources with {found[key]['fingerprint']}; prepare them with the same one"
                    )
            if said["chat"] and said["chat"] != found["chat"]:
                raise UserError(f"source {source.name!r}: its chat template is not that of other sources")
            for key, values in for_people.items():
                values.update(manifest.get(key) or ())
    return found | {key: sorted(values) for key, values in for_people.items() if values}


def check_sources(config: Config, begun: bool) -> dict[str, Any]:
    """What the sources are, compared with what the run began with; nothing is written.

    Args:
        begun: the run has done steps: what it began with binds.

    Raises:
        UserError: see `record`.
    """
    run = Path(config.run.dir)
    now, before = describe_sources(config), read(run)
    if before is not None and begun:
        _check_unchanged(run, before, now)
        return before
    return now


def record(config: Config, begun: bool, tell: Callable[[EventKind, str], None]) -> dict[str, Any]:
    """Write down what the sources are when a run starts, and hold the run to it later.

    Args:
        begun: the run has done steps: what it began with binds.
        tell: takes a kind of event and a sentence.

    Returns:
        What is recorded.

    Raises:
        UserError: the shards are of another tokenizer or codebook than those that the run began with.
    """
    run = Path(config.run.dir)
    now = check_sources(config, begun)
    if begun and read(run) is not None:
        return now
    folder = run / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    places = _places(config)
    for what, path in (
        ("tokenizer", find_tokenizer(now.get("tokenizer"), places)),
        ("codebook", find_codebook(now.get("codebook"), places)),
    ):
        if path is not None:
            shutil.copyfile(path, folder / (tokenizer_file(path) if what == "tokenizer" else CODEBOOK_FILE))
        elif now.get(what):
            tell("start", f"the {what} {now[what]['fingerprint']} is not at hand; `lst export --{what}` takes its file")
    write_json(folder / FILE, now)
    return now


def read(run: Path) -> dict[str, Any] | None:
    """What a run recorded; None for runs that began before this was recorded.

    Raises:
        DamagedDataError: the file is there, and cannot be read.
    """
    path = run / FOLDER / FILE
    content = read_json(path)
    if content is None and path.exists():
        raise DamagedDataError(f"{path}: not readable; it says what the run's ids mean")
    return content


def tokenizer_of(config: Config) -> tuple[dict[str, Any], Path | None]:
    """Fingerprint and name of the tokenizer of a run's text, and its file, where it is at hand. The run may not have
    begun."""
    run = Path(config.run.dir)
    said = (read(run) or describe_sources(config)).get("tokenizer") or {}
    return said, recorded_files(run).get("tokenizer") or find_tokenizer(said or None, _places(config))


def _places(config: Config) -> list[Path]:
    """Folders of the sources on this machine."""
    return [Path(p) for source in config.data.sources for p in source.shards if not is_remote(p)]


def recorded_files(run: Path) -> dict[str, Path]:
    """`tokenizer` and `codebook` -> the file that the run keeps, where it has one."""
    found = {"codebook": run / FOLDER / CODEBOOK_FILE}
    for name in TOKENIZER_FILES:
        if (run / FOLDER / name).is_file():
            found["tokenizer"] = run / FOLDER / name
    return {what: path for what, path in found.items() if path.is_file()}


def find_tokenizer(info: Mapping[str, Any] | None, near: Iterable[Path], given: str | None = None) -> Path | None:
    """The file of the tokenizer with this fingerprint: `given`, or where its name or a preparation beside shards says.

    Raises:
        UserError: `given` is another tokenizer.
    """
    if info is None:
        return None
    receipts = [read_json(place.parent / "tokenizer.json") or {} for place in near]
    known = [info.get("name"), *(receipt.get(key) for receipt in receipts for key in ("path", "spec"))]
    names = [given] if given else known
    return _with_fingerprint("tokenizer", info["fingerprint"], [n for n in names if isinstance(n, str) and n], given)


def find_codebook(info: Mapping[str, Any] | None, near: Iterable[Path], given: str | None = None) -> Path | None:
    """The file of the codebook with this fingerprint: `given`, or in or beside a folder of shards.

    Raises:
        UserError: `given` is another codebook.
    """
    if info is None:
        return None
    places = [folder / "codebook.safetensors" for place in near for folder in (place, place.parent)]
    names = [given] if given else [str(p) for p in dict.fromkeys(places) if p.is_file()]
    return _with_fingerprint("codebook", info["fingerprint"], names, given)


def _with_fingerprint(what: str, fingerprint: str, names: list[str], given: str | None) -> Path | None:
    from lst_prep.tokenizer import load_tokenizer
    from lst_prep.units import Codebook

    for name in names:
        try:
            if what == "tokenizer":
                tokenizer = load_tokenizer(name)
                found, path = tokenizer.info.fingerprint, Path(tokenizer.path)
            else:
                found, path = Codebook.load(Path(name)).fingerprint, Path(name)
        except LstError:
            if given is not None:
                raise
            continue
        if found == fingerprint:
            return path
        if given is not None:
            raise UserError(f"{given}: the {what} of fingerprint {found}; the run was trained with {fingerprint}")
    return None


def _check_unchanged(run: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for key in COMPARED:
        old, new = ((said.get(key) or {}).get("fingerprint") for said in (before, now))
        if old is not None and new is not None and old != new:
            raise UserError(
                f"{run} began with the {key} of fingerprint {old}, its shards now have {new}: ids would mean something "
                "else. Give the old shards, or another run.dir"
            )
