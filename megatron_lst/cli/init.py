"""`lst init`: a project of own recordings, up to the first command that trains."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_lst.cli.options import on_disk
from megatron_lst.errors import UserError


def init(
    project: Annotated[
        Path,
        typer.Argument(help="Folder to make; it holds the configurations and all that they make", callback=on_disk),
    ],
    audio: Annotated[
        Path, typer.Option(help="Recordings with transcripts: a folder, or a manifest (.jsonl)", callback=on_disk)
    ],
    text: Annotated[
        Path | None, typer.Option(help="Text beside them: .txt, .jsonl, .parquet, or a folder", callback=on_disk)
    ] = None,
    language: Annotated[
        str, typer.Option(help="Of the recordings, such as en. English words get times; other languages none")
    ] = "",
) -> None:
    """Write configurations that fit a folder of recordings, and say what to type next."""
    try:
        from lst_prep import starting
    except ModuleNotFoundError as error:
        raise UserError("data preparation is not installed: pip install 'megatron-lst[prep]'") from error
    if project.exists() and (not project.is_dir() or any(project.iterdir())):
        raise UserError(f"{project}: is there already, and not empty; name a new folder")
    english, kind = starting.is_english(language), starting.recognise(audio)
    if text is not None and not text.exists():
        raise UserError(f"--text {text}: no such file or folder")
    text_words = starting.words_of_text(text) if text is not None else 0
    project.mkdir(parents=True, exist_ok=True)
    found = starting.collect(audio, kind, project / "manifest.jsonl")
    commands = starting.write_project(project, audio, found, language, text, text_words)
    print(f"{audio}: {kind}; {found.pieces:,} recordings, {found.seconds / 60:.1f} minutes, {found.words:,} words; "
          f"{found.held_out:,} held out")  # fmt: skip
    for note in found.notes:
        print(f"  {note}")
    if text is not None:
        print(f"{text}: {text_words:,} words")
    if not english:
        print(f"language {language or 'not said'}: words get no times; speech and text alternate by recording, and")
        print("patches are static. (English: --language en)")
    print(f"{project}/prep.yaml and {project}/train.yaml are written. Next:\n\n{commands}")
