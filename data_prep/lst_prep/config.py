"""What a data preparation is: every choice, its default and its meaning. Built from YAML by the strict loader."""

import codecs
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Annotated

from lst_prep.jobs import Jobs
from lst_prep.languages.tags import ENGLISH, base_language, language_tag
from megatron_lst.errors import UserError
from megatron_lst.values import (
    AddressOrEmpty,
    Count,
    CountOr0,
    InputText,
    InputTextOrEmpty,
    LocalModelText,
    LocalText,
    NotNegative,
    Positive,
    Range,
    Rate,
    Share,
    TokenizerText,
)
from megatron_lst.vocabulary import parse_rate, rate_text

SAMPLE_RATE = 16000
"""Samples a second of all audio once it is read."""

MAX_UNITS = 32768
"""Entries that a codebook may have: shards hold units as int16."""


@dataclass
class AudioConfig:
    """What audio is accepted."""

    root: InputTextOrEmpty = ""
    """Audio elsewhere is rejected as `outside_corpus`: for manifests that others made. Empty: relative paths stay
    under their manifest's folder, absolute ones are taken."""
    min_seconds: NotNegative = 0.3
    """Shorter pieces are rejected as `too_short`."""
    max_seconds: Positive = 7200.0
    """Longer ones are rejected as `too_long`, see `cutting`; about 0.5 MB of memory a second."""
    min_rate: CountOr0 = 16000
    """Files below this rate are rejected as `low_rate_audio`; 8000 takes telephone speech."""
    min_peak: Share = 1e-3
    """Pieces that stay below this amplitude are rejected as `silent_audio`."""
    max_clipped: Share = 0.05
    """A larger share of samples at full scale is rejected as `clipped_audio`."""


@dataclass
class CuttingConfig:
    """How long recordings become pieces, which are joined again into documents (SPEC 7)."""

    by: str = "none"
    """`none`: not cut. `vad`: where silero-vad hears no speech, which is left out. `energy`: in the quietest places.
    With either, recordings with a transcript are cut in the pauses between aligned words."""
    over_seconds: Positive = 600.0
    """Recordings up to this length stay whole."""
    shortest_seconds: Positive = 10.0
    """Pieces are no shorter, unless the speech is."""
    longest_seconds: Positive = 30.0
    """Pieces are no longer."""


@dataclass
class UnitsConfig:
    """How audio becomes units."""

    extractor: str = "mfcc"
    """`mfcc` (no weights), `whisper` (the encoder of a transformers WhisperModel) or `hubert` (transformers
    HubertModel)."""
    model: LocalModelText = ""
    """Local path or hub name: slprl/mhubert-base-25hz, openai/whisper-small. whisper, empty: tiny.en's encoder, which
    comes with the repository."""
    layer: CountOr0 | None = None
    """The hidden layer that is clustered (0 enters the first); null: hubert 11, whisper the last."""
    padding: CountOr0 = 40
    """hubert: zero samples on each side; 40 gives the published 25 Hz model its frame count."""
    codebook: InputTextOrEmpty = ""
    """A codebook (.safetensors, .npz) or a published k-means pickle; empty: fitted on the corpus."""
    codebook_size: Annotated[int, Range(1, MAX_UNITS)] = 501
    """Clusters when fitting."""
    fit_frames: Count = 1_000_000
    """Frames sampled for fitting."""
    rate: Rate = 25.0
    """Frames a second. mfcc 100, whisper 50, divided by an integer; hubert by the model's strides."""
    device: str = "auto"
    """hubert, whisper: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`..."""
    precision: str = "auto"
    """hubert, whisper: `auto` (bf16 on CUDA, else fp32), `fp32`, `bf16`."""
    batch_seconds: Positive = 320.0
    """hubert, whisper: seconds of audio in a batch of equal lengths."""
    piece_seconds: Positive = 30.0
    """hubert: longer audio is cut in its quietest places. whisper: it is read in overlapping windows of this, 20 to
    30."""

    @property
    def hertz(self) -> Fraction:
        """Frames a second."""
        return parse_rate(self.rate, "units.rate")

    @property
    def frame_samples(self) -> int:
        """Samples of a frame at 16 kHz. Raises UserError: they are no whole number."""
        samples = SAMPLE_RATE / self.hertz
        if samples.denominator > 1:
            raise UserError(
                f"units.rate: a frame at {rate_text(self.hertz)} Hz is no whole number of samples at {SAMPLE_RATE} Hz"
            )
        return int(samples)


