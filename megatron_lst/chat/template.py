"""Turns -> stretches of text and speech, by the tokenizer's chat template or by markers of our own.

The template is rendered with one character of Unicode's private planes for each part that is not text. What the
assistant says begins where the template, asked for a generation prompt, stops (`add_generation_prompt`), and ends with
the end-of-turn token; a template for which this does not hold leaves the assistant's span undefined and is refused.
Text is encoded stretch by stretch, the assistant's apart from the rest, as generation meets it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from megatron_lst.chat.turns import BadConversation, Said, Speech, Stretch, Text, Turn
from megatron_lst.errors import UserError

_PLACE, _PLACES = 0xF0000, 0xFFFD
_PRIVATE = re.compile(f"[{chr(_PLACE)}-{chr(_PLACE + _PLACES - 1)}]")

MARKERS = (
    "{% set names = {'system': 'System: ', 'user': 'User: ', 'assistant': 'Assistant: '} %}"
    "{% for message in messages %}{{ names[message['role']] + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ names['assistant'] }}{% endif %}"
)
"""The template for tokenizers that have none: names of the roles as text, EOS after each turn."""


class ChatTokenizer(Protocol):
    """What rendering asks of a tokenizer."""

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Tokens that are not text, by name."""

    def encode_marked(self, text: str) -> list[int]:
        """Ids of `text` in which names of special tokens are these tokens; no BOS and EOS of its own."""


