"""Text pieces, word by word, and the tokenizer's identity.

The pieces of a document are the concatenation of its words' pieces. With a SentencePiece model that marks word
beginnings (Llama's, Mistral's) that is exactly the tokenisation of the text with every run of white space read as one
space, since no piece crosses a space; `tests/data_prep/test_tokenizer.py` holds it to that. Text without speech is
tokenised as it stands, line breaks included.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Protocol

import numpy as np

from lst_prep.rejection import Rejection
from megatron_lst.chat import MARKERS, ChatFormat
from megatron_lst.config.paths import told
from megatron_lst.documents.format import TokenizerInfo
from megatron_lst.documents.words import normalise_text
from megatron_lst.errors import UserError
from megatron_lst.files import read_json


class Tokenizer(Protocol):
    """What data preparation asks of a tokenizer."""

    info: TokenizerInfo
    path: str

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as the beginning of a document, without BOS and EOS."""

    def encode_word(self, word: str, first: bool) -> list[int]:
        """Ids of one white-space-free word as it stands after a space (or at the beginning: `first`)."""

    def place_word(self, word: str, first: bool) -> tuple[list[int], np.ndarray]:
        """The same ids, and int64 [P, 2]: the characters of the word that each of them stands for. Pieces that are
        bytes of one character share it."""

    def decode(self, ids: list[int]) -> str:
        """Text of the ids."""

    @property
    def special_tokens(self) -> dict[str, int]:
        """Tokens that are not text, by name."""

    def encode_marked(self, text: str) -> list[int]:
        """Ids of `text` in which names of special tokens are these tokens; for chat templates."""