ALIGNERS = ("pocketsphinx", "ctc", "whisper", "import", "none")


@dataclass
class LanguageAligner:
    """How words of one language get their times, where that is not how those of the others do."""

    language: str
    """A tag, such as `fr`."""
    aligner: str = "ctc"
    """As align.aligner."""
    model: LocalModelText = ""
    """As align.model."""
    path: InputTextOrEmpty = ""
    """As align.path."""
    format: str = "suffix"
    """As align.format."""
    romanise: bool = False
    """As align.romanise."""


@dataclass
class AlignConfig:
    """How words get their times."""

    aligner: str = "pocketsphinx"
    """`pocketsphinx` (English, CPU), `ctc` (transformers Wav2Vec2ForCTC), `whisper` (a whole transformers Whisper of
    a hundred languages), `import`: there are alignments already, or `none`: words get no times, and documents
    alternate between text and speech by piece (`data.segments`), with static patches. The edges of words are off by
    9 ms in the median and 31 ms at 90 % with pocketsphinx, by 55 and 149 with Whisper base (docs/languages.md)."""
    model: LocalModelText = ""
    """ctc, whisper: local path or hub name, such as facebook/wav2vec2-base-960h."""
    romanise: bool = False
    """ctc: the model was trained on text in Latin letters, as MMS: words are romanised by uroman."""
    languages: tuple[LanguageAligner, ...] = ()
    """Languages with another aligner."""
    path: InputTextOrEmpty = ""
    """import: where the alignment of a piece lies, with {id}, {document} or {audio} (the name of its audio file without
    the suffix) in it, such as alignments/{id}.TextGrid; or one .ctm of all pieces."""
    format: str = "suffix"
    """import: `suffix` (.TextGrid, .ctm, .json, .txt), or `textgrid`, `ctm`, `json` (Whisper, WhisperX, or a list of
    words), `labels` (Audacity)."""
    tier: str = ""
    """import, textgrid: name of the tier of words; empty: `words`, or the only one of intervals."""
    times: str = "piece"
    """import: times are seconds in the `piece`, or in its audio `file`, whose pieces have `start` and `end`."""
    max_differ: Share = 0.1
    """import: a piece is rejected as `words_differ` when more than this share of the transcript's letters would have to
    be changed, put in or left out to give the words of the alignment."""
    segmenter: str = "icu"
    """Words of scripts without spaces: `icu`, `characters`, or a function of yours, `package.module:function`, which
    takes a text and gives its words in order, such as jieba:lcut."""
    pronunciations: tuple[InputText, ...] = ()
    """pocketsphinx: tables of words that it lacks, lines `word<TAB>PHONES`."""
    flite: bool = True
    """pocketsphinx: ask flite, if installed, for words that no table has."""
    min_score: Annotated[float, Range(-1e9)] = -1e9
    """Pieces with a lower mean word score are rejected as `low_score`."""
    numbers: str = "spell"
    """Digits in transcripts: `spell` them in the language of the piece, or `reject`. import and whisper leave them."""
    max_words_per_second: Positive = 7.0
    """Pieces with more are rejected as `words_too_fast`."""
    piece_seconds: Positive = 12.0
    """pocketsphinx: windows of longer audio, each cut back to its last pause. ctc: what the acoustic model sees at
    once."""
    batch_seconds: Positive = 320.0
    """ctc, whisper: as in units."""
    device: str = "auto"
    """ctc, whisper: as in units."""
    precision: str = "auto"
    """ctc, whisper: as in units."""

    @property
    def takes_text(self) -> bool:
        """Whether the aligner takes words as they are written, not as they are said."""
        return self.aligner in ("import", "whisper", "none")

    def owner(self, language: str) -> str:
        """The `language` of the entry in `languages` that holds for a tag; empty: none does."""
        base = base_language(language_tag(language) or language)
        return next((o.language for o in self.languages if base_language(language_tag(o.language) or "") == base), "")

    def of(self, language: str) -> "AlignConfig":
        """What holds for a language."""
        owner = self.owner(language)
        for other in self.languages:
            if owner and other.language == owner:
                own = {key: value for key, value in vars(other).items() if key != "language"}
                return replace(self, **own, languages=())
        return self

    def check(self) -> None:
        """Raises UserError: keys that contradict each other."""
        if self.aligner not in ALIGNERS:
            raise UserError(f"align.aligner: {self.aligner!r} is not one of {', '.join(ALIGNERS)}")
        if self.aligner in ("ctc", "whisper") and not self.model:
            raise UserError(f"align.model: the {self.aligner} aligner needs a local path or a hub name")
        if self.aligner == "import" and not self.path:
            raise UserError("align.path: import needs where the alignments lie, such as alignments/{id}.TextGrid")
        if self.numbers not in ("spell", "reject"):
            raise UserError(f"align.numbers: {self.numbers!r} is not one of spell, reject")
        if self.times not in ("piece", "file"):
            raise UserError(f"align.times: {self.times!r} is not one of piece, file")
        if self.format not in ("suffix", "textgrid", "ctm", "json", "labels"):
            raise UserError(f"align.format: {self.format!r} is not one of suffix, textgrid, ctm, json, labels")

    def require_language(self, language: str, whose: str) -> None:
        """Raises UserError where the aligner does not know a language."""
        if self.aligner == "pocketsphinx" and base_language(language) != ENGLISH:
            raise UserError(
                f"{whose} is {language!r}, and the pocketsphinx aligner knows English alone: choose align.aligner ctc, "
                f"whisper or import, or give the language one of its own in align.languages"
            )


