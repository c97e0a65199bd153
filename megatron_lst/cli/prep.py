"""`lst prep`: data preparation on the command line. Thin: reads the config, calls `lst_prep`, prints."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperGroup

from megatron_lst.cli.options import finite, on_disk
from megatron_lst.errors import UserError

if TYPE_CHECKING:
    from lst_prep.config import PrepConfig
    from lst_prep.importing.config import ImportConfig
    from lst_prep.pipeline import Preparation

prep_app = typer.Typer(help="Audio and text to shards: every stage by itself, or all of them.", no_args_is_help=True)

ConfigPath = Annotated[
    Path, typer.Argument(help="A preparation's YAML, for instance configs/prep-demo.yaml.", callback=on_disk)
]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, for instance jobs.workers=8")]
Items = Annotated[str | None, typer.Option("--items", help="i/n: only this slice of the work, i from 0")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]


def _config(path: Path, overrides: list[str] | None) -> "PrepConfig":
    from lst_prep.config import PrepConfig
    from megatron_lst.config.load import build, merge, parse_overrides, read_yaml

    return build(PrepConfig, merge(read_yaml(path), parse_overrides(overrides or [], PrepConfig)), "")


def _import_config(path: Path, overrides: list[str] | None) -> "ImportConfig":
    from lst_prep.importing.config import ImportConfig
    from megatron_lst.config.load import build, merge, parse_overrides, read_yaml

    return build(ImportConfig, merge(read_yaml(path), parse_overrides(overrides or [], ImportConfig)), "")


def check_slices(command: Sequence[str]) -> None:
    """Refuse before it queues what each task of an array would refuse: `lst prep COMMAND`, without --items.

    Raises:
        UserError: no such stage, one that is not sliced, or a mistake in the configuration.
        UsageError: an option that the stage does not have.
    """
    stages = cast(TyperGroup, typer.main.get_command(prep_app)).commands
    sliced = [name for name, stage in stages.items() if any(p.name == "items" for p in stage.params)]
    if command[0] not in sliced:
        raise UserError(f"{command[0]!r} is no stage with slices of items; those are {', '.join(sliced)}")
    given = stages[command[0]].make_context(command[0], list(command[1:])).params
    (_import_config if command[0] == "import" else _config)(given["config"], given["overrides"])


@contextmanager
def _going_on() -> Iterator[None]:
    """Ctrl-C ends a command with a sentence: nothing that is finished is lost."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted; what is finished stays, and the same command goes on from there", err=True)
        raise typer.Exit(130) from None


@contextmanager
def _stage(config: Path, overrides: list[str] | None, items: str | None, quiet: bool) -> "Iterator[Preparation]":
    """The preparation, with its folder locked: for itself, or shared with the other slices of an array job."""
    prepared = _config(config, overrides)
    from lst_prep.engine import lock
    from lst_prep.items import faults_of_files_are_said
    from lst_prep.layout import Layout
    from lst_prep.pipeline import Preparation

    with _going_on(), lock(Layout(prepared.out).lock, shared=items is not None), faults_of_files_are_said():
        yield Preparation(prepared, quiet, items)


