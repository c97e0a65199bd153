"""`lst eval`: score a run or an export; `lst eval prepare`: make a task from a benchmark; `lst eval compare`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from megatron_lst.cli.analysis import jitter, words
from megatron_lst.cli.harness import harness
from megatron_lst.cli.options import JSON, answering
from megatron_lst.cli.speech_tasks import asr, questions, tts
from megatron_lst.cli.speed import speed

if TYPE_CHECKING:
    from megatron_lst.cli.models import Scorer
    from megatron_lst.patching.strategies import Patcher


class _TargetGroup(TyperGroup):
    """`lst eval TARGET ...` is `lst eval run TARGET ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


eval_app = typer.Typer(
    cls=_TargetGroup, no_args_is_help=True, help="Evaluate a run or an exported model: lst eval RUN|EXPORT."
)


@eval_app.command("run")
def run(
    target: Annotated[Path, typer.Argument(help="A run folder or an exported model")],
    out: Annotated[Path | None, typer.Option(help="Folder for results; default: TARGET/eval")] = None,
    task: Annotated[list[Path] | None, typer.Option(help="A prepared task's folder; may be repeated")] = None,
    documents: Annotated[list[Path] | None, typer.Option(help="Held-out shard set; may be repeated")] = None,
    original: Annotated[
        Path | None, typer.Option(help="The language model of a warm start: its loss on the same held-out text")
    ] = None,
    text_pieces: Annotated[int, typer.Option(min=1, help="Pieces of held-out text that are scored")] = 32768,
    direction: Annotated[list[str] | None, typer.Option(help="S->S, T->T, S->T, T->S; default: all there are")] = None,
    items: Annotated[int, typer.Option(min=1, help="Choice items made from held-out documents, each direction")] = 500,
    prompt_words: Annotated[int, typer.Option(min=1, help="Words of their prompts")] = 20,
    continuation_words: Annotated[int, typer.Option(min=1, help="Words of their continuations")] = 10,
    aligned: Annotated[
        bool | None,
        typer.Option(
            "--aligned/--static",
            help="Cut speech at its words or in patches of equal length; "
            "default: aligned for a model that was trained on aligned patches alone",
        ),
    ] = None,
    step: Annotated[int | None, typer.Option(min=0, help="A run's checkpoint; default: the newest")] = None,
    untrained: Annotated[bool, typer.Option("--untrained", help="A run's initial weights, to compare with")] = False,
    device: Annotated[str | None, typer.Option(help="For an export: cpu, cuda, ...")] = None,
    units: Annotated[int | None, typer.Option(min=1, help="For an export: units of a row; default: its own")] = None,
    as_json: JSON = False,
) -> None:
    """Likelihood choice, held-out losses and speech bits; writes results.json and results.md."""
    from megatron_lst.cli.models import is_run, open_scorer, require_target
    from megatron_lst.errors import UserError
    from megatron_lst.evaluation.report import markdown, write_results
    from megatron_lst.files import require_writable

    for option, value, of_a_run in (
        ("--step", step, True), ("--untrained", untrained or None, True), ("--device", device, False),
        ("--units", units, False),
    ):  # fmt: skip
        if value is not None and is_run(target) != of_a_run:
            raise UserError(f"{option} is for {'a run' if of_a_run else 'an export'}, and {target} is the other")
    folder = out or target / "eval"
    require_target(target)  # before a folder is made in it
    require_writable(folder, "results")
    with answering(as_json) as answer:
        opened = open_scorer(target, step, device, units, untrained)
        skipped: dict[str, str] = {}
        try:
            if not task and not documents and not (opened.config and opened.config.data.validation):
                raise UserError("nothing to evaluate on: give --task FOLDER or --documents SHARDS")
            patcher = opened.patcher(aligned)
            tasks = _prepared_tasks(opened, task or [], direction, patcher)
            held_out: dict[str, Any] = _held_out_losses(opened)
            speech, texts, frames_of = _documents(opened, documents or [])
            if original is not None and not texts:
                raise UserError(f"--original {original}: there is no held-out text to compare on")
            if texts:
                held_out |= _text_losses(opened, texts, text_pieces, original, device)
            if speech:
                tasks += _held_out_choices(
                    opened, speech, direction, items, prompt_words, continuation_words, patcher, skipped
                )  # fmt: skip
                try:
                    held_out |= _speech_bits(opened, speech, frames_of, patcher)
                except UserError as error:
                    skipped["held-out speech"] = str(error)
            if not tasks and not held_out:
                raise UserError(f"{target}: nothing could be evaluated: {_together(skipped)}")
            described = {"name": opened.name, **_plain(opened.metadata)}
            if opened.is_writer:
                print(
                    markdown(described, tasks, held_out, skipped)
                )  # before it is written: a full disk costs the files
                content = {"target": described, "tasks": tasks, "held_out": held_out, "skipped": skipped}
                answer(content)
                try:
                    file = write_results(folder, described, tasks, held_out, skipped)
                    print(file)
                    answer({"file": file, **content})
                except OSError as error:
                    raise UserError(f"{folder}: the results above cannot be written ({error.strerror})") from None
            if direction and skipped:
                raise UserError(f"not evaluated, though asked for: {_together(skipped)}")
        finally:
            opened.close()


def _together(skipped: dict[str, str]) -> str:
    """What could not be evaluated, each reason once."""
    tasks: dict[str, list[str]] = {}
    for task, why in skipped.items():
        tasks.setdefault(why, []).append(task)
    return "; ".join(f"{', '.join(names)}: {why}" for why, names in tasks.items())


def _plain(metadata: dict[str, Any]) -> dict[str, Any]:
    """Provenance for the head of a report."""
    kept = {k: metadata[k] for k in ("kind", "strategy", "step", "commit") if metadata.get(k) is not None}
    return kept | {k: metadata[k].get("fingerprint") for k in ("tokenizer", "codebook") if metadata.get(k)}


def _progress(name: str, shown: bool = True) -> Callable[[int, int], None]:
    """A callback for (done, total): a bar on a terminal, plain lines elsewhere, both with the remaining time.

    Args:
        shown: False on all ranks but the one that writes.
    """
    from megatron_lst.progress import Progress

    bars: list[Progress] = []

    def update(done: int, total: int) -> None:
        if not shown:
            return
        if not bars:
            bars.append(Progress(name, total).__enter__())
        bars[0].update(done)
        if done >= total:
            bars[0].__exit__(None, None, None)

    return update


def _prepared_tasks(
    scorer: "Scorer", folders: list[Path], wanted: list[str] | None, patcher: "Patcher"
) -> list[dict[str, Any]]:
    from megatron_lst.errors import UserError
    from megatron_lst.evaluation.benchmarks import read_prepared
    from megatron_lst.evaluation.choice import run_choice
    from megatron_lst.evaluation.report import summarise

    results = []
    for folder in folders:
        prepared = read_prepared(folder)
        prepared.check_fingerprints(scorer.metadata)
        directions = [d for d in prepared.directions() if not wanted or d in wanted]
        if not directions:
            raise UserError(f"{folder}: prepared for {', '.join(prepared.directions())}, asked for {wanted}")
        for direction in directions:
            choices, refused = prepared.choice_items(direction, patcher)
            if not choices:
                reasons = "; ".join(f"{name}: {reason}" for name, reason in list(refused.items())[:2])
                raise UserError(f"{folder}, {direction}: no item can be scored ({reasons})")
            result = run_choice(
                prepared.name, choices, scorer.score, scorer.vocabulary, patcher, scorer.units,
                needs_prompt=not prepared.pairs, refused=refused,
                progress=_progress(f"{prepared.name} {direction}", scorer.is_writer),
            )  # fmt: skip
            results.append(summarise(result, direction))
    return results


def _held_out_losses(scorer: "Scorer") -> dict[str, Any]:
    """Losses on a run's own validation sources, packed as in training."""
    if scorer.config is None:
        return {}
    from megatron_lst.data.validation import validation_rows
    from megatron_lst.evaluation.heldout import losses

    found: dict[str, Any] = {}
    for source in scorer.config.data.validation:
        rows = validation_rows(scorer.config, source, scorer.config.evaluation.rows)
        measured = losses(rows, scorer.score, scorer.vocabulary)
        for name in ("loss", "loss_speech", "loss_text", "loss_marker", "targets"):
            found[f"{source.name}_{name}"] = getattr(measured, name)
    return found


def _text_losses(
    scorer: "Scorer", sets: list[Any], pieces: int, original: Path | None, device: str | None
) -> dict[str, Any]:
    """Loss and perplexity on held-out text, and the language model's beside them."""
    from itertools import chain

    import torch

    from megatron_lst.evaluation.text import Original, text_loss, text_windows

    windows = text_windows(chain.from_iterable(sets), scorer.units, pieces)
    if not windows:
        return {}
    mine = text_loss(
        windows, scorer.score, scorer.vocabulary, scorer.units, _progress("held-out text", scorer.is_writer)
    )
    found = {
        "heldout_text_loss": mine.loss,
        "heldout_text_perplexity": mine.perplexity,
        "heldout_text_pieces": mine.pieces,
    }
    if original is not None and scorer.is_writer:
        free = scorer.config is None and torch.cuda.is_available()  # an engine leaves no room beside it
        model = Original(original, scorer.vocabulary, scorer.units, device or ("cuda" if free else "cpu"))
        theirs = model.loss(windows, progress=_progress("the original"))
        found |= {"original_text_loss": theirs.loss, "original_text_perplexity": theirs.perplexity}
    return found


def _documents(scorer: "Scorer", folders: list[Path]) -> tuple[list[Any], list[Any], Any]:
    """Held-out documents with speech, sets of text, and for unit BPE the frames of each piece."""
    import numpy as np

    from megatron_lst.documents.shards import ShardSet
    from megatron_lst.errors import UserError

    paths = [str(f) for f in folders]
    if not paths and scorer.config is not None:
        paths = [p for s in scorer.config.data.validation if s.kind in ("interleaved", "text") for p in s.shards]
    found: list[Any] = []
    texts: list[Any] = []
    frames_of = None
    for path in paths:
        tokenizer, codebook = ((scorer.metadata.get(k) or {}).get("fingerprint") for k in ("tokenizer", "codebook"))
        shards = ShardSet.open(path, tokenizer=tokenizer, codebook=codebook)
        if shards.kind == "text":
            texts.append(shards)
            continue
        spoken = [d for d in shards if d.has_speech]
        if folders and not spoken:
            raise UserError(
                f"--documents {path}: none of its {len(shards)} documents has speech, and it is no text set"
            )
        found.extend(spoken)
        if "unit_bpe" in shards.manifest:
            if "lengths" not in shards.manifest["unit_bpe"]:
                raise UserError(f"{path}: does not say how long its pieces are; write it again with `lst prep bpe`")
            frames_of = np.array(shards.manifest["unit_bpe"]["lengths"])
    return found, texts, frames_of


def _held_out_choices(
    scorer: "Scorer", documents: list[Any], wanted: list[str] | None, items: int, prompt: int, continuation: int,
    patcher: "Patcher", skipped: dict[str, str],
) -> list[dict[str, Any]]:  # fmt: skip
    """The choices in each direction. One that cannot be made or scored is put into `skipped`, with its reason."""
    from megatron_lst.errors import UserError
    from megatron_lst.evaluation.choice import run_choice
    from megatron_lst.evaluation.heldout import DIRECTIONS, SAME_VOICE, TASKS, continuation_choices
    from megatron_lst.evaluation.report import summarise

    if unknown := [d for d in wanted or () if d not in DIRECTIONS]:
        raise UserError(f"--direction {unknown[0]}: expected one of {', '.join(DIRECTIONS)}")
    results = []
    for direction in wanted or DIRECTIONS:
        # In speech the voice can tell another document from this one: there, another place of this one as well.
        for task in TASKS if direction.endswith("S") else TASKS[:1]:
            refused: dict[str, str] = {}
            try:
                choices = continuation_choices(
                    documents, direction, patcher, prompt_words=prompt, continuation_words=continuation, items=items,
                    same_document=task == SAME_VOICE, refused=refused,
                )  # fmt: skip
                result = run_choice(
                    task, choices, scorer.score, scorer.vocabulary, patcher, scorer.units, refused=refused,
                    progress=_progress(f"{task} {direction}", scorer.is_writer),
                )  # fmt: skip
            except UserError as error:
                skipped[f"{task} {direction}"] = str(error)
                continue
            results.append(summarise(result, direction))
    return results


def _speech_bits(scorer: "Scorer", documents: list[Any], frames_of: Any, patcher: "Patcher") -> dict[str, Any]:
    from megatron_lst.evaluation.heldout import speech_bits

    bits = speech_bits(
        documents, scorer.score, scorer.vocabulary, patcher, scorer.units,
        frames_of=frames_of, progress=_progress("held-out speech", scorer.is_writer),
    )  # fmt: skip
    return {
        "speech_bits_per_second": bits.bits_per_second,
        "speech_bits_per_word": bits.bits_per_word,
        "speech_bits_per_token": bits.bits_per_token,
        "speech_seconds": bits.seconds,
    } | ({"speech_words_left_out": bits.left_out} if bits.left_out else {})


@eval_app.command("prepare")
def prepare(
    format_name: Annotated[str, typer.Argument(metavar="FORMAT", help="hellaswag, storycloze, zerospeech, ...")],
    source: Annotated[Path, typer.Argument(help="The benchmark's file or folder as published")],
    out: Annotated[Path, typer.Argument(help="Folder to write")],
    tokenizer: Annotated[str | None, typer.Option(help="mistral-v1, a .model file, a tokenizer.json")] = None,
    codebook: Annotated[Path | None, typer.Option(help="Codebook of the units; without it, text alone")] = None,
    units_model: Annotated[Path | None, typer.Option(help="Folder of the codebook's HuBERT or Whisper")] = None,
    aligner: Annotated[
        str | None, typer.Option(help="pocketsphinx or ctc: times of words, for models trained on aligned patches")
    ] = None,
    aligner_model: Annotated[str, typer.Option(help="Folder of a CTC aligner's model")] = "",
    tts: Annotated[str | None, typer.Option(help="espeak-ng, flite, or a command with {text} and {wav}")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the task; default: the reader's")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First items only")] = None,
) -> None:
    """Tokenise, synthesise and encode a benchmark once, for any number of evaluations."""
    from megatron_lst.errors import UserError
    from megatron_lst.evaluation.benchmarks import READERS, write_prepared
    from megatron_lst.evaluation.benchmarks import prepare as preparing

    if format_name not in READERS:
        raise UserError(f"format {format_name!r}: expected one of {', '.join(READERS)}")
    if tokenizer is None and codebook is None:
        raise UserError("give --tokenizer for text, --codebook for speech, or both")
    raw = READERS[format_name](source)
    raw.name = name or raw.name
    raw.items = raw.items[:limit]
    metadata: dict[str, Any] = {}
    encode_text, encode_audio = None, None
    if tokenizer is not None:
        from megatron_lst.cli.encoders import text_encoder

        encode_text, metadata["tokenizer"] = text_encoder(tokenizer)
    if codebook is not None:
        from megatron_lst.cli.encoders import audio_encoder

        encode_audio, metadata["codebook"] = audio_encoder(codebook, str(units_model or ""))
    align_audio = None
    if aligner is not None:
        if codebook is None:
            raise UserError("--aligner needs --codebook: without it there is no speech to align")
        from megatron_lst.cli.encoders import audio_aligner

        align_audio, metadata["aligner"] = audio_aligner(aligner, codebook, aligner_model, tokenizer)
    silent = any(p.audio is None for i in raw.items for p in i.candidates)
    command = preparing.choose_synthesiser(tts) if encode_audio is not None and silent else None
    task = preparing.prepare(
        raw, encode_text=encode_text, encode_audio=encode_audio, align_audio=align_audio, tts=command,
        metadata=metadata, progress=_progress(raw.name),
    )  # fmt: skip
    write_prepared(out, task)
    print(
        f"{out}: {task.name}, {len(task.items)} items for {', '.join(task.directions())}, {len(task.refused)} refused"
    )
    for item, reason in list(task.refused.items())[:10]:
        print(f"  {item}: {reason}")


@eval_app.command("compare")
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of `lst eval` results")],
    second: Annotated[Path, typer.Argument(help="Another's; differences are second - first")],
    score: Annotated[str, typer.Option(help="mean, sum or per_character")] = "mean",
    as_json: JSON = False,
) -> None:
    """Paired tests of two models on the same items."""
    from megatron_lst.errors import UserError
    from megatron_lst.evaluation.report import KINDS, comparison_table, load_results
    from megatron_lst.evaluation.report import compare as paired_tests

    if score not in KINDS:
        raise UserError(f"--score {score!r}: expected one of {', '.join(KINDS)}")
    with answering(as_json) as answer:
        rows = paired_tests(load_results(first), load_results(second), score)
        print(comparison_table(rows))
        answer({"first": first, "second": second, "score": score, "tasks": rows})


for command in (asr, tts, questions, harness, speed, words, jitter):
    eval_app.command()(command)
