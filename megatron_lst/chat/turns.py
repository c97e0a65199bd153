"""What a conversation is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from megatron_lst.errors import UserError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)


class BadConversation(UserError):
    """A conversation that cannot be used.

    Attributes:
        reason: a word for counting: bad_conversation, ends_with_user, unknown_key, special_token.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Text:
    """Text of a turn."""

    text: str


@dataclass(frozen=True)
class Speech:
    """Speech of a turn.

    Attributes:
        ids: int [F], or [F, Q], speech ids.
        transcript: what is said, for people; the model does not see it.
    """

    ids: np.ndarray
    transcript: str = ""


@dataclass(frozen=True)
class Said:
    """An answer that a model gave in this conversation: its tokens are in the caches and are not made again."""


@dataclass(frozen=True)
class Audio:
    """Speech that a file names: by one of path, units and span.

    Attributes:
        path: an audio file.
        units: codes, as a list or the path of an .npy file.
        span: source, id, from and to (frames, half-open) in a shard set; from and to may be left out.
        transcript: what is said, where it is known.
    """

    path: str = ""
    units: Any = None
    span: Mapping[str, Any] | None = None
    transcript: str = ""


Part = Text | Speech | Said | Audio


@dataclass(frozen=True)
class Turn:
    """What one of the roles says at once."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Stretch:
    """Consecutive tokens of one modality.

    Attributes:
        modality: `text` or `speech`.
        ids: int32 [n] text ids, or speech ids [F] or [F, Q].
        learnt: the assistant says it.
        text: for people.
    """

    modality: Literal["text", "speech"]
    ids: np.ndarray
    learnt: bool
    text: str = ""


_KEYS = {"audio": {"type", "path", "units", "span", "transcript"}, "text": {"type", "text"}}
_SPAN = {"source", "id", "from", "to"}


def turns_of(messages: object) -> list[Turn]:
    """Turns of messages in the OpenAI form: [{"role", "content": text or parts}].

    A part is {"type": "text", "text"} or {"type": "audio", one of "path", "units", "span", perhaps "transcript"}.

    Raises:
        BadConversation: names the message and what is wrong with it.
    """
    if not isinstance(messages, list) or not messages:
        raise BadConversation("bad_conversation", "messages: expected a list of at least one message")
    turns = []
    for number, message in enumerate(messages):
        where = f"message {number}"
        if not isinstance(message, dict):
            raise BadConversation("bad_conversation", f"{where}: expected an object, got {message!r:.60}")
        if unknown := set(message) - {"role", "content"}:
            raise BadConversation("unknown_key", f"{where}: unknown key {min(unknown)!r}")
        if message.get("role") not in ROLES:
            raise BadConversation(
                "bad_conversation", f"{where}: role is {message.get('role')!r}, expected {', '.join(ROLES)}"
            )
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not parts:
            raise BadConversation("bad_conversation", f"{where}: content: expected text or a list of parts")
        turns.append(Turn(message["role"], tuple(_part(part, f"{where}, part {i}") for i, part in enumerate(parts))))
    return turns


def _part(part: object, where: str) -> Part:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or kind not in _KEYS:
        raise BadConversation("bad_conversation", f"{where}: type is {kind!r}, expected {' or '.join(_KEYS)}")
    if unknown := set(part) - _KEYS[kind]:
        raise BadConversation("unknown_key", f"{where}: unknown key {min(unknown)!r}")
    for name in ("text", "transcript", "path"):
        if name in part and not (isinstance(part[name], str) and part[name].strip()):
            raise BadConversation("bad_conversation", f"{where}: {name} is {part[name]!r:.60}, expected text")
    if kind == "text":
        if "text" not in part:
            raise BadConversation("bad_conversation", f"{where}: has no text")
        return Text(part["text"])
    given = [name for name in ("path", "units", "span") if part.get(name) is not None]
    if len(given) != 1:
        raise BadConversation(
            "bad_conversation", f"{where}: expected one of path, units and span, got {', '.join(given) or 'none'}"
        )
    span = part.get("span")
    if span is not None:
        if not isinstance(span, dict) or not {"source", "id"} <= set(span) <= _SPAN:
            raise BadConversation("bad_conversation", f"{where}: span: expected source, id, and perhaps from and to")
        for name in ("from", "to"):
            if name in span and (isinstance(span[name], bool) or not isinstance(span[name], int)):
                raise BadConversation("bad_conversation", f"{where}: span: {name} is {span[name]!r}, expected frames")
    return Audio(part.get("path", ""), part.get("units"), span, part.get("transcript", ""))
