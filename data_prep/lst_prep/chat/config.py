"""What a preparation of conversations is."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from lst_prep.config import AudioConfig, ReadingConfig, ShardConfig
from lst_prep.importing.config import CodecConfig, ImportJobs
from megatron_lst.errors import UserError
from megatron_lst.values import (
    AddressOrEmpty,
    Count,
    InputText,
    InputTextOrEmpty,
    LocalModelText,
    LocalText,
    Place,
    Positive,
    Share,
    TokenizerText,
)

Style = Literal["as_given", "speech_to_speech", "speech_to_text", "text_to_speech", "text_to_text", "text_then_speech"]


@dataclass
class ChatSource:
    """Conversations of one kind."""

    name: str
    """Names the shard set; `source` of its documents."""
    path: InputText
    """A JSONL file, a folder of them or a glob; audio paths are relative to each file."""
    split: Literal["train", "heldout"] = "train"
    """`heldout`: written as heldout-NAME, and kept out of training sources."""
    license: str = ""
    """What may be done with it."""
    weight: Positive = 1.0
    """Weight in OUT/train.yaml."""
    styles: tuple[Style, ...] = ("as_given",)
    """A conversation is written once in each style. `as_given`: as its parts are. `A_to_B`: the user in A, the
    assistant in B, speech as text by its transcript. `text_then_speech`: the user in speech, the assistant in chunks
    of text, each followed by its speech."""


@dataclass
class RowConfig:
    """The rows that conversations have to fit into: what the training configuration says."""

    units: Count = 4096
    """`data.units`."""
    tokens: Count | None = None
    """`data.tokens`; null: by `patch_size`."""
    patch_size: Count = 4
    """`patching.size`; 1 for a baseline."""


@dataclass
class ChatConfig:
    """One preparation of conversations: JSONL in, a shard set a source and OUT/train.yaml out."""

    out: LocalText
    """Output folder."""
    sources: tuple[ChatSource, ...]
    """Where conversations lie."""
    publish: AddressOrEmpty = ""
    """As in `lst prep run`."""
    tokenizer: TokenizerText = "mistral-v1"
    """As in `lst prep run`."""
    template: Annotated[str, Place(names=("tokenizer", "markers"), stores=())] = "tokenizer"
    """`tokenizer`: the template beside the tokenizer's file. `markers`: roles as plain text, EOS after each turn.
    Else a Jinja template's path."""
    end_of_turn: str = ""
    """The special token that ends an assistant's turn; empty: the first one behind it."""
    codebook: InputTextOrEmpty = ""
    """Makes units of audio named by path."""
    units_model: LocalModelText = ""
    """The codebook's HuBERT or Whisper; empty: the Whisper that comes with the repository."""
    device: str = "auto"
    """Where that runs."""
    codec: CodecConfig | None = None
    """What made the units, where neither a codebook nor a shard set says it."""
    spans: dict[str, LocalText] = field(default_factory=dict)
    """Name -> shard set, for audio that is a span of its documents."""
    chunk_words: Count = 12
    """`text_then_speech`: words of a chunk, if their times are known; else a part of audio is one."""
    row: RowConfig = field(default_factory=RowConfig)
    on_bad: Literal["stop", "drop"] = "stop"
    """Bad conversations: named, and nothing is written; or left out and counted."""
    heldout: tuple[InputText, ...] = ()
    """heldout.json of other preparations: conversations with their sentences are rejected."""
    attributions: dict[str, str] = field(default_factory=dict)
    """As in `lst prep run`."""
    warn_lost: Share = 0.1
    """A source that loses a larger share gets a warning."""
    give_up: tuple[str, ...] = ()
    """Files that are gone for good."""
    audio: AudioConfig = field(default_factory=AudioConfig)
    shards: ShardConfig = field(default_factory=ShardConfig)
    reading: ReadingConfig = field(default_factory=ReadingConfig)
    jobs: ImportJobs = field(default_factory=ImportJobs)

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        if not names:
            raise UserError("sources: there are none; name at least one source of conversations")
        if len(set(names)) < len(names):
            raise UserError(f"sources: names must differ, found {', '.join(names)}")
        for source in self.sources:
            if not source.name or not all(c.isalnum() or c in "-_." for c in source.name) or source.name[0] in ".-":
                raise UserError(
                    f"sources: the name {source.name!r} names a folder: use letters, digits, '-', '_' and '.'"
                )
            if source.name in ("work", "report") or source.name.startswith("heldout-"):
                raise UserError(f"sources: the name {source.name!r} is taken; choose another")
            if not source.styles or len(set(source.styles)) < len(source.styles):
                raise UserError(f"source {source.name!r}: styles: expected different styles, got {source.styles}")
        if self.codebook and self.codec is not None:
            raise UserError("codec: the codebook says what its units are; name one of the two")