@dataclass
class TextSource:
    """One source of plain text."""

    name: str
    """`source` of its documents."""
    path: InputText
    """A file, a folder or a pattern of .txt, .jsonl (.ndjson, .json) or .parquet, all but the last also packed."""
    license: str = ""
    """`license` of its documents."""
    text_key: str = "text"
    """jsonl, parquet: the field of the text."""
    split: str = "train"
    """`train` or `heldout`, unless a record's `split` says otherwise."""
    splits: dict[str, str] = field(default_factory=dict)
    """What other names in `split` mean: `train` or `heldout`."""
    encoding: str = "utf-8"
    """Of .txt and JSON; a UTF-16 byte order mark is followed. Other bytes are rejected."""


@dataclass
class TextConfig:
    """How text becomes documents."""

    max_pieces: Count = 2000
    """Longer documents are cut at sentence or paragraph ends."""
    deduplicate: bool = True
    """Drop documents whose normalised text was there before."""


@dataclass
class ShardConfig:
    """How shards are written."""

    size_limit: Annotated[int, Range(1, 2**40)] = 1 << 26
    """Bytes of one shard before compression."""
    compression: str = "zstd:3"
    """Any that MDS knows; empty: none."""
    part_pieces: Count = 4096
    """Manifest lines in one part of a set."""
    max_document_seconds: Positive = 600.0
    """Consecutive pieces of a recording are joined up to this."""


@dataclass
class ReadingConfig:
    """What is done about inputs that cannot be read now. Changes nothing in the results."""

    attempts: Count = 4
    """Tries of an input that cannot be read now (gone, EIO, ESTALE, EACCES, a time-out); then its item fails, for the
    next run."""
    pause_seconds: NotNegative = 2.0
    """Pause before the second try; it doubles with each."""
    max_unreadable: Share = 0.05
    """A stage stops when a larger share of its files, at least 100, cannot be read."""


@dataclass
class JobConfig(Jobs):
    """How the work is spread."""

    item_pieces: Count = 16
    """Manifest lines in an item of work."""
    item_bytes: Count = 1 << 25
    """Small text files of a source share an item and its shards up to this size."""
    decode_threads: Annotated[int, Range(0, 256)] | None = None
    """Threads of a worker that decode audio while its model computes; they begin with its next item, too. 0: none.
    null: where the model is on a GPU, the cores that its machine has for each GPU, 8 at most; else 0."""


