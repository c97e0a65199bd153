"""What an import is: where tokens lie, what made them, and what the columns are called."""

from dataclasses import dataclass, field
from typing import Literal

from lst_prep.config import ReadingConfig, ShardConfig
from lst_prep.jobs import Jobs
from megatron_lst.documents.codec import Codec
from megatron_lst.errors import UserError
from megatron_lst.values import (
    AddressOrEmpty,
    Count,
    InputText,
    LocalText,
    NotNegative,
    Positive,
    Rate,
    Share,
    TokenizerText,
)
from megatron_lst.vocabulary import parse_rate


@dataclass
class CodecConfig:
    """What made the tokens."""

    name: str
    """For people: mimi, s3, hubert..."""
    rate: Rate
    """Frames a second, such as 12.5 or 80/3."""
    codebooks: tuple[Count, ...]
    """Entries of each codebook, in the order of a frame's codes."""
    fingerprint: str = ""
    """Changes when equal tokens mean something else, such as a hash of the codec's weights; empty: name, rate and
    codebooks."""
    encoder: str = ""
    """How tokens are made of audio, for people."""
    decoder: str = ""
    """How audio is made of tokens, for people."""

    def codec(self) -> Codec:
        return Codec(
            self.name,
            self.codebooks,
            parse_rate(self.rate, "codec.rate"),
            self.fingerprint,
            self.encoder or "not recorded",
            self.decoder,
        )


@dataclass
class Columns:
    """What the values of a record are called in its file. Dots lead into a value: `custom.codes`, `json.duration`."""

    id: str = ""
    """Unique in a source; empty: made of file and row, or the format's own."""
    tokens: str = ""
    """Integers [T, Q], see `layout`: a list, an array, numbers in a string, or the path of an .npy file."""
    text: str = ""
    """The transcript; empty, or no value: speech without one."""
    seconds: str = ""
    """Duration of the audio, compared with the frames."""
    speaker: str = ""
    """Who speaks."""
    license: str = ""
    """What may be done with it."""
    split: str = ""
    """train, or what is held out (heldout, validation, dev, test-clean...). Unknown names are refused."""
    recording: str = ""
    """Consecutive records of one recording become one document of segments."""
    start: str = ""
    """Seconds at which the record begins in its recording. Overlapping records are not joined."""
    segments: str = ""
    """Pieces with transcripts: a list of {text, start, end}, seconds from the record's begin."""
    words: str = ""
    """Words with times: a list of {word, start, end}, or of strings with `word_starts` and `word_ends`."""
    word_starts: str = ""
    """Seconds at which each word begins."""
    word_ends: str = ""
    """Seconds at which each word ends."""
    durations: str = ""
    """One codebook: frames of each token, where repetitions were merged."""
    codec: str = ""
    """Codec of each record; one that is not `codec.name` is refused."""


@dataclass
class ImportSource:
    """Files of one format."""

    name: str
    """Names the shard set; `source` of its documents."""
    format: Literal["parquet", "arrow", "webdataset", "lhotse", "nemo", "jsonl", "npy"]
    """`arrow`: of datasets' `save_to_disk`. `lhotse`: cuts (.jsonl, .jsonl.gz) or a Shar folder. `npy`: .npy or .npz,
    with .txt and .json of the same name."""
    path: InputText
    """A file, a folder or a glob."""
    columns: Columns = field(default_factory=Columns)
    """What the values are called."""
    layout: Literal["tq", "qt", "flat"] = "tq"
    """Axes of the tokens: `tq` [frames, codebooks], `qt` [codebooks, frames], `flat` one axis, frame after frame."""
    split: Literal["train", "heldout"] = "train"
    """Of records without their own."""
    license: str = ""
    """Of records without their own."""
    weight: Positive = 1.0
    """In OUT/train.yaml, of documents with a transcript."""
    untranscribed_weight: NotNegative = 0.0
    """Of speech without a transcript; 0: not trained on. Beyond the paper."""


@dataclass
class CheckConfig:
    """When tokens and durations disagree, and how much may be wrong."""

    frames: NotNegative = 2.0
    """Frames that a record may have more or fewer than its seconds say..."""
    share: Share = 0.01
    """...and this share of them."""
    max_rejected: Share = 0.05
    """Nothing is written where a larger share of a source's records is wrong (of fewer than 100: all)."""


@dataclass
class ImportJobs(Jobs):
    """How the work is spread."""

    item_megabytes: Positive = 64.0
    """Input of an item of work, and of a part of a set."""


@dataclass
class ImportConfig:
    """One import: tokens in, a shard set a source and OUT/train.yaml out."""

    out: LocalText
    """Output folder."""
    codec: CodecConfig
    """What made the tokens, of all sources alike."""
    sources: tuple[ImportSource, ...]
    """Where they lie."""
    publish: AddressOrEmpty = ""
    """As in `lst prep run`."""
    tokenizer: TokenizerText = "mistral-v1"
    """As in `lst prep run`."""
    heldout: tuple[InputText, ...] = ()
    """heldout.json of other preparations: documents with their sentences are rejected."""
    attributions: dict[str, str] = field(default_factory=dict)
    """As in `lst prep run`."""
    warn_lost: Share = 0.1
    """A source that loses a larger share gets a warning."""
    give_up: tuple[str, ...] = ()
    """Files that are gone for good: counted as `given_up`."""
    checks: CheckConfig = field(default_factory=CheckConfig)
    shards: ShardConfig = field(default_factory=ShardConfig)
    reading: ReadingConfig = field(default_factory=ReadingConfig)
    jobs: ImportJobs = field(default_factory=ImportJobs)

    def __post_init__(self) -> None:
        self.codec.codec()
        names = [source.name for source in self.sources]
        if not names:
            raise UserError("sources: there are none; name at least one source of tokens")
        if len(set(names)) < len(names):
            raise UserError(f"sources: names must differ, found {', '.join(names)}")
        for source in self.sources:
            if not source.name or not all(c.isalnum() or c in "-_." for c in source.name) or source.name[0] in ".-":
                raise UserError(
                    f"sources: the name {source.name!r} names a folder: use letters, digits, '-', '_' and '.'"
                )
            if source.name in ("work", "report") or source.name.startswith("heldout-"):
                raise UserError(f"sources: the name {source.name!r} is taken; choose another")
            if source.layout == "qt" and len(self.codec.codebooks) == 1 and source.columns.durations:
                raise UserError(
                    f"source {source.name!r}: columns.durations goes with tokens on one axis, not layout qt"
                )
            if source.columns.durations and len(self.codec.codebooks) > 1:
                raise UserError(f"source {source.name!r}: columns.durations needs a codec of one codebook")
            if bool(source.columns.word_starts) != bool(source.columns.word_ends):
                raise UserError(f"source {source.name!r}: columns.word_starts and columns.word_ends go together")
