"""`lst eval asr|tts|questions`: tasks that generate, on an exported model."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_lst.cli.options import JSON, answering, finite

EXPORT = Annotated[Path, typer.Argument(help="An exported model")]
DOCUMENTS = Annotated[Path, typer.Argument(help="A held-out shard set of speech")]
LIMIT = Annotated[int, typer.Option(min=1, help="First documents only")]
TOKENIZER = Annotated[str | None, typer.Option(help="Default: the one that the export names")]
JUDGE = Annotated[
    str | None,
    typer.Option(help="Hears speech tokens: whisper, pocketsphinx, a command with {wav}, or a model's folder"),
]
JUDGE_MODEL = Annotated[str | None, typer.Option(help="--judge whisper: a folder or hub name of any Whisper")]
LANGUAGE = Annotated[str, typer.Option(help="Language of the speech, for the judge and for normalising texts")]
DEVICE = Annotated[str, typer.Option(help="cpu, cuda, ...")]


def open_with_documents(export: Path, documents: Path, limit: int, device: str) -> tuple[Any, Any, list[Any]]:
    """(export, model, first documents) with the fingerprints compared. Raises UserError where they differ."""
    from itertools import islice

    from megatron_lst.documents.shards import ShardSet
    from megatron_lst.inference import load_export

    opened = load_export(export)
    shards = ShardSet.open(documents, kind="speech")
    opened.check_fingerprints(shards.tokenizer.fingerprint, shards.codec.fingerprint if shards.codec else None)
    return opened, opened.model(device=device), list(islice(shards, limit))


def _decoder(opened: Any, tokenizer: str | None) -> Any:
    from megatron_lst.cli.encoders import require_tokenizer, text_decoder

    return text_decoder(require_tokenizer(opened, tokenizer))


def _transcriber(
    judge: str | None,
    model: str | None,
    language: str,
    vocabulary: Any,
    codebook: Path | None,
    vocoder: Path | None,
    device: str,
) -> Any:
    """Speech ids -> text through a vocoder and a judge; None without a judge."""
    from megatron_lst.cli.speech_io import open_vocoder
    from megatron_lst.errors import UserError
    from megatron_lst.evaluation.recogniser import of_speech_ids, open_judge

    if judge is None:
        if model is not None:
            raise UserError("--judge-model needs --judge whisper")
        return None
    return of_speech_ids(open_judge(judge, model, language, device), open_vocoder(vocabulary, codebook, vocoder))


def _say(who: str, judged: Any) -> None:
    wer, cer = judged.wer, judged.cer
    print(f"{who}: WER {wer.rate:.1%} of {wer.length} words, CER {cer.rate:.1%} of {cer.length} characters")


def _rates(judged: Any) -> dict[str, Any] | None:
    """Error rates as JSON has them."""
    if judged is None:
        return None
    wer, cer = judged.wer, judged.cer
    return {"wer": wer.rate, "words": wer.length, "cer": cer.rate, "characters": cer.length}


def _spoken_ids(command: str, said: str, encode: Any) -> Any:
    """A text through a speech synthesiser and the codebook."""
    from megatron_lst.evaluation.benchmarks.prepare import synthesise

    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "said.wav"
        synthesise(command, said, wav)
        return encode(wav)


def _listed(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value}" for name, value in figures.items())


def asr(
    export: EXPORT, documents: DOCUMENTS, limit: LIMIT = 100, tokenizer: TOKENIZER = None, device: DEVICE = "cpu",
    batch: Annotated[int, typer.Option(min=1)] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest transcript, in text pieces")] = 400,
    judge: JUDGE = None, judge_model: JUDGE_MODEL = None, language: LANGUAGE = "en",
    codebook: Annotated[Path | None, typer.Option(help="--judge: makes sound of tokens; default: the export's")] = None,
    vocoder: Annotated[Path | None, typer.Option(help="--judge: HiFi-GAN folder, in place of the codebook")] = None,
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Transcribe held-out speech: word and character error rates, and the context that it took.

    With --judge, what somebody else's recogniser hears in the same speech tokens stands beside it.
    """
    from megatron_lst.cli.encoders import codebook_of
    from megatron_lst.evaluation.paper import SPEECH
    from megatron_lst.evaluation.speech_tasks import recognise

    with answering(as_json) as answer:
        opened, model, found = open_with_documents(export, documents, limit, device)
        sound = codebook_of(opened, codebook) if judge else None
        hear = _transcriber(judge, judge_model, language, model.vocabulary, sound, vocoder, device)
        result = recognise(
            model, found, _decoder(opened, tokenizer),
            batch=batch, max_tokens=max_tokens, transcribe=hear, language=language,
        )  # fmt: skip
        for name, reason in result.refused.items():
            print(f"refused {name}: {reason}")
        _say("the model", result)
        if result.judged is not None:
            _say(f"{judge}, which hears the same speech tokens", result.judged)
        share = result.context_units / result.context_tokens
        print(f"context {result.context_units} units, {share:.2f}x the unpatched ones")
        print(f"paper, WER clean after adaptation (1B): {_listed(SPEECH['asr_wer_clean'])}")
        answer(
            {"model": _rates(result), "judged": _rates(result.judged), "refused": result.refused,
             "context_units": result.context_units, "context_tokens": result.context_tokens}
        )  # fmt: skip


