"""What a preparation of conversations is."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from lst_prep.config import AudioConfig, ReadingConfig, ShardConfig
from lst_prep.importing.config import CodecConfig, ImportJobs
from megatron_lst.errors import UserError
from megatron_lst.values import Count, ModelText, PathText, PathTextOrEmpty, Place, Positive, Share, TokenizerText

Style = Literal["as_given", "speech_to_speech", "speech_to_text", "text_to_speech", "text_to_text", "text_then_speech"]


@dataclass
class ChatSource:
    """Conversations of one kind."""

    name: str
    """Names the shard set, and goes into every document's `source`."""
    path: PathText
    """A JSONL file, a folder of them or a glob; relative audio paths are relative to each file."""
    split: Literal["train", "heldout"] = "train"
    """`heldout`: written as heldout-NAME; what is said there is kept out of the training sources."""
    license: str = ""
    """What may be done with it."""
    weight: Positive = 1.0
    """Weight in OUT/train.yaml."""
    styles: tuple[Style, ...] = ("as_given",)
    """In which modality each turn stands; a conversation is written once in each style. `as_given`: as its parts are.
    `A_to_B`: the user's turns in A, the assistant's in B, speech as text by its transcript. `text_then_speech`: the
    user's in speech, the assistant's in chunks of text, each followed by its speech."""


@dataclass
class RowConfig:
    """The rows that conversations have to fit into: what the training configuration says."""

    units: Count = 4096
    """`data.units`."""
    tokens: Count | None = None
    """`data.tokens`; null: as there, by `patch_size`."""
    patch_size: Count = 4
    """`patching.size`; 1 for a baseline."""


@dataclass
class ChatConfig:
    """One preparation of conversations: JSONL in, a shard set a source and OUT/train.yaml out."""

    out: PathText
    """Output folder."""
    sources: tuple[ChatSource, ...]
    """Where conversations lie."""
    tokenizer: TokenizerText = "mistral-v1"
    """As in a preparation."""
    template: Annotated[str, Place(names=("tokenizer", "markers"))] = "tokenizer"
    """`tokenizer`: the chat template beside the tokenizer's file. `markers`: roles as plain text, EOS after each turn.
    Else the path of a template in Jinja."""
    end_of_turn: str = ""
    """The special token that ends an assistant's turn; empty: the first one behind what it says."""
    codebook: PathTextOrEmpty = ""
    """Makes units of audio that is named by its path."""
    units_model: ModelText = ""
    """Folder of the codebook's HuBERT or Whisper; empty: the Whisper encoder that comes with the repository."""
    device: str = "auto"
    """Where that runs."""
    codec: CodecConfig | None = None
    """What made the units that conversations hold, where neither a codebook nor a shard set says it."""
    spans: dict[str, PathText] = field(default_factory=dict)
    """Name -> shard set, for audio that is a span of its documents."""
    chunk_words: Count = 12
    """`text_then_speech`: words of a chunk, where their times are known; else a part of audio is a chunk."""
    row: RowConfig = field(default_factory=RowConfig)
    on_bad: Literal["stop", "drop"] = "stop"
    """A conversation that cannot be used: nothing is written and each is named, or it is left out and counted."""
    heldout: tuple[PathText, ...] = ()
    """Held-out lists (heldout.json of other preparations): conversations with their sentences are rejected."""
    attributions: dict[str, str] = field(default_factory=dict)
    """Source -> whom its licence asks to name."""
    warn_lost: Share = 0.1
    """A source that loses a larger share of its conversations is named in a warning."""
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
                    f"sources: the name {source.name!r} is to name a folder: letters, digits, '-', '_' and '.'"
                )
            if source.name in ("work", "report") or source.name.startswith("heldout-"):
                raise UserError(f"sources: the name {source.name!r} is taken; choose another")
            if not source.styles or len(set(source.styles)) < len(source.styles):
                raise UserError(f"source {source.name!r}: styles: expected different styles, got {source.styles}")
        if self.codebook and self.codec is not None:
            raise UserError("codec: the codebook says what its units are; name one of the two")
