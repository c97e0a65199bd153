"""`lst generate --chat`: a conversation in the terminal, or those of a file."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from megatron_lst.errors import UserError

if TYPE_CHECKING:
    from megatron_lst.chat import ChatTemplate, Speech, Text
    from megatron_lst.inference import Answer, Conversation, Export, GenerationSettings, LatentSpeechTextModel
    from megatron_lst.inference.vocoder import Vocoder
    from megatron_lst.vocabulary import Vocabulary

HELP = "a line is a turn; /audio FILE or /units '3 17 4' speaks it, /to speech|text|any asks for that, /quit ends"


def open_template(
    export: "Export", tokenizer: str | None, given: Path | None
) -> "tuple[ChatTemplate, Callable[[list[int]], str]]":
    """The chat template that a model was trained with, and the decoder of its text.

    Raises:
        UserError: there is none, or another tokenizer.
    """
    from lst_prep.tokenizer import load_tokenizer
    from megatron_lst.chat import ChatFormat, ChatTemplate
    from megatron_lst.cli.encoders import require_tokenizer
    from megatron_lst.files import read_json

    found = read_json(given) if given is not None else export.metadata.get("chat")
    if found is None:
        where = f"{given}: not readable" if given else f"{export.folder} was not trained on conversations"
        raise UserError(f"{where}; --chat-format names the chat.json of `lst prep chat`")
    opened = load_tokenizer(require_tokenizer(export, tokenizer))
    return ChatTemplate(ChatFormat.from_plain(found), opened), opened.decode


@dataclass(frozen=True)
class Ears:
    """Audio files and codes -> speech ids. Opens what it needs when it is needed."""

    vocabulary: "Vocabulary"
    codebook: Path | None
    units_model: str

    @cached_property
    def _encode(self) -> Callable[[Path], np.ndarray]:
        from megatron_lst.cli.encoders import audio_encoder

        if self.codebook is None:
            raise UserError("audio needs --codebook, the one of the model's speech tokens: the export has none")
        return audio_encoder(self.codebook, self.units_model)[0]

    def audio(self, path: Path) -> "Speech":
        from megatron_lst.chat import Speech

        return Speech(self._encode(path))

    def units(self, given: object) -> "Speech":
        """Args: given: codes as `--units` takes them, or nested lists."""
        from megatron_lst.chat import Speech
        from megatron_lst.cli.speech_io import read_codes

        text = given if isinstance(given, str) else " ".join(map(str, np.asarray(given).reshape(-1).tolist()))
        ids = read_codes(text, self.vocabulary)
        return Speech(ids[:, 0] if self.vocabulary.depth == 1 else ids)


class Mouth:
    """Answers -> text, and sound or codes in files beside `out`."""

    def __init__(
        self, vocabulary: "Vocabulary", decode: Callable[[list[int]], str], codebook: Path | None,
        vocoder: Path | None, out: Path | None,
    ) -> None:  # fmt: skip
        """Raises UserError: `out` cannot be written, or there is nothing that makes sound."""
        from megatron_lst.cli.speech_io import open_vocoder
        from megatron_lst.files import require_writable

        self.vocabulary, self.decode, self._out = vocabulary, decode, out
        self._voice: Vocoder | None = None
        if out is not None:
            if out.is_dir():
                raise UserError(f"--out {out}: a folder; name the WAV file in it")
            require_writable(out.parent, "--out")
            if vocoder is not None or (vocabulary.depth == 1 and out.suffix != ".npy"):
                self._voice = open_vocoder(vocabulary, codebook, vocoder)

    def message(self, answer: "Answer", number: int, turn: int) -> dict[str, Any]:
        """An answer as a message in the OpenAI form; its speech is written to files where `out` was given."""
        from megatron_lst.cli.speech_io import speak, write_codes

        parts: list[dict[str, Any]] = []
        for place, (kind, ids) in enumerate(answer.spans):
            if kind == "text":
                parts.append({"type": "text", "text": self.decode(ids.tolist())})
                continue
            codes = ids.reshape(-1, self.vocabulary.depth) - self.vocabulary.offsets
            units = codes[:, 0] if self.vocabulary.depth == 1 else codes
            part: dict[str, Any] = {"type": "audio", "units": units.tolist()}
            if self._out is not None:
                target = self._out.with_stem(f"{self._out.stem}-{number}-{turn}" + (f"-{place}" if place else ""))
                if self._voice is not None:
                    speak(self._voice, ids.reshape(-1), target)
                else:
                    target = write_codes(target, ids.reshape(-1), self.vocabulary)
                print(f"    {'sound' if self._voice else 'codes'}: {target}")
            parts.append(part)
        return {"role": "assistant", "content": parts}


def converse(
    model: "LatentSpeechTextModel", template: "ChatTemplate", settings: "GenerationSettings", ears: Ears, mouth: Mouth,
    to: str, turns: Path | None, system: str | None, save: Path | None,
) -> None:  # fmt: skip
    """Answer each turn of the user; print what it cost.

    Args:
        to: speech, text or any.
        turns: JSONL of conversations; None: the terminal.
        save: JSONL of what was said, as `lst prep chat` reads it.

    Raises:
        UserError: turns that cannot be said; names the file and line.
    """
    from megatron_lst.files import require_writable, write_text
    from megatron_lst.inference import Conversation

    if save is not None:
        require_writable(save.parent, "--save")
    written: list[dict[str, Any]] = []
    asked = _from_file(turns, ears) if turns is not None else _from_terminal(ears, to)
    talk, messages, name = None, list[dict[str, Any]](), ""
    for conversation, role, parts, message, wanted in asked:
        if talk is None or conversation != name:
            talk, messages, name = Conversation(model, template, settings), [], conversation
            written.append({"id": name, "messages": messages})
            print(f"[{name}]")
            if system is not None and role != "system":
                talk.say("system", system)
                messages.append({"role": "system", "content": system})
        try:
            talk.say(cast("Any", role), *parts)
        except UserError as error:
            if turns is not None:
                raise UserError(f"--turns {turns}: {name}: {error}") from None
            print(f"    {error}")
            continue
        messages.append(message)
        if role == "user":
            messages.append(_answer(talk, mouth, wanted or to, len(written) - 1, len(messages)))
    if save is not None:
        write_text(save, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in written))
        print(f"saved: {save}")


def _answer(talk: "Conversation", mouth: Mouth, to: str, number: int, turn: int) -> dict[str, Any]:
    before = talk.held.cache.tokens[0]
    answer = talk.answer(cast("Any", to))
    message = mouth.message(answer, number, turn)
    for part in message["content"]:
        shown = part["text"] if part["type"] == "text" else " ".join(map(str, np.ravel(part["units"]).tolist()))
        print(f"    {'text' if part['type'] == 'text' else 'units'}: {shown}")
    read = len(talk.tokens) - before - len(answer.tokens)
    print(
        f"    {len(answer.tokens)} tokens in {answer.timing.seconds:.2f} s, ended by {answer.finish}; read {read} new "
        f"tokens, {before} were held",
        flush=True,
    )
    return message


Asked = tuple[str, str, "tuple[Text | Speech, ...]", dict[str, Any], str]
"""(conversation, role, parts, the message in the OpenAI form, the modality of the answer or empty)."""


def _from_file(path: Path, ears: Ears) -> Iterator[Asked]:
    from megatron_lst.chat import BadConversation
    from megatron_lst.chat.turns import Audio, Text, turns_of

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--turns {path}: cannot be read ({error})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"--turns {path}: line {number}"
        try:
            value = json.loads(line)
            if not isinstance(value, dict) or set(value) - {"id", "messages"}:
                raise ValueError("expected an object with id and messages")
            turns = turns_of(value.get("messages"))
        except (ValueError, BadConversation) as error:
            raise UserError(f"{where}: {error}") from None
        if turns[-1].role != "user" or any(turn.role == "assistant" for turn in turns):
            raise UserError(f"{where}: the model answers each turn of the user: leave out the assistant's turns")
        for turn, message in zip(turns, value["messages"], strict=True):
            parts: list[Any] = []
            for part in turn.parts:
                if not isinstance(part, Audio):
                    parts.append(part)
                elif part.span is not None:
                    raise UserError(f"{where}: a span of a shard set; here audio is a path or units")
                elif part.units is not None:
                    given = part.units
                    at_hand = isinstance(given, str) and given.endswith(".npy")
                    parts.append(ears.units(str(path.parent / given) if at_hand else given))
                else:
                    parts.append(ears.audio(path.parent / part.path))
            assert all(isinstance(part, Text) or hasattr(part, "ids") for part in parts)
            yield str(value.get("id", f"line {number}")), turn.role, tuple(parts), message, ""


def _from_terminal(ears: Ears, to: str) -> Iterator[Asked]:
    """Turns as they are typed; a mistake is said and the turn may be typed again."""
    from megatron_lst.chat import Text

    print(HELP)
    wanted = to
    while True:
        print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "/quit":
            print()
            return
        command, _, rest = line.strip().partition(" ")
        try:
            if not command:
                continue
            if command == "/to":
                if rest not in ("speech", "text", "any"):
                    raise UserError(f"/to {rest!r}: expected speech, text or any")
                wanted = rest
            elif command == "/audio":
                (name,) = shlex.split(rest) or [""]
                part: Any = {"type": "audio", "path": name}
                yield "terminal", "user", (ears.audio(Path(name)),), {"role": "user", "content": [part]}, wanted
            elif command == "/units":
                units = rest.strip("'\"")
                part = {"type": "audio", "units": units}
                yield "terminal", "user", (ears.units(units),), {"role": "user", "content": [part]}, wanted
            elif command.startswith("/"):
                raise UserError(f"{command}: not known; {HELP}")
            else:
                text = line.strip()
                yield "terminal", "user", (Text(text),), {"role": "user", "content": text}, wanted
        except (UserError, ValueError) as error:
            print(f"    {error}")