@prep_app.command()
def run(config: ConfigPath, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Do everything that is not done yet."""
    from lst_prep import pipeline

    prepared = _config(config, overrides)
    with _going_on():
        summary = pipeline.run(prepared, quiet)
    typer.echo(_table(summary))
    typer.echo(f"shards and report: {prepared.out}")
    from lst_prep.training_lines import training_lines

    typer.echo(f"to train on them, in a training configuration:\n\n{training_lines(Path(prepared.out))}")


def _table(summary: dict[str, Any]) -> str:
    """The summary for a terminal."""
    from lst_prep.summary import lost_lines

    lines = []
    for name, values in sorted(summary["sources"].items()):
        speech = (
            f"{values['seconds'] / 3600:9.2f} h  {values['units']:>12,.0f} units" if values["seconds"] else " " * 32
        )
        lines.append(
            f"{name:<32} {values['documents']:>8,.0f} documents  {speech}  {values['words']:>12,.0f} words  "
            f"{values['pieces']:>12,.0f} pieces"
        )
    return "\n".join(lines + lost_lines(summary))


@prep_app.command()
def manifest(
    path: Annotated[
        Path, typer.Argument(help="A preparation's YAML; with --from, a corpus on disk.", callback=on_disk)
    ],
    overrides: Overrides = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="librispeech, mls, libriheavy, peoples-speech, yodas, common-voice, ljspeech, folder or huggingface",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --from: the manifest to write.", callback=on_disk)] = None,
    name: Annotated[str, typer.Option(help="With --from folder or huggingface: what the corpus is called.")] = "",
    split: Annotated[
        list[str] | None, typer.Option(help="With --from: NAME=train or NAME=heldout, for an unknown split.")
    ] = None,
    give_up: Annotated[
        list[str] | None, typer.Option(help="With --from: a file or folder that cannot be read, and is left out.")
    ] = None,
) -> None:
    """Write the manifest of a corpus (--from), or divide a config's manifests into items of work."""
    if kind is None:
        with _stage(path, overrides, None, True) as stage:
            typer.echo(f"{stage.manifest()} items")
        return
    if out is None:
        raise UserError("lst prep manifest --from needs --out, the manifest to write")
    from lst_prep.corpora.writing import write_manifest

    typer.echo(write_manifest(kind, path, out, name, dict(map(_split, split or [])), give_up or []))


def _split(given: str) -> tuple[str, str]:
    name, sign, use = given.rpartition("=")
    if not sign or use not in ("train", "heldout"):
        raise UserError(f"--split {given!r}: expected NAME=train or NAME=heldout")
    return name, use


@prep_app.command("give-up")
def give_up(
    config: ConfigPath,
    names: Annotated[
        list[str] | None, typer.Argument(help="Files and ids, as the message or the manifest has them.")
    ] = None,
    listed: Annotated[
        Path | None, typer.Option("--list", help="A file of names, one a line.", callback=on_disk)
    ] = None,
) -> None:
    """Give up files that are gone for good: the next run counts them as rejected, and waits for them no more."""
    prepared = _config(config, None)
    from lst_prep.giving_up import give_up

    more = listed.read_text(encoding="utf-8").splitlines() if listed else []
    if not (names or more):
        raise UserError("lst prep give-up: name a file or an id, or a --list of them")
    typer.echo(f"{give_up(prepared, [*(names or []), *more])} given up, in all in {prepared.out}/given-up.txt")


@prep_app.command()
def cut(
    config: ConfigPath,
    overrides: Overrides = None,
    items: Items = None,
    quiet: Quiet = False,
    out: Annotated[
        Path | None, typer.Option(help="Also write the pieces as a manifest, for a transcriber.", callback=on_disk)
    ] = None,
) -> None:
    """Long recordings to pieces, where `cutting.by` is set; slices are joined by a last call without --items."""
    with _stage(config, overrides, items, quiet) as stage:
        stage.cut()
        if out is None or items is not None:
            return
        from lst_prep import manifest as manifests

        typer.echo(f"{out}: {manifests.write(out, stage.layout.pieces)} pieces")


@prep_app.command()
def codebook(config: ConfigPath, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Fit the codebook, or take in the one that the config names."""
    with _stage(config, overrides, None, quiet) as stage:
        made = stage.codebook()
    typer.echo(json.dumps({"entries": len(made.centres), "extractor": made.extractor, "fingerprint": made.fingerprint}))


@prep_app.command("units-quality")
def units_quality(
    configs: Annotated[
        list[Path], typer.Argument(help="Preparations' YAML files, one line of the table each.", callback=on_disk)
    ],
    extractor: Annotated[
        list[str] | None,
        typer.Option(help="Used instead of the configuration's, with default settings; may be repeated."),
    ] = None,
    sentences: Annotated[
        Path | None,
        typer.Option(
            help="A manifest in which speakers say the same sentences; default: the repository's.", callback=on_disk
        ),
    ] = None,
    fit_minutes: Annotated[
        float,
        typer.Option(min=1, callback=finite, help="Minutes of training recordings, if a codebook has to be fitted."),
    ] = 20.0,
) -> None:
    """Do units tell words, or voices? The same sentences by several speakers, as units of each configuration."""
    prepared = [_config(path, None) for path in configs]
    from lst_prep import units_quality as measuring
    from lst_prep.units.quality import markdown

    manifest = sentences or measuring.SENTENCES
    if not manifest.is_file():
        raise UserError(
            f"{manifest} is not there: give --sentences, a manifest of the same sentences by several speakers"
        )
    found = {}
    for path, config in zip(configs, prepared, strict=True):
        for name in extractor or [config.units.extractor]:
            used = measuring.with_extractor(config, name) if extractor else config
            title = name if len(configs) == 1 else f"{path.stem}: {name}"
            found[title] = measuring.quality(used, manifest, fit_minutes, lambda said: typer.echo(said, err=True))
    typer.echo(markdown(found))


@prep_app.command()
def units(config: ConfigPath, overrides: Overrides = None, items: Items = None, quiet: Quiet = False) -> None:
    """Audio to units."""
    with _stage(config, overrides, items, quiet) as stage:
        stage.units()


@prep_app.command()
def align(config: ConfigPath, overrides: Overrides = None, items: Items = None, quiet: Quiet = False) -> None:
    """Audio and transcripts to word times."""
    with _stage(config, overrides, items, quiet) as stage:
        stage.align()


@prep_app.command()
def text(config: ConfigPath, overrides: Overrides = None, items: Items = None, quiet: Quiet = False) -> None:
    """Text sources to shards of pieces."""
    with _stage(config, overrides, items, quiet) as stage:
        stage.text()


@prep_app.command()
def shards(config: ConfigPath, overrides: Overrides = None, items: Items = None, quiet: Quiet = False) -> None:
    """Units and word times to shards; join all parts into sets (without --items)."""
    with _stage(config, overrides, items, quiet) as stage:
        manifests = stage.shards()
    for name, made in manifests.items():
        typer.echo(f"{name}: {made['documents']} documents in {made['shards']} shards")


@prep_app.command("import")
def import_tokens(config: ConfigPath, overrides: Overrides = None, items: Items = None, quiet: Quiet = False) -> None:
    """Speech tokens that are made already to shards: parquet, arrow, webdataset, lhotse, nemo, jsonl, npy.

    Every record is checked before anything is written. Slices check first; run them again to write, and without
    --items to join the parts and to write OUT/train.yaml.
    """
    prepared = _import_config(config, overrides)
    from lst_prep.importing.pipeline import run_import

    summary = run_import(prepared, quiet, items)
    if summary is not None:
        typer.echo(_table(summary))
        typer.echo(f"codec: {prepared.codec.codec()}; shards, report and train.yaml: {prepared.out}")


@prep_app.command()
def chat(config: ConfigPath, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Conversations to shards: JSONL messages of text and speech, by the tokenizer's chat template or markers."""
    from lst_prep.chat.config import ChatConfig
    from lst_prep.chat.pipeline import run_chat
    from megatron_lst.config.load import build, merge, parse_overrides, read_yaml

    prepared = build(ChatConfig, merge(read_yaml(config), parse_overrides(overrides or [], ChatConfig)), "")
    with _going_on():
        summary = run_chat(prepared, quiet)
    typer.echo(_table(summary))
    typer.echo(f"shards, chat.json and train.yaml: {prepared.out}")


@prep_app.command()
def verify(
    sets: Annotated[list[Path], typer.Argument(help="Shard sets, or a preparation's output folder.", callback=on_disk)],
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one a core.")] = 0,
    engine: Annotated[str, typer.Option(help="local, or ray: as jobs.engine.")] = "local",
    address: Annotated[str, typer.Option(help="Of the Ray cluster, as jobs.address.")] = "auto",
) -> None:
    """Re-read every shard; name each one that is bad. Exit code 3 when any is."""
    from lst_prep.jobs import Jobs
    from lst_prep.verify import verify_sets
    from megatron_lst.errors import DamagedDataError

    faults = verify_sets(sets, typer.echo, Jobs(engine=engine, address=address, workers=workers))
    for fault in faults:
        typer.echo(fault, err=True)
    if faults:
        raise DamagedDataError(f"{len(faults)} faults")


@prep_app.command()
def publish(
    out: Annotated[Path, typer.Argument(help="A preparation's output folder.", callback=on_disk)],
    address: Annotated[str, typer.Argument(help="Where the sets go, for instance s3://bucket/prefix")],
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one a core.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Send finished sets to an object store and read them back; `publish` in a configuration does it after shards."""
    from lst_prep import publishing
    from lst_prep.engine import lock
    from lst_prep.jobs import Jobs
    from lst_prep.layout import Layout
    from lst_prep.verify import find_sets

    find_sets([out])  # before the lock, which makes the folder
    with _going_on(), lock(Layout(out).lock):
        for found in publishing.publish(out, address, Jobs(workers=workers), quiet):
            typer.echo(found)


@prep_app.command()
def bpe(
    config: ConfigPath,
    overrides: Overrides = None,
    pieces: Annotated[int, typer.Option(min=1, help="Size of the BPE vocabulary.")] = 1000,
) -> None:
    """Train unit BPE on the finished speech set, and write `speech-bpe` and `heldout-speech-bpe` for that baseline."""
    prepared = _config(config, overrides)
    from lst_prep.unit_bpe import convert_set, train
    from megatron_lst.documents.shards import ShardSet

    out = Path(prepared.out)
    speech = ShardSet.open(out / "speech", kind="speech")
    model = train(speech, out / "unit-bpe.model", pieces, seed=prepared.seed)
    for name in ("speech", "heldout-speech"):
        if not (out / name / "manifest.json").exists():
            continue
        source = ShardSet.open(out / name, kind="speech")
        options = prepared.shards
        made = convert_set(source, model, out / f"{name}-bpe", options.size_limit, options.compression)
        ratio = made["unit_bpe"]["units"] / made["totals"]["frames"]
        typer.echo(f"{name}-bpe: {made['totals']['frames']:,} pieces, {ratio:.2f} units a piece")


@prep_app.command()
def failed(
    out: Annotated[Path, typer.Argument(help="A preparation's output folder.", callback=on_disk)],
    stage: Annotated[str | None, typer.Option(help="Of this stage alone.")] = None,
) -> None:
    """Items that failed and are not done since: on which node and process, why, and where its log is."""
    from lst_prep.dealing import failed_items

    for name, item, what in failed_items(out / "work"):
        if stage in (None, name):
            typer.echo(f"{name}, item {item}:\n" + "".join(f"  {line}\n" for line in what.splitlines()), nl=False)


@prep_app.command()
def report(config: ConfigPath, overrides: Overrides = None) -> None:
    """Write the page of a preparation, finished or not: numbers, what was rejected, pieces to listen to."""
    prepared = _config(config, overrides)
    from lst_prep.report import write_report

    typer.echo(str(write_report(prepared.out)))
