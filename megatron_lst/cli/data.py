"""`lst data`: what a run will see, before, beside and after it runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_lst.cli.tables import print_table

if TYPE_CHECKING:
    from megatron_lst.patching.row import Row

data_app = typer.Typer(
    no_args_is_help=True, help="Fingerprint, look at and forecast the training stream; measure patches."
)
CONFIG = Annotated[str, typer.Argument(help="A YAML file, such as configs/demo.yaml")]
OVERRIDES = Annotated[list[str] | None, typer.Argument(help="key=value, such as data.workers=0")]


@data_app.command()
def fingerprint(
    config: CONFIG,
    overrides: OVERRIDES = None,
    steps: Annotated[int, typer.Option(min=1, help="How many steps")] = 10,
    ranks: Annotated[int, typer.Option(min=1, help="Data-parallel ranks, all fed here; changes nothing")] = 1,
) -> None:
    """One line a step: the hash of its global batch, which is the batch_hash of a run's metrics.jsonl."""
    from contextlib import ExitStack

    from megatron_lst.config import load_config
    from megatron_lst.data import open_loader
    from megatron_lst.patching.row import batch_hash

    settings = load_config(config, overrides or ())
    with ExitStack() as stack:
        loaders = [stack.enter_context(open_loader(settings, rank, ranks)) for rank in range(ranks)]
        for _ in range(steps):
            rows = [row for loader in loaders for row in next(loader).rows]
            print(batch_hash([row.hash for row in sorted(rows, key=lambda row: row.index)]), flush=True)


