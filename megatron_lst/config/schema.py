"""Every key of a run's configuration, with its default and meaning (the string after each field).

The defaults are the paper's 1B recipe (SPEC 3, 5, 8).  A field that nothing
reads fails a test.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from megatron_lst.values import (
    LARGEST_COUNT,
    Count,
    CountOr0,
    NotNegative,
    PathText,
    Positive,
    Range,
    Seconds,
    Seed,
    Share,
)
from megatron_lst.vocabulary import Vocabulary


def ffn_size(hidden: int) -> int:
    """f(d) = 8d/3 rounded up to a multiple of 256 (SPEC 0)."""
    return -(-8 * hidden // (3 * 256)) * 256


@dataclass(frozen=True)
class RopeScalingConfig:
    """Frequencies of the global transformer's rotary position embedding; the local modules keep theirs."""

    kind: Literal["none", "llama3"] = "none"
    """`none`: as `rope_theta` gives them. `llama3`: slow ones divided by `factor`, as Llama 3.1 and 3.2 have them."""
    factor: Annotated[float, Range(1)] = 8.0
    """`llama3`: what frequencies are divided by whose wavelength is above `context / low_frequency`."""
    low_frequency: Positive = 1.0
    """`llama3`: turns within `context` below which a frequency is divided by the whole `factor`."""
    high_frequency: Positive = 4.0
    """`llama3`: turns within `context` above which a frequency stays as it is; a line leads from one to the other."""
    context: Count = 8192
    """`llama3`: the language model's context before it was extended."""


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and options of the model (SPEC 2, 3, 5)."""

    kind: Literal["lst", "baseline"] = "lst"
    """`lst`: patch encoder, global transformer, patch decoder. `baseline`: the same trunk without patches."""
    hidden: Count = 2048
    """d_g, width of the global transformer."""
    layers: Count = 25
    """L_g, layers of the global transformer."""
    heads: Count = 16
    """Attention heads of the global transformer."""
    kv_heads: Count | None = None
    """Key/value heads of the global transformer (grouped-query attention); null: as many as `heads`."""
    ffn: Count | None = None
    """SwiGLU width of the global transformer; null: 8/3 of `hidden`, rounded up to 256."""
    head_size: Count | None = None
    """Width of a head of the global transformer; null: `hidden / heads`."""
    qkv_bias: bool = False
    """Biases on the queries, keys and values of the global transformer, as Qwen2 has them."""
    qk_norm: bool = False
    """RMSNorm on each head's queries and keys in the global transformer."""
    local_hidden: Count = 1024
    """d_l, width of the patch encoder and decoder."""
    local_heads: Count = 16
    """Attention heads of the patch encoder and decoder."""
    local_ffn: Count | None = None
    """SwiGLU width of the local modules; null: 8/3 of `local_hidden`, rounded up to 256."""
    encoder_layers: Count = 1
    """L_e, layers of the patch encoder."""
    decoder_layers: Count = 9
    """L_d, layers of the patch decoder."""
    queries: Count = 2
    """k, query vectors a patch in the encoder's cross-attention; `queries * local_hidden` is mapped to `hidden`
    by a linear layer only where the two differ."""
    pooling: Literal["max", "mean"] = "max"
    """How a patch's token states become its queries."""
    window: Count = 512
    """W, tokens that local self-attention sees, itself included."""
    decoder_window_units: Count = 1
    """W_u, newest closed units that the decoder's cross-attention sees."""
    cross_rope: bool = False
    """RoPE on the unit index in the decoder's cross-attention; of use only with more than one visible unit."""
    double_residual: bool = False
    """Add the cross-attention residual twice, as BLT does (2Q + out, 2h + out). A study arm."""
    decoder_input: Literal["encoder", "embedding"] = "encoder"
    """What the decoder starts from: the encoder's token states, or token embeddings of its own."""
    text_path: Literal["patch", "direct"] = "patch"
    """`patch`: text tokens are patches of length 1. `direct`: text skips encoder and decoder (SPEC 2)."""
    rope_theta: Annotated[float, Range(1)] = 500_000.0
    """Base of the rotary position embedding, in all three modules."""
    rope_scaling: RopeScalingConfig = field(default_factory=RopeScalingConfig)
    """Scaled frequencies in the global transformer."""
    no_rope_every: CountOr0 = 0
    """Every so many-th layer of the global transformer has no rotary position embedding, as in SmolLM3; 0: all have."""
    norm_eps: Positive = 1e-5
    """Epsilon of every RMSNorm."""
    init_std: Positive = 0.02
    """Standard deviation of initial weights; output projections are scaled by 1/sqrt(2 * layers)."""

    @property
    def global_ffn(self) -> int:
        return self.ffn or ffn_size(self.hidden)

    @property
    def local_ffn_size(self) -> int:
        return self.local_ffn or ffn_size(self.local_hidden)

    @property
    def global_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def global_head_size(self) -> int:
        return self.head_size or self.hidden // self.heads

    def has_rope(self, layer: int) -> bool:
        """Whether a layer of the global transformer, counted from 0, turns its queries and keys."""
        return not self.no_rope_every or (layer + 1) % self.no_rope_every != 0