@dataclass
class PrepConfig:
    """One data preparation: manifest and text in, shard sets out."""

    manifests: tuple[InputText, ...] = ()
    """JSONL manifests of recorded speech."""
    text: tuple[TextSource, ...] = ()
    """Sources of text."""
    heldout: tuple[InputText, ...] = ()
    """heldout.json of other preparations, whose sentences are removed too."""
    tokenizer: TokenizerText = "mistral-v1"
    """`mistral-v1` (32,000 SentencePiece pieces, in mistral-common), a SentencePiece .model, an HF tokenizer.json or
    its folder."""
    out: LocalText = "data/prep"
    """Output folder."""
    publish: AddressOrEmpty = ""
    """Address, such as s3://bucket/prefix, to which finished sets are sent; empty: they stay in `out`."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Of the codebook's fit."""
    give_up: tuple[str, ...] = ()
    """Files (absolute paths) and ids that are gone for good: rejected as `given_up`. `lst prep give-up` adds to
    them."""
    attributions: dict[str, str] = field(default_factory=dict)
    """Source -> whom its licence asks to credit, and how; goes into shards and model cards."""
    warn_lost: Share = 0.1
    """A source that loses a larger share gets a warning."""
    warn_pieces: NotNegative = 4.0
    """A language whose text takes more pieces of the tokenizer a word gets a warning; 0: none does. A character of a
    script without spaces counts as a part of a word: a Chinese one as 5/6, kana as a half, a Thai letter as a third."""
    language: str = ENGLISH
    """Language of manifest lines and texts that state none: a tag such as fr, zh-Hant or pt-BR."""
    languages: dict[str, str] = field(default_factory=dict)
    """Source -> language of its lines and texts. A line's own `language` comes first."""
    audio: AudioConfig = field(default_factory=AudioConfig)
    cutting: CuttingConfig = field(default_factory=CuttingConfig)
    units: UnitsConfig = field(default_factory=UnitsConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    text_options: TextConfig = field(default_factory=TextConfig)
    shards: ShardConfig = field(default_factory=ShardConfig)
    reading: ReadingConfig = field(default_factory=ReadingConfig)
    jobs: JobConfig = field(default_factory=JobConfig)

    def __post_init__(self) -> None:
        if self.cutting.by != "none" and "none" in (self.align.aligner, *(own.aligner for own in self.align.languages)):
            raise UserError(f"cutting.by: {self.cutting.by}: align.aligner: none knows no pauses between words")
        if self.cutting.by not in ("none", "vad", "energy"):
            raise UserError(f"cutting.by: {self.cutting.by!r} is not one of none, vad, energy")
        if not 0 < 2 * self.cutting.shortest_seconds <= self.cutting.longest_seconds <= self.cutting.over_seconds:
            raise UserError("2 * cutting.shortest_seconds <= cutting.longest_seconds <= cutting.over_seconds must hold")
        if (self.units.frame_samples % 160 or self.units.hertz > 100) and self.units.extractor == "mfcc":
            raise UserError(f"units.rate: {self.units.rate}: mfcc gives 100 Hz divided by a whole number, such as 25")
        if self.units.extractor not in ("mfcc", "whisper", "hubert"):
            raise UserError(f"units.extractor: {self.units.extractor!r} is not one of mfcc, whisper, hubert")
        if self.units.extractor == "hubert" and not self.units.model:
            raise UserError("units.model: the hubert extractor needs a local path or a hub name")
        self.align.check()
        self._check_languages()
        for source in self.text:
            try:
                codecs.lookup(source.encoding)
            except LookupError:
                raise UserError(
                    f"text source {source.name!r}: encoding {source.encoding!r} is none that Python knows"
                ) from None
            source.splits = {str(name): meaning for name, meaning in source.splits.items()}
            for split in (source.split, *source.splits.values()):
                if split not in ("train", "heldout"):
                    raise UserError(f"text source {source.name!r}: split {split!r} is not train or heldout")

    def _check_languages(self) -> None:
        stated = {"language": self.language}
        stated |= {f"languages.{source}": tag for source, tag in self.languages.items()}
        stated |= {f"align.languages[{i}]": own.language for i, own in enumerate(self.align.languages)}
        for where, tag in stated.items():
            if language_tag(tag) is None:
                raise UserError(f"{where}: {tag!r} is no tag of a language, such as fr, zh-Hant or pt-BR")
            self.align.of(tag).check()
        if self.manifests:
            for where, tag in stated.items():
                self.align.of(tag).require_language(tag, where)

    @property
    def neural_units(self) -> bool:
        """Whether units are made by a model that may be on a GPU."""
        return self.units.extractor != "mfcc"

    @property
    def neural_alignment(self) -> bool:
        """The same of an aligner."""
        names = [self.align.aligner, *(own.aligner for own in self.align.languages)]
        return any(name in ("ctc", "whisper") for name in names)

    def language_of(self, source: str, stated: str = "") -> str:
        """Tag of the language of a piece or text: what it states, else its source's, else the configuration's."""
        return language_tag(stated or self.languages.get(source, self.language)) or ENGLISH