@dataclass(frozen=True)
class ChatFormat:
    """How conversations are written, as plain data: it travels with shards, runs and exports.

    Attributes:
        template: a chat template (Jinja), as in a tokenizer_config.json.
        end_of_turn: the special token that ends an assistant's turn.
        bos, eos: what the template calls bos_token and eos_token; empty: the tokenizer has none.
    """

    template: str
    end_of_turn: str
    bos: str = ""
    eos: str = ""

    def to_plain(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_plain(cls, value: Any) -> "ChatFormat":
        """Raises UserError: other keys than `to_plain` writes."""
        known = set(cls.__dataclass_fields__)
        if not isinstance(value, dict) or set(value) != known or not all(isinstance(v, str) for v in value.values()):
            raise UserError(f"chat format: expected the keys {', '.join(sorted(known))}, each a text")
        return cls(**value)


class ChatTemplate:
    """A format bound to the tokenizer that encodes it.

    Attributes:
        end_of_turn: id of the token that ends an assistant's turn.
    """

    def __init__(self, form: ChatFormat, tokenizer: ChatTokenizer) -> None:
        """
        Args:
            form: with an empty `end_of_turn`, that is found: the first special token behind what an assistant says.

        Raises:
            UserError: a template that cannot be read, or that leaves the assistant's span undefined.
        """
        self._tokenizer = tokenizer
        self._template = _compiled(form.template)
        self.form = form
        if not form.end_of_turn:
            self.form = ChatFormat(form.template, self._found_end(), form.bos, form.eos)
        end = tokenizer.special_tokens.get(self.form.end_of_turn)
        if end is None:
            raise UserError(
                f"chat template: end of turn {self.form.end_of_turn!r} is no special token of the tokenizer"
            )
        self.end_of_turn = end
        self.stretches([Turn("user", (Text("a"),)), Turn("assistant", (Said(),))])  # refuses before any conversation

    @cached_property
    def _special(self) -> re.Pattern[str]:
        names = sorted(self._tokenizer.special_tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)))

    def _found_end(self) -> str:
        probe = [Turn("user", (Text("a"),)), Turn("assistant", (Said(),))]
        _, _, behind = self.render(probe).partition(chr(_PLACE))
        found = self._special.search(behind)
        if found is None or behind[: found.start()].strip():
            raise UserError(
                f"chat template: no special token ends the assistant's turn (behind it stands {behind[:40]!r}), so its "
                f"span is undefined; name one as end_of_turn"
            )
        return found[0]

    def render(self, turns: Sequence[Turn], reply: bool = False) -> str:
        """The text of turns without BOS, a private character for each part that is not text.

        Args:
            reply: end it where the assistant begins to speak.

        Raises:
            BadConversation: a text that holds a special token or such a character.
            UserError: the template fails on these turns.
        """
        place, messages = _PLACE, []
        for number, turn in enumerate(turns):
            content = ""
            for part in turn.parts:
                if isinstance(part, Text):
                    self._check_plain(part.text, number)
                    content += part.text
                else:
                    content += chr(place)
                    place += 1
            messages.append({"role": turn.role, "content": content})
        if place - _PLACE >= _PLACES:
            raise BadConversation("bad_conversation", f"{place - _PLACE} parts of speech, at most {_PLACES - 1}")
        try:
            text: str = self._template.render(
                messages=messages, add_generation_prompt=reply, bos_token=self.form.bos, eos_token=self.form.eos
            )
        except Exception as error:  # whatever a template does
            raise UserError(f"chat template: fails on turns of {_roles(turns)}: {error}") from None
        if _PRIVATE.findall(text) != [chr(i) for i in range(_PLACE, place)]:
            raise UserError(f"chat template: leaves out, repeats or moves speech of turns of {_roles(turns)}")
        return text.removeprefix(self.form.bos) if self.form.bos else text

    def place_of_last(self, turns: Sequence[Turn]) -> str:
        """The private character that stands for the last part of `turns`, which is not text."""
        return chr(_PLACE + sum(not isinstance(part, Text) for turn in turns for part in turn.parts) - 1)

    def _check_plain(self, text: str, number: int) -> None:
        if found := self._special.search(text) or _PRIVATE.search(text):
            raise BadConversation("special_token", f"message {number}: its text holds the special token {found[0]!r}")

    def encode(self, text: str, turns: Sequence[Turn], learnt: bool = False) -> list[Stretch]:
        """A piece of what `render` gave for `turns`, as stretches; answers that the model gave are left out."""
        parts = [part for turn in turns for part in turn.parts if not isinstance(part, Text)]
        stretches, begin = [], 0
        for found in [*_PRIVATE.finditer(text), None]:
            run = text[begin : found.start() if found else len(text)]
            if run and (ids := self._tokenizer.encode_marked(run)):
                stretches.append(Stretch("text", np.array(ids, np.int32), learnt, run))
            if found is None:
                break
            begin = found.end()
            part = parts[ord(found[0]) - _PLACE]
            if isinstance(part, Speech):
                stretches.append(Stretch("speech", part.ids, learnt, part.transcript))
            else:
                assert isinstance(part, Said), "audio is read before it is rendered"
        return stretches

    def stretches(self, turns: Sequence[Turn]) -> list[Stretch]:
        """A whole conversation, up to the end of the assistant's last turn.

        Raises:
            BadConversation: it has no turn of the assistant, or ends with another one.
            UserError: the template leaves an assistant's span undefined, for these turns.
        """
        if not turns or turns[-1].role != "assistant":
            last = turns[-1].role if turns else "nothing"
            raise BadConversation("ends_with_user", f"ends with {last}: there is no answer to learn")
        whole, done, found = self.render(turns), 0, []
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before = self.render(turns[:number], reply=True)
            if not whole.startswith(before) or len(before) < done:
                raise UserError(
                    f"chat template: the assistant's span in message {number} is undefined: the text before it is not "
                    f"what the template gives with add_generation_prompt"
                )
            end = whole.find(self.form.end_of_turn, len(before))
            if end < 0:
                raise UserError(
                    f"chat template: the assistant's span in message {number} is undefined: no "
                    f"{self.form.end_of_turn!r} ends it"
                )
            end += len(self.form.end_of_turn)
            found += [
                *self.encode(whole[done : len(before)], turns),
                *self.encode(whole[len(before) : end], turns, True),
            ]
            done = end
        return found


def _roles(turns: Sequence[Turn]) -> str:
    shown = ", ".join(turn.role for turn in turns[:6])
    return (shown or "nobody") + (", ..." if len(turns) > 6 else "")


def _compiled(template: str) -> Any:
    """A Jinja template as transformers renders it. `strftime_now` is not defined: a date would make rows differ."""
    try:
        from jinja2 import TemplateError, nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError as error:
        raise UserError("chat templates need Jinja: pip install jinja2") from error

    class Generation(Extension):
        """`{% generation %}` marks the assistant's part for others; here it is passed through."""

        tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.globals["raise_exception"] = raise_exception
    try:
        return environment.from_string(template)
    except TemplateError as error:
        raise UserError(f"chat template: cannot be read ({error})") from None