@dataclass(frozen=True)
class PatchingConfig:
    """How speech tokens become patches (SPEC 6)."""

    strategy: Literal["none", "bpe", "static", "aligned", "mixed", "curriculum"] = "static"
    """`none` and `bpe` are the baselines' (patches of one token; `bpe` expects shards of unit-BPE pieces)."""
    size: Count = 4
    """p, speech tokens in a static patch."""
    granularity: Literal["word", "bpe"] = "word"
    """Aligned patches follow words, or text pieces where the shards have their spans."""
    silence: Literal["separate", "merged"] = "separate"
    """Aligned: a gap is a patch of its own, or joins the preceding word."""
    max_length: Count = 32
    """L_max: longer aligned patches are split left to right."""
    aligned_lag: Annotated[int, Range(0, 1)] = 0
    """1: aligned patches close one token late, so that no boundary is known in advance (SPEC 4)."""
    mixed_probability: Share = 0.5
    """`mixed`: share of documents that are aligned."""
    tau1: Annotated[int, Range(0, 2**62)] | None = None
    """`curriculum`: global row index until which every document is aligned; null: a third of the run."""
    tau2: Annotated[int, Range(0, 2**62)] | None = None
    """`curriculum`: global row index from which every document is static; null: two thirds of the run."""
    draw: Literal["document", "row"] = "document"
    """Whether the strategy of `mixed` and `curriculum` is drawn for each document or once a row."""


@dataclass(frozen=True)
class SourceConfig:
    """One source of documents."""

    name: str
    """Short name, for metrics and errors."""
    kind: Literal["interleaved", "text", "speech", "asr", "tts", "chat"]
    """`interleaved`: speech documents with words or segments, visited as alternating text and speech spans. `text`:
    text alone. `speech`: speech alone, transcribed or not, which the paper does not train on.
    `asr`, `tts`: adaptation, speech then text or text then speech, with a loss on the response only (SPEC 9).
    `chat`: conversations of `lst prep chat`, with a loss on the assistant's turns only (SPEC 7)."""
    shards: tuple[PathText, ...]
    """Folders of shard sets, local or remote (s3://, gs://, ...)."""
    weight: Positive = 1.0
    """Share of the mixture in raw tokens before patching, relative to the other sources; a frame of several codebooks
    counts as one."""


@dataclass(frozen=True)
class SpanConfig:
    """Lengths of the alternating spans of an interleaved document (SPEC 7), in words."""

    kind: Literal["log_uniform", "uniform"] = "log_uniform"
    """`log_uniform`: speech spans log-uniform over [speech_min, speech_max], text twice as long by the ratio.
    `uniform`: text uniform over [text_min, text_max], speech half of it."""
    speech_min: Count = 5
    """Shortest speech span."""
    speech_max: Count = 120
    """Longest speech span."""
    text_min: Count = 10
    """`uniform`: shortest text span."""
    text_max: Count = 30
    """`uniform`: longest text span."""
    text_ratio: Positive = 2.0
    """Words in text spans for every word in speech spans."""
    speech_first: Share = 1 / 3
    """Probability that a document begins with speech."""