def _fingerprint(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _plain(info: TokenizerInfo, ids: Sequence[int], text: str) -> list[int]:
    """The ids, which must not say that a document begins or ends. Raises Rejection."""
    if info.bos in ids or info.eos in ids:
        raise Rejection("tokenizer", f"the tokenizer makes its BOS or EOS of {text[:100]!r}")
    return list(ids)


_BOS = ("<s>", "<|begin_of_text|>", "<|endoftext|>", "[CLS]", "<bos>")
_EOS = ("</s>", "<|end_of_text|>", "<|endoftext|>", "[SEP]", "<eos>")


def _declared(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of BOS and of EOS that a tokenizer_config.json beside a tokenizer.json gives."""
    beside = path.with_name("tokenizer_config.json")
    value = read_json(beside) if beside.exists() else None
    names = []
    for key in ("bos_token", "eos_token"):
        token = (value or {}).get(key)
        token = token.get("content") if isinstance(token, dict) else token
        names.append((token,) if isinstance(token, str) and token else ())
    return names[0], names[1]


def _special(content: bytes, names: Iterable[str]) -> bytes:
    """A tokenizer.json whose BOS and EOS are marked as special, so that text that quotes them stays text."""
    value, names = json.loads(content), set(names)
    for token in value.get("added_tokens") or []:
        token["special"] = token["special"] or token["content"] in names
    return json.dumps(value, ensure_ascii=False).encode()


class SentencePieceTokenizer:
    """A SentencePiece .model file."""

    def __init__(self, path: Path, name: str) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            content = path.read_bytes()
            self._model = SentencePieceProcessor(model_proto=content)
        except (OSError, RuntimeError) as error:
            raise UserError(f"tokenizer {path}: not a readable SentencePiece model ({error})") from error
        self.path = str(path)
        bos, eos = self._model.bos_id(), self._model.eos_id()
        if eos < 0:
            raise UserError(f"tokenizer {path}: has no EOS piece; documents need one")
        bos = eos if bos < 0 else bos
        self.info = TokenizerInfo(_fingerprint(content), self._model.vocab_size(), bos, eos, name)
        self._encode_word = lru_cache(maxsize=1 << 16)(self._model.encode)

    def encode(self, text: str) -> list[int]:
        return _plain(self.info, self._model.encode(text), text)

    def encode_word(self, word: str, first: bool) -> list[int]:
        return _plain(self.info, self._encode_word(word), word)

    def place_word(self, word: str, first: bool) -> tuple[list[int], np.ndarray]:
        ids, model = self.encode_word(word, first), self._model
        held = [
            bytes([int(piece[3:5], 16)]) if model.is_byte(i) else piece.replace("\u2581", " ").encode()
            for i, piece in zip(ids, map(model.id_to_piece, ids), strict=True)
        ]
        text = b"".join(held).decode("utf-8", "replace")
        marked = len(text) - len(text.lstrip())
        if len(text) - marked != len(word):  # its normaliser has changed the number of characters
            return ids, np.tile([0, len(word)], (len(ids), 1))
        starts = np.cumsum([0, *(len(character.encode()) for character in text)])  # of each character, in bytes
        edges = np.cumsum([0, *map(len, held)])  # of each piece
        begins = np.searchsorted(starts, edges[:-1], side="right") - 1
        ends = np.searchsorted(starts, edges[1:], side="left")
        return ids, np.clip(np.stack([begins, ends], 1) - marked, 0, len(word))

    def decode(self, ids: list[int]) -> str:
        return str(self._model.decode(ids))

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        model = self._model
        return {model.id_to_piece(i): i for i in range(self.info.size) if model.is_control(i)}

    def encode_marked(self, text: str) -> list[int]:
        """SentencePiece reads control pieces as text, so the text is divided at them."""
        special, ids = self.special_tokens, list[int]()
        for run in re.split(f"({'|'.join(map(re.escape, special))})", text):
            ids += [special[run]] if run in special else self._model.encode(run)
        return ids


class HuggingFaceTokenizer:
    """A `tokenizer.json` of the `tokenizers` library (Llama 3, GPT-2 and most others).

    Habits that were saved with it do not decide: nothing is truncated or padded, and special tokens that a text quotes
    (`<|endoftext|>`) are encoded as text.
    """

    def __init__(self, path: Path, name: str) -> None:
        from tokenizers import Tokenizer as FastTokenizer

        try:
            content = path.read_bytes()
            declared = _declared(path)
            begins, ends = (*_BOS, *declared[0]), (*_EOS, *declared[1])
            self._model = FastTokenizer.from_buffer(_special(content, (*begins, *ends)))
        except (OSError, ValueError) as error:
            raise UserError(f"tokenizer {path}: not a readable tokenizer.json ({error})") from error
        except Exception as error:  # the Rust library raises plain Exception for a file that it cannot parse
            raise UserError(f"tokenizer {path}: not a readable tokenizer.json ({error})") from error
        self._model.no_truncation()
        self._model.no_padding()
        self._model.encode_special_tokens = True
        self.path = str(path)
        eos = self._first(ends)
        if eos is None:
            raise UserError(
                f"tokenizer {self.path}: none of {', '.join(ends)} is in it; documents need an EOS: name it as "
                f"eos_token in a tokenizer_config.json beside it"
            )
        bos = self._first(begins)
        bos = eos if bos is None else bos  # Qwen and others have none: documents begin with what ends the one before
        size = max(self._model.get_vocab().values()) + 1  # ids may have holes
        self.info = TokenizerInfo(_fingerprint(content), size, bos, eos, name)

    def _first(self, names: Iterable[str]) -> int | None:
        """Id of the first of these tokens that there is. Of several EOS, that of pretraining comes before a chat's."""
        return next((int(i) for name in names if (i := self._model.token_to_id(name)) is not None), None)

    def encode(self, text: str) -> list[int]:
        return _plain(self.info, self._model.encode(text, add_special_tokens=False).ids, text)

    def encode_word(self, word: str, first: bool) -> list[int]:
        """Byte-level tokenizers want the space spelled out; those that mark words themselves add it at `first` too."""
        whole = self.encode(word)
        if first:
            return whole
        spaced = self.encode(" " + word)
        marked = self.encode("a " + word)
        head = self.encode("a")
        return marked[len(head) :] if marked[: len(head)] == head else spaced

    def place_word(self, word: str, first: bool) -> tuple[list[int], np.ndarray]:
        ids = self.encode_word(word, first)
        for before in ("",) if first else ("a ", " "):
            found = self._model.encode(before + word, add_special_tokens=False)
            if found.ids[len(found.ids) - len(ids) :] == ids:
                places = np.array(found.offsets[len(found.ids) - len(ids) :], np.int64).reshape(-1, 2)
                return ids, np.clip(places - len(before), 0, len(word))
        raise AssertionError(f"the tokenizer encodes {word!r} otherwise than before")

    def decode(self, ids: list[int]) -> str:
        return str(self._model.decode(ids))

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        return {token.content: i for i, token in self._model.get_added_tokens_decoder().items() if token.special}

    def encode_marked(self, text: str) -> list[int]:
        self._model.encode_special_tokens = False
        try:
            return list(self._model.encode(text, add_special_tokens=False).ids)
        finally:
            self._model.encode_special_tokens = True


def chat_format(tokenizer: Tokenizer, template: str = "tokenizer", end_of_turn: str = "") -> ChatFormat:
    """How conversations are written for a tokenizer.

    Args:
        template: `tokenizer`: the chat template beside the tokenizer's file (chat_template.jinja, or in its
            tokenizer_config.json); `markers`: roles as text, EOS after each turn; else the path of a template.
        end_of_turn: a special token; empty: found, see `ChatTemplate`.

    Raises:
        UserError: there is no such template.
    """
    names = {i: name for name, i in tokenizer.special_tokens.items()}
    folder = Path(tokenizer.path).parent
    config = read_json(folder / "tokenizer_config.json") or {}
    if template == "markers":
        text = MARKERS
    elif template != "tokenizer" or (folder / "chat_template.jinja").is_file():
        path = folder / "chat_template.jinja" if template == "tokenizer" else Path(template)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"chat template {path}: cannot be read ({error})") from None
    else:
        text = config.get("chat_template") or ""
        if isinstance(text, list):  # several, by name
            text = next((one.get("template") for one in text if one.get("name") == "default"), "")
        if not text:
            raise UserError(
                f"tokenizer {tokenizer.path}: no chat template beside it; name the file of one as `template`, or "
                f"`markers` for roles as plain text"
            )
    eos = config.get("eos_token") or names.get(tokenizer.info.eos, "")
    eos = eos.get("content", "") if isinstance(eos, dict) else eos
    return ChatFormat(text, end_of_turn, names.get(tokenizer.info.bos, ""), eos)


@lru_cache(maxsize=4)
def load_tokenizer(spec: str) -> Tokenizer:
    """`mistral-v1`, a SentencePiece .model, a tokenizer.json or a folder that holds one of them.

    Raises:
        UserError: nothing usable there.
    """
    if spec == "mistral-v1":
        try:
            bundled = files("mistral_common") / "data" / "tokenizer.model.v1"
        except ModuleNotFoundError as error:
            raise UserError("tokenizer mistral-v1: pip install mistral-common, or name a .model file") from error
        return SentencePieceTokenizer(Path(str(bundled)), "mistral-v1")
    path = Path(spec)
    if path.is_dir():
        for name in ("tokenizer.model", "tokenizer.json"):
            if (path / name).exists():
                path = path / name
                break
        else:
            raise UserError(f"tokenizer {spec}: the folder holds neither tokenizer.model nor tokenizer.json")
    if not path.exists():
        raise UserError(
            f"tokenizer {told(spec)}: no such file; give a tokenizer.json, a SentencePiece .model, a folder with one, "
            f"or `mistral-v1`"
        )
    return HuggingFaceTokenizer(path, spec) if path.suffix == ".json" else SentencePieceTokenizer(path, spec)


def encode_words(tokenizer: Tokenizer, words: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of consecutive words.

    Args:
        words: as they stand in the text, punctuation included; white space inside a word counts as one space.

    Returns:
        token_ids int32 [P] and word_tokens int32 [W, 2], which cover [0, P) in order.

    Raises:
        Rejection: `tokenizer`, when a word has no piece.
    """
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for index, word in enumerate(words):
        begin = len(ids)
        for part_index, part in enumerate(word.split()):
            ids.extend(tokenizer.encode_word(part, index == 0 and part_index == 0))
        if len(ids) == begin:
            raise Rejection("tokenizer", repr(word))
        spans.append((begin, len(ids)))
    return np.array(ids, np.int32), np.array(spans, np.int32).reshape(-1, 2)


_COMES_BACK = 0.98
_LOOKED_AT = 20_000


def check_round_trip(tokenizer: Tokenizer, texts: Iterable[tuple[str, str]]) -> None:
    """Encode and decode the beginning of each source's text, as a whole and word by word, and compare.

    Case, white space and punctuation may differ (models of SentencePiece normalise); letters and digits may not, but
    for two in a hundred.

    Args:
        texts: (source, text).

    Raises:
        UserError: names the source, and what comes back of its text.
    """
    seen: Counter[str] = Counter()
    common: Counter[tuple[str, bool]] = Counter()
    every: Counter[tuple[str, bool]] = Counter()
    worst: dict[str, tuple[float, str, str]] = {}
    for source, text in texts:
        if seen[source] >= _LOOKED_AT:
            continue
        text = text[: _LOOKED_AT - seen[source]]
        seen[source] += len(text)
        try:
            whole = tokenizer.decode(tokenizer.encode(text))
            by_word = tokenizer.decode(encode_words(tokenizer, text.split())[0].tolist())
        except Rejection:
            continue  # counted where documents are made
        for words, found in ((False, whole), (True, by_word)):
            alike, total = _alike(text, found)
            common[source, words] += alike
            every[source, words] += total
            worst[source] = min(worst.get(source, (2.0, "", "")), (alike / max(total, 1), text, found))
    for (source, words), total in every.items():
        share = common[source, words] / max(total, 1)
        if total and share < _COMES_BACK:
            _, text, found = worst[source]
            raise UserError(
                f"tokenizer {tokenizer.path}: only {share:.0%} of the text of source {source!r} comes back when it is "
                f"encoded and decoded: {_beginning(text)} comes back as {_beginning(found)}; choose a tokenizer that "
                f"has pieces for this text"
            )


def _beginning(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _alike(text: str, found: str) -> tuple[int, int]:
    """Runs of three letters or digits that two texts have in common, and those of the text that has more."""
    a, b = (Counter(_threes(normalise_text(one).replace(" ", ""))) for one in (text, found))
    return (a & b).total(), max(a.total(), b.total())


def _threes(letters: str) -> Iterable[str]:
    return (letters[i : i + 3] for i in range(max(len(letters) - 2, 1 if letters else 0)))


def plain_encoder(tokenizer: Tokenizer) -> Callable[[str, bool], list[int]]:
    """encode(text, continuing): a text that goes on begins with a new word."""

    def encode(text: str, continuing: bool) -> list[int]:
        if not continuing:
            return tokenizer.encode(text)
        return [piece for word in text.split() for piece in tokenizer.encode_word(word, False)]

    return encode