@data_app.command()
def inspect(
    config: CONFIG,
    overrides: OVERRIDES = None,
    row: Annotated[int | None, typer.Option(min=0, help="Global number of the row; default: the first")] = None,
    saved: Annotated[
        Path | None, typer.Option(help="Rows that a run saved, such as logs/bad-step-00000010/rows-00000.npz")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The picture; default: row-ROW.png here")] = None,
    first: Annotated[int, typer.Option(min=0, help="First token of picture and table")] = 0,
    units: Annotated[int, typer.Option(min=0, help="Lines of the table")] = 60,
) -> None:
    """A picture and a table of one row: words, units, patches, modality, and when each unit may be read."""
    from rich.console import Console

    from megatron_lst.cli.tables import narrow_table
    from megatron_lst.config import load_config
    from megatron_lst.data.mixture import open_mixture
    from megatron_lst.data.picture import describe_units, draw_row
    from megatron_lst.data.stream import ChunkOrigin, Stream
    from megatron_lst.errors import UserError

    settings = load_config(config, overrides or ())
    origins: list[ChunkOrigin] = []
    if saved is not None:
        found = _saved_row(saved, row)
    else:
        row = row or 0
        rows = settings.training.steps * settings.training.global_batch
        if row >= rows:
            raise UserError(f"--row {row}: the run has {rows:,} rows (training.steps * training.global_batch), from 0")
        stream = Stream(open_mixture(settings, settings.data.sources, settings.streams), row % settings.streams)
        for _ in range(row // settings.streams):
            stream.next_row()
        found, origins = stream.next_row(), stream.origins
    found.check(settings.vocabulary)
    print(f"vocabulary: {settings.vocabulary}")
    console = Console()
    console.print(
        f"row {found.index}, hash {found.hash:016x}: {found.units} units, {len(found.tokens)} tokens, "
        f"{found.statistics.aligned_documents} of {found.statistics.speech_documents} speech chunks aligned"
    )
    columns: tuple[str, ...] = ("chunk", "source", "document", "cut", "tokens", "begins at span", "ends")
    chunks = narrow_table("document chunks", columns, left=["source", "document", "cut", "begins at span", "ends"])
    for ordinal, part in enumerate(origins):
        tokens = found.tokens[found.document == ordinal]
        ended = "EOS" if tokens[-1] == settings.vocabulary.eos else "goes on in the next row"
        ended = ended if part.example.eos else "end of turn"
        begin = f"{part.start.span} of {len(part.example.spans)}"
        how = part.method if part.example.document.has_speech else "text"
        chunks.add_row(str(ordinal), part.source, found.document_ids[ordinal], how, str(len(tokens)), begin, ended)
    if origins:
        print_table(chunks, console)
    title = f"units from token {first} (closed at: the first token that may read the unit)"
    columns = ("unit", "document", "kind", "first token", "tokens", "closed at", "learnt", "words")
    table = narrow_table(title, columns, left=["document", "kind", "learnt", "words"])
    entries = [e for e in describe_units(found, origins, settings.vocabulary) if e["first"] >= first]
    for e in entries[:units]:
        closed = "-" if e["closed_at"] is None else str(e["closed_at"])
        learnt = "yes" if e["learnt"] else "no"
        cells = (e["unit"], e["document"], e["kind"], e["first"], e["tokens"], closed, learnt, e["words"])
        table.add_row(*(str(cell) for cell in cells))
    print_table(table, console)
    path = out or Path(f"row-{found.index}.png")
    print(draw_row(found, origins, settings.vocabulary, path, first_token=first))


def _saved_row(path: Path, index: int | None) -> "Row":
    """One row of a file that a run saved; says which rows there are."""
    from megatron_lst.errors import UserError
    from megatron_lst.patching.serialisation import load_rows

    rows = load_rows(path)
    print(f"{path}: rows {', '.join(str(row.index) for row in rows)}")
    for row in rows:
        if index is None or row.index == index:
            return row
    raise UserError(f"--row {index}: {path} has no such row")


@data_app.command()
def simulate(
    config: CONFIG,
    overrides: OVERRIDES = None,
    ranks: Annotated[int, typer.Option(min=1, help="Data-parallel ranks")] = 1,
    ranks_per_node: Annotated[int, typer.Option(min=1, help="Data-parallel ranks that share a node's cache")] = 8,
    steps: Annotated[int | None, typer.Option(min=1, help="Length of the run; default: training.steps")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to build for the estimate")] = 512,
    json: Annotated[bool, typer.Option("--json", help="Everything as JSON")] = False,
) -> None:
    """Forecast a run: downloads per node, epochs and mixture per source, padding, when a source runs out."""
    import json as encoder

    from rich.console import Console

    from megatron_lst.cli.tables import narrow_table
    from megatron_lst.config import load_config
    from megatron_lst.data.simulate import as_plain
    from megatron_lst.data.simulate import simulate as run

    forecast = run(load_config(config, overrides or ()), ranks, ranks_per_node, steps, rows)
    if json:
        print(encoder.dumps(as_plain(forecast), indent=1))
        return
    console = Console()
    console.print(
        f"{forecast.steps:,} steps, from {forecast.rows_sampled} rows of {forecast.streams_sampled} streams: "
        f"{forecast.tokens_per_row:,.1f} raw tokens a row, {forecast.padding:.3%} of the units are padding"
    )
    if forecast.idle_workers:
        console.print(
            f"{forecast.idle_workers} of data.workers would be idle: a rank has only {forecast.workers} streams"
        )
    columns = ("source", "documents", "share", "wanted", "tokens", "epochs", "first stream repeats", "repeats")
    table = narrow_table("sources", columns, left=["source"])
    for s in forecast.sources:
        repeats = [
            f"step {step:,}" if step is not None else "not in this run" for step in (s.runs_out_first, s.runs_out)
        ]
        table.add_row(
            s.name,
            f"{s.documents:,}",
            f"{s.share:.4f}",
            f"{s.wanted:.4f}",
            f"{s.tokens:.4g}",
            f"{s.epochs:.3g}",
            *repeats,
        )
    print_table(table, console)
    table = narrow_table("downloads", ("node", "data ranks", "shards", "one pass, GB", "whole run, GB"), left=[])
    for n in forecast.nodes:
        table.add_row(
            str(n.node), str(n.ranks), f"{n.shards:,}", f"{n.bytes_once / 1e9:,.3f}", f"{n.bytes_run / 1e9:,.3f}"
        )
    print_table(table, console)


@data_app.command()
def patches(
    config: CONFIG,
    overrides: OVERRIDES = None,
    documents: Annotated[int, typer.Option(min=1, help="Documents to measure")] = 200,
    out: Annotated[Path, typer.Option(help="The picture")] = Path("patches.png"),
) -> None:
    """How long patches are under each strategy, words and silences apart: a table and histograms."""
    from megatron_lst.cli.tables import narrow_table
    from megatron_lst.config import load_config
    from megatron_lst.data.patches import draw_patches, measure_patches, sample_speech
    from megatron_lst.vocabulary import rate_text

    settings = load_config(config, overrides or ())
    measured = measure_patches(sample_speech(settings, documents), settings.patching)
    title = (
        f"frames a patch ({rate_text(settings.vocabulary.rate)} a second), max_length {settings.patching.max_length}"
    )
    summaries = [m.summary() for m in measured]
    table = narrow_table(title, summaries[0], left=["strategy"])
    for summary in summaries:
        cells = []
        for name, value in summary.items():
            if value is None:
                cells.append("-")
            elif name == "clipped":
                cells.append(f"{value:.2%}")
            else:
                cells.append(f"{value:.2f}" if isinstance(value, float) else str(value))
        table.add_row(*cells)
    print_table(table)
    print(draw_patches(measured, out, settings.vocabulary.rate))