@dataclass(frozen=True)
class SegmentConfig:
    """How documents alternate whose words have no times: by segment, a piece of the recording with its transcript.

    The paper's data has words; all of this is a choice of this project."""

    longest: Count = 4
    """Longest speech span, in segments; lengths are log-uniform from 1, those of text `data.spans.text_ratio` times."""
    text_speech: Share = 0.4
    """Documents of one segment: share that is read, then heard."""
    speech_text: Share = 0.4
    """Documents of one segment: share that is heard, then read."""
    text: Share = 0.1
    """Documents of one segment: share that is only read."""
    speech: Share = 0.1
    """Documents of one segment: share that is only heard."""


@dataclass(frozen=True)
class DataConfig:
    """The training stream (SPEC 6, 7)."""

    sources: tuple[SourceConfig, ...] = ()
    """What is trained on; weights are in raw tokens."""
    validation: tuple[SourceConfig, ...] = ()
    """Held-out sources, never trained on."""
    units: Count = 4096
    """U, units in a row (a row is one packed training sequence)."""
    tokens: Count | None = None
    """N_cap, most tokens in a row; null: 3 U, and where patches have more than 4 tokens 3/4 of `patching.size`
    times U."""
    workers: Annotated[int, Range(0, 1024)] = 2
    """Processes that build rows ahead of training, on each rank that builds (one a machine and data-parallel share);
    0 builds them in the training process."""
    seed: Seed = 0
    """Key of every random draw in the data."""
    streams: Count | None = None
    """S, logical streams; null: the global batch. Fixed for a run, independent of the number of ranks."""
    spans: SpanConfig = field(default_factory=SpanConfig)
    """How documents with speech alternate between text and speech."""
    segments: SegmentConfig = field(default_factory=SegmentConfig)
    """The same for documents whose words have no times."""
    on_damage: Literal["stop", "skip"] = "stop"
    """A corrupt or missing shard stops the run, or is skipped and counted."""
    stall_seconds: Seconds = 300.0
    """A loader that yields nothing for this long stops the run with an error instead of hanging."""
    cache: PathText | None = None
    """Folder for downloaded and decompressed shards, best on a local disk; null: `cache/` beside the run folder, and
    local sets below 1 GiB are decompressed in memory instead."""
    cache_gigabytes: Positive | None = None
    """Limit of that folder; the least recently used shards go first. null: no limit."""


@dataclass(frozen=True)
class ParallelConfig:
    """How the model is laid out over ranks; data parallelism is what remains of the world size."""

    tensor: Count = 1
    """Tensor-parallel ranks."""
    pipeline: Count = 1
    """Pipeline stages."""
    virtual: Count = 1
    """Interleaved model chunks a stage (1: plain 1F1B)."""
    sequence: bool = False
    """Sequence parallelism within the tensor-parallel group."""
    split: tuple[CountOr0, ...] | None = None
    """Global layers of each stage (virtual stages in order); null: computed from FLOPs."""


