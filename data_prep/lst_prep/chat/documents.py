"""Stretches of a conversation -> Document, and whether a row holds it."""

from collections.abc import Sequence

import numpy as np

from lst_prep.chat.config import RowConfig
from lst_prep.rejection import Rejection
from megatron_lst.chat import Stretch
from megatron_lst.config.schema import Config, DataConfig, PatchingConfig
from megatron_lst.data.interleaving import chat_example
from megatron_lst.data.packing import Capacity, first_position, pack_example
from megatron_lst.documents.codec import Codec
from megatron_lst.documents.format import TokenizerInfo
from megatron_lst.documents.schema import PLAIN, SPEECH, TEXT, Document
from megatron_lst.patching.strategies import PatchingSchedule
from megatron_lst.vocabulary import Vocabulary


def document_of(name: str, source: str, license: str, stretches: Sequence[Stretch], codec: Codec | None) -> Document:
    """The document of a conversation; speech stands in its text by its transcript."""
    pieces, frames = [np.zeros(0, np.int32)], list[np.ndarray]()
    spans, learnt, chars = list[tuple[int, int, int]](), list[bool](), list[tuple[int, int]]()
    text, ends = "", {"text": 0, "speech": 0}
    for stretch in stretches:
        heard = stretch.modality == "speech"
        kind = SPEECH if heard else TEXT if spans and spans[-1][0] == SPEECH else PLAIN
        begin = ends[stretch.modality]
        ends[stretch.modality] = begin + len(stretch.ids)
        spans.append((kind, begin, ends[stretch.modality]))
        learnt.append(stretch.learnt)
        chars.append((len(text), len(text) + len(stretch.text)))
        text += stretch.text
        (frames if heard else pieces).append(stretch.ids)
    speech = np.concatenate(frames) if frames and codec is not None else np.zeros(0, np.int16)
    return Document(
        id=name,
        source=source,
        license=license,
        text=text,
        speech_ids=speech if codec is None else speech.astype(codec.dtype),
        token_ids=np.concatenate(pieces).astype(np.int32),
        turn_spans=np.array(spans, np.int32).reshape(-1, 3),
        turn_learnt=np.array(learnt, np.int8),
        turn_chars=np.array(chars, np.int32).reshape(-1, 2),
    )


class Fitting:
    """Whether the rows of a training configuration hold a conversation, as packing finds it."""

    def __init__(self, row: RowConfig, tokenizer: TokenizerInfo, codec: Codec | None) -> None:
        sizes = {"speech_size": codec.size, "codebooks": codec.codebooks} if codec else {}
        self._vocabulary = Vocabulary(tokenizer.size, bos=tokenizer.bos, eos=tokenizer.eos, **sizes)  # type: ignore[arg-type]
        patching = PatchingConfig(strategy="static" if row.patch_size > 1 else "none", size=row.patch_size)
        config = Config(data=DataConfig(units=row.units, tokens=row.tokens), patching=patching)
        self._patcher = PatchingSchedule(patching, 0, 0).unaligned
        self._capacity = Capacity(row.units, config.token_cap - row.units)
        self._row = f"{row.units:,} units and {config.token_cap:,} tokens"

    def check(self, document: Document) -> None:
        """Raises Rejection: longer_than_a_row."""
        example = chat_example(document)
        if (
            pack_example(example, first_position(example), self._patcher, self._capacity, self._vocabulary, True)
            is None
        ):
            size = f"{len(document.token_ids):,} pieces and {len(document.speech_ids):,} frames"
            raise Rejection("longer_than_a_row", f"{size}; a row has {self._row}")
