"""In which modality each turn of a conversation stands: response styles as templates."""

from collections.abc import Callable, Sequence

import numpy as np

from lst_prep.chat.config import Style
from lst_prep.chat.hearing import Heard
from lst_prep.rejection import Rejection
from megatron_lst.chat.turns import Audio, Part, Role, Speech, Text, Turn

_AS_GIVEN, _SPEECH, _TEXT, _BOTH = "as given", "speech", "text", "text, then speech"
STYLES: dict[Style, tuple[str, str]] = {
    "as_given": (_AS_GIVEN, _AS_GIVEN),
    "speech_to_speech": (_SPEECH, _SPEECH),
    "speech_to_text": (_SPEECH, _TEXT),
    "text_to_speech": (_TEXT, _SPEECH),
    "text_to_text": (_TEXT, _TEXT),
    "text_then_speech": (_SPEECH, _BOTH),
}
"""Style -> what the user's and what the assistant's turns are made of."""


def styled(turns: Sequence[Turn], style: Style, hear: Callable[[Audio], Heard], chunk_words: int) -> list[Turn]:
    """The turns with all audio read, in a style; system turns stay as they are.

    Args:
        hear: reads the audio of a part.
        chunk_words: words of a chunk of `text_then_speech`.

    Raises:
        Rejection: missing_modality, or what `hear` raises.
    """
    user, assistant = STYLES[style]
    wanted: dict[Role, str] = {"system": _AS_GIVEN, "user": user, "assistant": assistant}
    found = []
    for number, turn in enumerate(turns):
        parts = _parts(turn, wanted[turn.role], hear, chunk_words)
        if not parts:
            what = "speech" if wanted[turn.role] == _SPEECH else "text"
            raise Rejection("missing_modality", f"message {number} has no {what}, which style {style} needs")
        found.append(Turn(turn.role, _joined(parts)))
    return found


def _parts(turn: Turn, wanted: str, hear: Callable[[Audio], Heard], chunk_words: int) -> list[Part]:
    found: list[Part] = []
    if wanted == _BOTH:
        read = [hear(part) if isinstance(part, Audio) else part for part in turn.parts]
        known = any(isinstance(part, Heard) and part.transcript for part in read)  # then text beside it says the same
        for one in read:
            found += _chunks(one, chunk_words) if isinstance(one, Heard) else [] if known else [one]
        return found if len(found) > 1 and isinstance(found[0], Text) else []
    for part in turn.parts:
        if not isinstance(part, Audio):
            found += [part] if wanted != _SPEECH else []
        elif wanted == _TEXT:
            transcript = part.transcript or hear(part).transcript
            found += [Text(transcript)] if transcript else []
        else:
            heard = hear(part)
            found.append(Speech(heard.ids, heard.transcript))
    return found


def _chunks(heard: Heard, chunk_words: int) -> list[Part]:
    """Text and its speech in turn; without times of words, all of the text and then all of the speech."""
    if not heard.words:
        text: list[Part] = [Text(heard.transcript)] if heard.transcript else []
        return [*text, Speech(heard.ids, heard.transcript)]
    found: list[Part] = []
    begin = 0
    for first in range(0, len(heard.words), chunk_words):
        chunk = heard.words[first : first + chunk_words]
        last = first + chunk_words >= len(heard.words)
        end = len(heard.ids) if last else chunk[-1][1]
        said = "".join(word for word, _ in chunk).strip()
        found += [Text(said), Speech(heard.ids[begin:end], said)]
        begin = end
    return found


def _joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Neighbours of one modality as one part, texts with a space between: two spans of speech never touch."""
    found: list[Part] = []
    for part in parts:
        last = found[-1] if found else None
        if isinstance(part, Speech) and isinstance(last, Speech):
            transcript = " ".join(filter(None, (last.transcript, part.transcript)))
            found[-1] = Speech(np.concatenate([last.ids, part.ids]), transcript)
        elif isinstance(part, Text) and isinstance(last, Text):
            glue = "" if last.text[-1:].isspace() or part.text[:1].isspace() else " "
            found[-1] = Text(last.text + glue + part.text)
        else:
            found.append(part)
    return tuple(found)