@dataclass(frozen=True)
class EngineConfig:
    """Which engine trains, and its own options."""

    name: Literal["megatron", "deepspeed"] = "megatron"
    """`megatron`: TP, SP, PP, DP. `deepspeed`: TP and ZeRO."""
    distributed_optimizer: bool = True
    """megatron: shard the optimizer's state over the data-parallel ranks."""
    overlap: bool = True
    """megatron: overlap gradient reduction and parameter gathering with compute."""
    zero_stage: Annotated[int, Range(0, 3)] = 1
    """deepspeed: ZeRO stage, 0 to 3."""
    offload_optimizer: bool = False
    """deepspeed: keep the optimizer's state in host memory."""
    deepspeed_config: PathText | None = None
    """deepspeed: a JSON file of its own, merged over what is derived from this configuration."""
    attention: str = "auto"
    """Attention of the global transformer: auto (this project's kernel) or flash_attn. A missing one is an error."""
    optimizer: str = "auto"
    """AdamW implementation: auto (torch), torch, apex or transformer_engine."""
    norm: str = "auto"
    """RMSNorm implementation: auto (torch), torch, apex or transformer_engine."""
    fp8: Literal["none", "hybrid", "e4m3"] = "none"
    """megatron, bf16: the global transformer's matrix products in fp8 while it trains, through Transformer Engine.
    `hybrid`: gradients in e5m2, weights and activations in e4m3. `e4m3`: all of them."""
    fp8_recipe: Literal["auto", "tensorwise", "blockwise", "mxfp8"] = "auto"
    """Numbers that share a scale: `tensorwise` a whole tensor, `blockwise` 128 (weights: 128 x 128), `mxfp8` 32.
    `auto`: mxfp8 where the device has it (Blackwell), tensorwise elsewhere (Ada, Hopper)."""
    loss_chunk: CountOr0 = 4096
    """Tokens whose logits may live at once. A micro-batch with more goes through the loss in chunks, whose logits the
    backward pass computes again; one with fewer keeps them. 0: always keeps them."""


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation (SPEC 8)."""

    steps: Count = 200_000
    """Optimiser steps of the whole run."""
    global_batch: Count = 128
    """Rows a step, over all data-parallel ranks."""
    micro_batch: Count = 4
    """Rows that go through the model at once on one rank."""
    lr: Positive = 4e-4
    """Peak learning rate."""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """Learning rate after the warm-up. `cosine`: half a cosine over the whole run, which cannot be extended without
    raising the rate again. `constant`: the peak. `wsd` (warm-up, stable, decay): the peak, then a line down over the
    last `decay_steps`; the checkpoint before the decay is kept, and a longer run can go on from it."""
    decay_steps: Count | None = None
    """`wsd`: steps of the decay at the end; null: a tenth of `steps`."""
    min_lr_ratio: Share = 0.01
    """`cosine` and `wsd` end at this share of the peak."""
    warmup_steps: CountOr0 = 2000
    """Steps of linear warm-up; 0: none."""
    beta1: Annotated[float, Range(0, 1, below=True)] = 0.9
    """AdamW."""
    beta2: Annotated[float, Range(0, 1, below=True)] = 0.95
    """AdamW."""
    eps: Annotated[float, Range(0, 1, above=True)] = 1e-8
    """AdamW."""
    weight_decay: NotNegative = 0.1
    """On matrices and embeddings; never on 1-D parameters. 0: none."""
    clip: NotNegative = 1.0
    """Largest norm of the global gradient; 0: it is never scaled, only measured."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 keeps fp32 master weights, which begin with the values as drawn or loaded, and fp32 gradient reduction; loss
    scaling is not needed."""
    seed: Seed = 0
    """Initial weights."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation recomputation in the global transformer."""
    init_from: PathText | None = None
    """An exported model to start from (fork, adapt, extend); null: random weights. Its model, vocabulary, patch size,
    tokenizer and codebook must be this run's."""
    init_may_differ: tuple[str, ...] = ()
    """Keys in which this run differs from `init_from` on purpose, such as [model.rope_theta] or [codebook]."""
    freeze_global_steps: CountOr0 = 0
    """Steps at the start during which what `lst warm-start` takes from a language model stands still: the global
    transformer, and the text rows of tables and heads where the architecture has a place for them."""
    trunk_lr_ratio: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Learning rate of the global transformer and, with `text_path: direct`, of text's own table, norm and head, as a
    share of the rate of everything else; below 1 where they come from a language model and the rest is new."""
    max_bad_steps: Count = 5
    """Steps in a row with a loss or gradient that is not finite (each skipped) before the run stops."""
    hang_seconds: Seconds = 1800.0
    """A step that takes longer dumps the stacks of all ranks and stops the run."""
    spike_window: Annotated[int, Range(8, LARGEST_COUNT)] = 128
    """Losses that each new one is compared with."""
    spike_threshold: NotNegative = 8.0
    """A loss so many robust standard deviations above that window's median is an event; 0: never."""
    max_rollbacks: CountOr0 = 0
    """So often a loss spike sends the run back to its last checkpoint, past the data that it came from."""
    straggler_every: CountOr0 = 100
    """Steps between comparisons of the ranks' own speed; 0: never."""
    straggler_ratio: Annotated[float, Range(1)] = 1.5
    """A rank so many times slower than the median rank is named in events.log."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save and what to keep."""

    every: Count = 1000
    """Steps between checkpoints; the last step is always saved."""
    keep: CountOr0 = 3
    """Newest checkpoints that are kept; 0 keeps all. Those of `lst checkpoint keep` stay besides."""
    keep_best: bool = False
    """Keep the checkpoint with the least held-out loss (mean over the validation sources) besides. Every checkpoint
    has to be measured for that: `every` is a multiple of `evaluation.every`."""
    asynchronous: bool = True
    """Write while training goes on."""
    file_megabytes: Count = 1024
    """Size of a checkpoint's files, about: fewer ranks write where each would write less. A file is one rank's, and a
    tensor is never cut, so that some are smaller or larger."""
    retries: CountOr0 = 2
    """More tries, with a pause, when a checkpoint cannot be written."""
    max_failures: CountOr0 = 2
    """Checkpoints in a row that may fail, retries included, before the run stops."""
    verify: Literal["hashes", "sizes"] = "hashes"
    """What must be as it was written when a checkpoint is loaded. `hashes`: every byte, hashed as it is read. `sizes`:
    every file is there with its size."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation during training."""

    every: CountOr0 = 0
    """Steps between held-out evaluations; 0: only at the end, by `lst eval`."""
    rows: Count = 32
    """Held-out rows of each validation source."""
    directions: tuple[Literal["S->S", "T->T", "S->T", "T->S"], ...] = ()
    """Choices between held-out continuations that are scored during training as well, such as [S->S, T->T]."""
    items: Count = 200
    """Items of each of these choices."""


