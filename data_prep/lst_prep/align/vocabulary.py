"""The characters of a CTC checkpoint: its blank, its word delimiter, its case, and words in its letters."""

import json
from typing import Any

from lst_prep.languages.romanising import romanised
from lst_prep.rejection import Rejection
from megatron_lst.errors import UserError


class Vocabulary:
    """What a checkpoint's vocab.json and tokenizer_config.json say.

    The blank is `<blank>` where there is one, else the padding token. Letters are upper case where the vocabulary has
    no lower ones.

    Attributes:
        blank: its id.
        separator: id of the word delimiter; None: words follow each other without one.

    Raises:
        UserError: there is no vocab.json of one language.
    """

    def __init__(self, model: str, padding: int | None, romanise: bool) -> None:
        try:
            ids = _file(model, "vocab.json", required=True)
        except (OSError, ValueError) as error:
            raise UserError(f"align.model {model!r}: has no vocab.json that can be read ({error})") from None
        if not all(isinstance(i, int) for i in ids.values()):
            raise UserError(
                f"align.model {model!r}: its vocab.json holds a vocabulary for each of several languages: save the "
                f"checkpoint with the adapter and the vocabulary of one"
            )
        stated = _file(model, "tokenizer_config.json")
        pad = stated.get("pad_token")
        pad = pad.get("content") if isinstance(pad, dict) else pad
        blank = ids.get("<blank>", padding if padding is not None else ids.get(str(pad), 0))
        self.blank = int(blank)
        self.separator: int | None = ids.get(stated.get("word_delimiter_token") or "|")
        self._ids: dict[str, int] = ids
        letters = [token for token in ids if len(token) == 1]
        self._upper = any(map(str.isupper, letters)) and not any(map(str.islower, letters))
        self._romanise = romanise

    def ids_of(self, word: str, language: str) -> list[int]:
        """Ids of a spoken word. Raises Rejection language: it has a letter that the checkpoint has not."""
        if self._romanise:
            word = romanised(word, language)
        found = []
        for character in word.upper() if self._upper else word:
            if character in self._ids:
                found.append(self._ids[character])
            elif character.isalnum():
                hint = "" if self._romanise or character.isascii() else "; a model of romanised text: align.romanise"
                raise Rejection("language", f"the acoustic model has no {character!r}{hint}")
            elif character != "'" and not self._romanise:
                raise Rejection("language", f"the acoustic model has no {character!r}")
        if not found:
            raise Rejection("language", f"the acoustic model has no letter of {word!r}")
        return found


def _file(model: str, name: str, required: bool = False) -> dict[str, Any]:
    """A JSON object of a folder or of a model on the hub; {} where there is none."""
    from transformers.utils import cached_file

    path = cached_file(model, name, _raise_exceptions_for_missing_entries=required)
    if path is None:
        return {}
    with open(str(path), encoding="utf-8") as file:
        value = json.load(file)
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    return value