def tts(
    export: EXPORT, documents: DOCUMENTS, limit: LIMIT = 20, device: DEVICE = "cpu",
    out: Annotated[Path | None, typer.Option(help="Folder for WAV files; needs --codebook or --vocoder")] = None,
    codebook: Annotated[Path | None, typer.Option()] = None,
    vocoder: Annotated[Path | None, typer.Option()] = None,
    temperature: Annotated[float, typer.Option(min=0, callback=finite)] = 0.8,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest response; default: the tokens of 30 s")] = None,
    judge: JUDGE = None, judge_model: JUDGE_MODEL = None, language: LANGUAGE = "en",
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Speak held-out texts: global steps relative to the unpatched model, sound, and how well it is understood."""
    from megatron_lst.cli.encoders import codebook_of
    from megatron_lst.cli.speech_io import open_vocoder, speak, write_codes
    from megatron_lst.evaluation.paper import SPEECH
    from megatron_lst.evaluation.speech_tasks import synthesise
    from megatron_lst.files import require_writable

    with answering(as_json) as answer:
        opened, model, found = open_with_documents(export, documents, limit, device)
        codebook, v = codebook_of(opened, codebook), model.vocabulary
        voice = None if out is None or v.depth > 1 else open_vocoder(v, codebook, vocoder)
        if out is not None:
            require_writable(out, "--out")
        hear = _transcriber(judge, judge_model, language, v, codebook, vocoder, device)
        result = synthesise(
            model, found, temperature=temperature, max_tokens=max_tokens, transcribe=hear, language=language
        )
        for name, reason in result.refused.items():
            print(f"refused {name}: {reason}")
        share = result.global_steps / max(result.generated, 1)
        steps = f"{result.global_steps} global steps, {share:.2f}x the unpatched model's"
        print(f"{result.generated} speech tokens in {steps}")
        if result.judged is not None:
            _say(f"as {judge} hears it", result.judged)
            _say("the recordings' own tokens, the same way (the floor)", result.floor)
            print(f"paper, CER after adaptation (1B), as Whisper hears it: {_listed(SPEECH['tts_cer_clean'])}")
        sounds: dict[str, Path] = {}
        for name, ids in result.speech_ids.items():
            target = None if out is None or not len(ids) else out / f"{name.replace('/', '_')}.wav"
            if target is not None and voice is not None:
                speak(voice, ids, target)
                sounds[name] = target
            elif target is not None:
                sounds[name] = write_codes(target, ids, v)
                print(f"codes: {sounds[name]}, [{len(ids) // v.depth}, {v.depth}]; no decoder of them is here")
        answer(
            {"generated": result.generated, "global_steps": result.global_steps, "judged": _rates(result.judged),
             "floor": _rates(result.floor), "refused": result.refused, "files": sounds}
        )  # fmt: skip


def questions(
    export: EXPORT, source: Annotated[Path, typer.Argument(help="Questions as published")],
    codebook: Annotated[
        Path | None, typer.Option(help="The codebook of the model's speech tokens; default: the export's own")
    ] = None,
    shots: Annotated[int, typer.Option(min=0, help="Examples in front of each question, the file's first")] = 0,
    tokenizer: TOKENIZER = None, device: DEVICE = "cpu",
    to: Annotated[str, typer.Option(help="Answers in text, or in speech, which needs --judge")] = "text",
    judge: JUDGE = None, judge_model: JUDGE_MODEL = None, language: LANGUAGE = "en",
    vocoder: Annotated[Path | None, typer.Option(help="HiFi-GAN folder; default: the codebook's inversion")] = None,
    tts: Annotated[str | None, typer.Option(help="Speaks the examples' answers, for --to speech with --shots")] = None,
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Spoken questions, answered in text (S->T) or speech (S->S): the share of answers that hold an accepted one."""
    from megatron_lst.cli.encoders import audio_encoder, codebook_of, require_tokenizer, text_encoder
    from megatron_lst.errors import UserError
    from megatron_lst.evaluation.benchmarks.prepare import choose_synthesiser
    from megatron_lst.evaluation.benchmarks.questions import questions as read_questions
    from megatron_lst.evaluation.speech_tasks import SpokenQuestion, answer_questions
    from megatron_lst.inference import load_export
    from megatron_lst.patching.chunks import speech_span, text_span

    with answering(as_json) as answer:
        opened = load_export(export)
        codebook = codebook_of(opened, codebook)
        if codebook is None:
            raise UserError("give --codebook, the one that made the model's speech tokens: the export has none")
        encode, _ = audio_encoder(codebook, str(opened.units_model or ""))
        if to not in ("text", "speech"):
            raise UserError(f"--to {to!r}: expected text or speech")
        decode = _decoder(opened, tokenizer)
        hear = _transcriber(judge, judge_model, language, opened.vocabulary, codebook, vocoder, device)
        with tempfile.TemporaryDirectory() as folder:
            found, refused = read_questions(source, Path(folder))
            refused |= {q.id: "no audio" for q in found if q.audio is None}
            spoken = [SpokenQuestion(q.id, encode(q.audio), q.answers) for q in found if q.audio is not None]
        if len(spoken) <= shots:
            raise UserError(f"{source}: {len(spoken)} spoken questions, {shots} of them examples: none is left")
        examples: list[Any] = []
        if shots and to == "text":
            encode_text, _ = text_encoder(require_tokenizer(opened, tokenizer))
            examples = [
                (speech_span(q.speech_ids), text_span(encode_text(q.answers[0], False))) for q in spoken[:shots]
            ]
        elif shots:
            say = choose_synthesiser(tts)
            examples = [
                (speech_span(q.speech_ids), speech_span(_spoken_ids(say, q.answers[0], encode))) for q in spoken[:shots]
            ]
        graded = answer_questions(
            opened.model(device=device), spoken[shots:], decode, examples=examples, to=to, transcribe=hear
        )
        print(f"{graded.count} questions: {graded.accuracy:.1%} hold an accepted answer, {graded.exact:.1%} are one")
        print(f"{len(refused)} refused" + "".join(f"\n  {k}: {v}" for k, v in list(refused.items())[:10]))
        answer({"questions": graded.count, "accuracy": graded.accuracy, "exact": graded.exact, "refused": refused})