@dataclass(frozen=True)
class RunConfig:
    """Where everything of a run is written."""

    dir: PathText = "runs/default"
    """The run folder: config.yaml, metrics.jsonl, events.log, report.html, checkpoints/, samples/, tensorboard/..."""
    stale_seconds: Seconds = 300.0
    """A run on another machine that has given no sign of life for this long has lost its folder."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    """Sizes of tokenizer and codebook; compared with the shards'."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Shapes and options of the model."""
    patching: PatchingConfig = field(default_factory=PatchingConfig)
    """How speech becomes patches."""
    data: DataConfig = field(default_factory=DataConfig)
    """The training stream."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """The layout over ranks."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Which engine trains."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Optimisation."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Evaluation during training."""
    run: RunConfig = field(default_factory=RunConfig)
    """The run folder."""

    @property
    def streams(self) -> int:
        return self.data.streams or self.training.global_batch

    @property
    def token_cap(self) -> int:
        """N_cap, most tokens in a row: 3 U at the paper's 4 tokens a patch, more where patches are longer."""
        data, longer = self.data, self.patching.strategy not in ("none", "bpe") and self.patching.size > 4
        return data.tokens or (data.units * 3 * self.patching.size // 4 if longer else 3 * data.units)

    @property
    def curriculum_rows(self) -> tuple[int, int]:
        """(tau1, tau2) as absolute row numbers; by default a third and two thirds of the run (SPEC 6)."""
        rows = self.training.steps * self.training.global_batch
        tau1 = self.patching.tau1 if self.patching.tau1 is not None else rows // 3
        tau2 = self.patching.tau2 if self.patching.tau2 is not None else 2 * rows // 3
        return tau1, tau2
