"""A conversation with a model: what was said stays in its caches, and each turn costs its own tokens alone.

The sequence is the one that conversations are trained on (SPEC 7): `BOS turns`, roles by the chat template, `<s>`
before speech and `<t>` after it, the end-of-turn token after each answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from megatron_lst.chat import ChatTemplate, Said, Speech, Stretch, Text, Turn
from megatron_lst.chat.turns import Role
from megatron_lst.errors import UserError
from megatron_lst.inference.generation import Generated, GenerationSettings, Held, Timing, stream
from megatron_lst.inference.model import LatentSpeechTextModel

Modality = Literal["speech", "text", "any"]


@dataclass(frozen=True)
class Answer:
    """What the model said in one turn.

    Attributes:
        tokens: of the joint vocabulary, without what ended the turn.
        spans: the same by modality: text ids, or speech ids (not shifted) [F], or [F, Q]; no markers.
        finish: `stop`: the model ended its turn (or its speech, where speech was asked for); `eos`; `length`.
        log_probabilities: of `tokens`, nats, where the settings ask for them.
        timing: what it cost.
    """

    tokens: list[int]
    spans: list[tuple[Literal["text", "speech"], np.ndarray]]
    finish: str
    log_probabilities: list[float]
    timing: Timing


class Conversation:
    """Turns with a model, one after the other.

    Attributes:
        turns: all so far; the model's own as `Said`.
        tokens: all that the model has read and said, in order, up to its last answer.
    """

    def __init__(
        self, model: LatentSpeechTextModel, template: ChatTemplate, settings: GenerationSettings | None = None
    ) -> None:
        """
        Args:
            template: of the tokenizer that the model was trained with.
            settings: of answers; modality and stop are the conversation's own.

        Raises:
            UserError: the template's end of turn is not among the model's text ids.
        """
        if template.end_of_turn >= model.vocabulary.text_size:
            raise UserError(
                f"chat template: end of turn has the id {template.end_of_turn}, the model has "
                f"{model.vocabulary.text_size:,} text ids: a tokenizer of another model?"
            )
        self.model, self.template = model, template
        self.settings = settings or GenerationSettings()
        self.turns: list[Turn] = []
        self.tokens: list[int] = []
        self.held = Held.of(model, 1)
        self._seen = ""  # what the template gave up to the last answer, that included
        self._unread: list[int] = []  # tokens of the last answer that are not in the caches yet

    def say(self, role: Role, *parts: Text | Speech | str) -> None:
        """Add a turn of the user or the system, or another's answer; the model reads it when it is to answer.

        Raises:
            BadConversation: a text that holds a special token.
            UserError: a turn that is empty, or that the template refuses.
        """
        turn = Turn(role, tuple(Text(part) if isinstance(part, str) else part for part in parts))
        if not turn.parts:
            raise UserError(f"a turn of {role} without text or speech")
        self.template.render([*self.turns, turn])
        self.turns.append(turn)

    def answer(self, to: Modality = "any", settings: GenerationSettings | None = None) -> Answer:
        """The model's next turn.

        Args:
            to: `speech`: it speaks until it would write; `text`: it writes; `any`: it chooses, and may do both.
            settings: for this turn; None: the conversation's.

        Raises:
            UserError: nobody spoke since its last answer, no room in the context, or a template that writes what was
                said before in another way now.
        """
        if not self.turns or self.turns[-1].role == "assistant":
            raise UserError("nobody has spoken since the last answer")
        vocabulary = self.model.vocabulary
        whole = self.template.render(self.turns, reply=True)
        new = self._unread + self._between(whole)
        if to == "speech":
            new.append(vocabulary.speech_marker)
        stop = vocabulary.text_marker if to == "speech" else self.template.end_of_turn
        chosen = settings or self.settings
        seed = (chosen.seed + len(self.turns)) % (1 << 64)  # else every turn would draw the same numbers
        chosen = replace(chosen, modality=to, stop=(stop,), stop_at_marker=False, seed=seed)
        before, results, timing = self.held.counters[0].tokens, list[Generated](), Timing()
        for _ in stream(self.model, [new], chosen, results, timing, self.held):
            pass
        (said,) = results
        self.tokens += new[len(self._unread) :] + said.tokens
        self._unread = said.tokens[self.held.counters[0].tokens - before - len(new) :]
        self.turns.append(Turn("assistant", (Said(),)))
        self._seen = whole + self.template.place_of_last(self.turns)
        ended = said.finish == "eos" and stop == vocabulary.eos
        finish = "stop" if ended else said.finish
        return Answer(said.tokens, self._spans(said.tokens), finish, said.log_probabilities, timing)

    def _between(self, whole: str) -> list[int]:
        """Tokens from the end of the last answer (or BOS) to where the next one begins.

        Args:
            whole: the text of all turns up to there.
        """
        vocabulary, end = self.model.vocabulary, self.template.form.end_of_turn
        if not self._seen:
            return [vocabulary.bos, *self._joint(self.template.encode(whole, self.turns), False)]
        behind = whole[len(self._seen) :]
        if not whole.startswith(self._seen) or end not in behind:
            raise UserError(
                "chat template: it writes earlier turns differently once another turn follows, so a conversation "
                "cannot go on with it"
            )
        last = np.array(self.tokens[-1:])
        speaking = bool(vocabulary.is_speech(last)[0]) or last[0] == vocabulary.speech_marker
        rest = self._joint(self.template.encode(behind.partition(end)[2], self.turns), False)
        return [*([vocabulary.text_marker] if speaking else []), self.template.end_of_turn, *rest]

    def _joint(self, stretches: Sequence[Stretch], speaking: bool) -> list[int]:
        """Stretches as tokens, a marker where the modality changes."""
        vocabulary, tokens = self.model.vocabulary, list[int]()
        for stretch in stretches:
            heard = stretch.modality == "speech"
            if heard:
                tokens.append(vocabulary.speech_marker)
            elif speaking:
                tokens.append(vocabulary.text_marker)
            shift = vocabulary.text_size if heard else 0
            tokens += (stretch.ids.reshape(-1).astype(np.int64) + shift).tolist()
            speaking = heard
        return [*tokens, vocabulary.text_marker] if speaking else tokens

    def _spans(self, tokens: list[int]) -> list[tuple[Literal["text", "speech"], np.ndarray]]:
        """An answer by modality."""
        vocabulary, ids = self.model.vocabulary, np.array(tokens, np.int64)
        speech = vocabulary.is_speech(ids)
        markers = np.isin(ids, [vocabulary.text_marker, vocabulary.speech_marker])
        found: list[tuple[Literal["text", "speech"], np.ndarray]] = []
        edges = np.flatnonzero(np.diff(np.where(markers, 2, speech), prepend=-1, append=-1))
        for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if markers[begin]:
                continue
            if speech[begin]:
                spoken = ids[begin:end] - vocabulary.text_size
                found.append(("speech", spoken if vocabulary.depth == 1 else spoken.reshape(-1, vocabulary.depth)))
            else:
                found.append(("text", ids[begin:end]))
        return found
