"""`lst generate`: continue a prompt of text or speech with text or speech."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from megatron_lst.cli.options import JSON, answering, finite

if TYPE_CHECKING:
    from megatron_lst.patching.chunks import Modality

FIXED_SHAPES = Annotated[
    bool | None, typer.Option(help="Decode in fixed shapes, as CUDA graphs on a GPU; default: on a GPU")
]


def generate(
    export: Annotated[Path, typer.Argument(help="An exported model (`lst export`)")],
    text: Annotated[list[str] | None, typer.Option(help="Text prompt; may be repeated")] = None,
    audio: Annotated[list[Path] | None, typer.Option(help="Speech prompt, an audio file; may be repeated")] = None,
    prompt_seconds: Annotated[
        float | None,
        typer.Option(min=0.1, callback=finite, help="Of each --audio only its beginning; default: all of it"),
    ] = None,
    units: Annotated[
        list[str] | None,
        typer.Option(help="Speech prompt as codes, such as '3 17 17 4', frame after frame; or a .npy file, [F, Q]"),
    ] = None,
    to: Annotated[str, typer.Option(help="speech, text, or any (the prompt's modality goes on)")] = "any",
    tokenizer: Annotated[str | None, typer.Option(help="Default: the one that the export names")] = None,
    codebook: Annotated[
        Path | None, typer.Option(help="Encodes --audio, and makes sound of ids; default: the export's own")
    ] = None,
    units_model: Annotated[
        Path | None, typer.Option(help="HuBERT or Whisper that --audio is encoded with; default: the export's own")
    ] = None,
    vocoder: Annotated[
        Path | None, typer.Option(help="Folder of a HiFi-GAN over the codebook's ids; else spectral inversion")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="WAV file (a number is added for more than one prompt), or .npy for the codes, [F, Q]. Codes of "
            "several codebooks, which nothing here turns into sound, are written as .npy in any case"
        ),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="File for prompts and responses as text")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest response; default: as many speech tokens as 10 seconds have")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, callback=finite, help="0 takes the most likely token")] = 0.8,
    top_p: Annotated[float, typer.Option(min=0, max=1, callback=finite)] = 0.95,
    top_k: Annotated[int, typer.Option(min=0, help="0: no limit")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=(1 << 64) - 1)] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: CUDA where there is one")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16; default: as stored")] = None,
    fixed_shapes: FIXED_SHAPES = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="A conversation: turns from the terminal, or of --turns; --save writes JSONL")
    ] = False,
    turns: Annotated[
        Path | None, typer.Option(help="--chat: JSONL of conversations without answers, as for `lst prep chat`")
    ] = None,
    system: Annotated[str | None, typer.Option(help="--chat: the system message")] = None,
    chat_format: Annotated[
        Path | None, typer.Option(help="--chat: the chat.json of `lst prep chat`; default: the export's own")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Patch by patch: the global transformer runs once a patch. Prints text or codebook ids, and what it cost."""
    import numpy as np

    from megatron_lst.cli.encoders import audio_encoder, codebook_of, text_decoder, text_encoder, tokenizer_of
    from megatron_lst.cli.speech_io import open_vocoder, read_codes, speak, write_codes
    from megatron_lst.errors import UserError
    from megatron_lst.files import require_writable
    from megatron_lst.gpu import gpu_is_usable
    from megatron_lst.inference import GenerationSettings, load_export
    from megatron_lst.inference import generate as run
    from megatron_lst.inference.export import DTYPES
    from megatron_lst.patching.chunks import prompt_tokens, speech_span, text_span

    opened = load_export(export)
    v = opened.vocabulary
    if to not in ("speech", "text", "any"):
        raise UserError(f"--to {to!r}: expected speech, text or any")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    codebook = codebook_of(opened, codebook)
    if prompt_seconds is not None and not audio:
        raise UserError("--prompt-seconds cuts --audio, and there is none")
    if not chat and (turns or system or chat_format):
        raise UserError("--turns, --system and --chat-format are of conversations: add --chat")
    if chat and as_json:
        raise UserError("--json is for single prompts; --chat writes JSONL with --save")
    if chat and (text or audio or units):
        raise UserError("--chat takes its turns from the terminal or from --turns, not from --text, --audio or --units")
    if chat:
        from megatron_lst.cli.chat import Ears, Mouth, converse, open_template

        place = device or ("cuda" if gpu_is_usable() else "cpu")
        template, decode = open_template(opened, tokenizer, chat_format)
        settings = GenerationSettings(
            max_tokens=max_tokens or v.speech_tokens(10), temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
        )
        ears = Ears(v, codebook, str(units_model or opened.units_model or ""))
        mouth = Mouth(v, decode, codebook, vocoder, out)
        model = opened.model(DTYPES[dtype] if dtype else None, place)
        converse(model, template, settings, ears, mouth, to, turns, system, save)
        return
    spec = tokenizer_of(opened, tokenizer) if text or tokenizer else opened.tokenizer
    spoken: list[np.ndarray] = []  # each [F], or [F, Q]
    for path in audio or []:
        if not path.is_file():
            raise UserError(f"--audio {path}: there is no such file")
        if codebook is None:
            raise UserError("--audio needs --codebook, the one of the model's speech tokens: the export has none")
        encode, _ = audio_encoder(codebook, str(units_model or opened.units_model or ""))
        codes = encode(path)
        spoken.append(codes if prompt_seconds is None else codes[: max(int(prompt_seconds * v.rate), 1)])
    spoken += [read_codes(line, v) for line in units or []]
    then: Modality | None = None if to == "any" else cast("Modality", to)
    prompts = [prompt_tokens([speech_span(line)], v, then) for line in spoken]
    for sentence in text or []:
        if spec is None:
            raise UserError("--text needs --tokenizer: the export does not name one")
        encode_text, _ = text_encoder(spec)
        prompts.append(prompt_tokens([text_span(encode_text(sentence, False))], v, then))
    if not prompts:
        raise UserError("no prompt: give --text, --audio or --units")

    voice = None
    if out is not None:
        if to == "text":
            raise UserError("--out is for speech, and --to text gives none; --save writes text")
        if out.is_dir():
            raise UserError(f"--out {out}: a folder; name the WAV file in it")
        if vocoder is not None or (v.depth == 1 and out.suffix != ".npy"):
            voice = open_vocoder(v, codebook, vocoder)
        require_writable(out.parent, "--out")
    if save is not None:
        require_writable(save.parent, "--save")

    place = device or ("cuda" if gpu_is_usable() else "cpu")
    model = opened.model(DTYPES[dtype] if dtype else None, place)
    settings = GenerationSettings(
        max_tokens=max_tokens or v.speech_tokens(10),
        modality=to, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed,  # type: ignore[arg-type]
        fixed_shapes=fixed_shapes,
    )  # fmt: skip
    with answering(as_json) as answer:
        results, timing = run(model, prompts, settings)
        written: list[str] = []
        answers: list[dict[str, Any]] = []
        for number, result in enumerate(results):
            said_of: dict[str, Any] = {
                "tokens": len(result.tokens), "global_steps": result.units, "ended_by": result.finish, "text": None,
                "codes": None, "file": None,
            }  # fmt: skip
            answers.append(said_of)
            print(f"[{number}] {len(result.tokens)} tokens, {result.units} global steps, ended by {result.finish}")
            pieces = [t for t in result.tokens if t < v.text_size]
            tokens = np.array(result.tokens, np.int64)
            said = tokens[v.is_speech(tokens)] - v.text_size
            if pieces:
                response = text_decoder(spec)(pieces) if spec else str(pieces)
                print(f"    text: {response}")
                before = text[number - len(spoken)] if text and number >= len(spoken) else ""
                written.append(f"{before} [{number}] {response}".strip())
                said_of["text"] = response
            if len(said):
                codes = said.reshape(-1, v.depth) - v.offsets
                listed = " ".join(map(str, codes.ravel().tolist()))
                print(f"    units: {listed}")
                written.append(f"[{number}] units {listed}")
                said_of |= {"codes": codes.tolist(), "seconds": v.seconds(len(said))}
            if not len(said) and out is not None:
                print(f"    no sound: the model ended at once, and {out} is not written for it; try another --seed")
            if len(said) and out is not None:
                target = out if len(results) == 1 else out.with_stem(f"{out.stem}-{number}")
                prefix = spoken[number].reshape(-1) if number < len(spoken) else np.zeros(0, np.int64)
                whole = np.concatenate([prefix, said])
                if voice is not None:
                    speak(voice, said, target, before=prefix)
                    lengths = f"{v.seconds(len(whole)):.1f} s"
                    if len(prefix):
                        lengths += (
                            f": the prompt {v.seconds(len(prefix)):.1f} s, the response {v.seconds(len(said)):.1f} s"
                        )
                    print(f"    sound: {target} ({lengths})")
                else:
                    target = write_codes(target, whole, v)
                    decoder = (opened.metadata.get("codec") or {}).get("decoder") or "the decoder of the model's codec"
                    print(f"    codes: {target}, [{len(whole) // v.depth}, {v.depth}]; {decoder} makes sound of them")
                said_of |= {"file": target, "file_seconds": v.seconds(len(whole))}
        if save is not None:
            save.write_text("\n".join(written) + "\n")
            print(f"    saved: {save}")
        cache = sum(timing.cache_bytes.values())
        print(
            f"{timing.tokens} tokens in {timing.seconds:.2f} s ({timing.tokens / timing.seconds:.1f} tokens/s), first "
            f"after {timing.first_token * 1000:.0f} ms; caches {cache / 1e6:.2f} MB, of which global "
            f"{timing.cache_bytes['global'] / 1e6:.2f} MB"
        )
        answer({"responses": answers, "timing": asdict(timing)})
