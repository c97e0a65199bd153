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
    """`none`: as `rope_theta` gives them. `llama3`: slow ones divided by `factor` (Llama 3.1, 3.2)."""
    factor: Annotated[float, Range(1)] = 8.0
    """`llama3`: divisor of frequencies whose wavelength is above `context / low_frequency`."""
    low_frequency: Positive = 1.0
    """`llama3`: below so many turns within `context` a frequency is divided by the whole `factor`."""
    high_frequency: Positive = 4.0
    """`llama3`: above so many turns it stays as it is; a line leads from one to the other."""
    context: Count = 8192
    """`llama3`: the language model's context before it was extended."""


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and options of the model (SPEC 2, 3, 5)."""

    kind: Literal["lst", "baseline"] = "lst"
    """`lst`: encoder, global transformer, decoder. `baseline`: the same trunk without patches."""
    hidden: Count = 2048
    """d_g, width of the global transformer."""
    layers: Count = 25
    """L_g, layers of the global transformer."""
    heads: Count = 16
    """Attention heads of the global transformer."""
    kv_heads: Count | None = None
    """Its key/value heads (grouped-query attention); null: as many as `heads`."""
    ffn: Count | None = None
    """SwiGLU width of the global transformer; null: 8/3 of `hidden`, rounded up to 256."""
    head_size: Count | None = None
    """Width of a global head; null: `hidden / heads`."""
    qkv_bias: bool = False
    """Biases on the global queries, keys and values, as in Qwen2."""
    qk_norm: bool = False
    """RMSNorm on each global head's queries and keys."""
    local_hidden: Count = 1024
    """d_l, width of the patch encoder and decoder."""
    local_heads: Count = 16
    """Attention heads of the local modules."""
    local_ffn: Count | None = None
    """SwiGLU width of the local modules; null: 8/3 of `local_hidden`, rounded up to 256."""
    encoder_layers: Count = 1
    """L_e, layers of the patch encoder."""
    decoder_layers: Count = 9
    """L_d, layers of the patch decoder."""
    queries: Count = 2
    """k, query vectors a patch in the encoder's cross-attention; a linear layer maps `queries * local_hidden` to
    `hidden` where they differ."""
    pooling: Literal["max", "mean"] = "max"
    """How a patch's token states become its queries."""
    window: Count = 512
    """W, tokens that local self-attention sees, itself included."""
    decoder_window_units: Count = 1
    """W_u, newest closed units that the decoder sees by cross-attention."""
    cross_rope: bool = False
    """RoPE on the unit index in the decoder's cross-attention; of use with several visible units."""
    double_residual: bool = False
    """Add the cross-attention residual twice, as BLT does. A study arm."""
    decoder_input: Literal["encoder", "embedding"] = "encoder"
    """What the decoder starts from: the encoder's token states, or embeddings of its own."""
    text_path: Literal["patch", "direct"] = "patch"
    """`patch`: text tokens are patches of length 1. `direct`: text skips encoder and decoder (SPEC 2)."""
    rope_theta: Annotated[float, Range(1)] = 500_000.0
    """Base of the rotary position embedding in all modules."""
    rope_scaling: RopeScalingConfig = field(default_factory=RopeScalingConfig)
    """Scaled frequencies in the global transformer."""
    no_rope_every: CountOr0 = 0
    """Every so many-th global layer has no rotary position embedding (SmolLM3); 0: all have."""
    norm_eps: Positive = 1e-5
    """Epsilon of every RMSNorm."""
    init_std: Positive = 0.02
    """Standard deviation of initial weights; output projections times 1/sqrt(2 * layers)."""

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
    """`none` and `bpe` are for baselines (patches of one token; `bpe` reads shards of unit-BPE pieces)."""
    size: Count = 4
    """p, speech tokens in a static patch."""
    granularity: Literal["word", "bpe"] = "word"
    """Aligned patches follow words, or text pieces where the shards have their times."""
    silence: Literal["separate", "merged"] = "separate"
    """Aligned: a gap is a patch, or joins the word before."""
    max_length: Count = 32
    """L_max: longer aligned patches are split."""
    aligned_lag: Annotated[int, Range(0, 1)] = 0
    """1: aligned patches close one token late, so no boundary is known in advance (SPEC 4)."""
    mixed_probability: Share = 0.5
    """`mixed`: share of documents that are aligned."""
    tau1: Annotated[int, Range(0, 2**62)] | None = None
    """`curriculum`: global row up to which documents are aligned; null: a third of the run."""
    tau2: Annotated[int, Range(0, 2**62)] | None = None
    """`curriculum`: global row from which documents are static; null: two thirds of the run."""
    draw: Literal["document", "row"] = "document"
    """`mixed`, `curriculum`: the strategy is drawn for each document, or once a row."""


@dataclass(frozen=True)
class SourceConfig:
    """One source of documents."""

    name: str
    """Short name, for metrics and errors."""
    kind: Literal["interleaved", "text", "speech", "asr", "tts", "chat"]
    """`interleaved`: alternating spans of text and speech. `text`: text alone. `speech`: speech alone, beyond the
    paper. `asr`, `tts`: speech then text, text then speech, loss on the response only (SPEC 9). `chat`: conversations
    of `lst prep chat`, loss on the assistant's turns only (SPEC 7)."""
    shards: tuple[PathText, ...]
    """Folders of shard sets, local or remote (s3://, gs://, ...)."""
    weight: Positive = 1.0
    """Share of the mixture in raw tokens before patching, relative to other sources; a frame counts as one."""


@dataclass(frozen=True)
class SpanConfig:
    """Lengths of the alternating spans of an interleaved document (SPEC 7), in words."""

    kind: Literal["log_uniform", "uniform"] = "log_uniform"
    """`log_uniform`: speech spans over [speech_min, speech_max], text longer by `text_ratio`. `uniform`: text over
    [text_min, text_max], speech half of it."""
    speech_min: Count = 5
    """Shortest speech span."""
    speech_max: Count = 120
    """Longest speech span."""
    text_min: Count = 10
    """`uniform`: shortest text span."""
    text_max: Count = 30
    """`uniform`: longest text span."""
    text_ratio: Positive = 2.0
    """Words in text spans for each in speech spans."""
    speech_first: Share = 1 / 3
    """Probability that a document begins with speech."""


@dataclass(frozen=True)
class SegmentConfig:
    """How documents alternate whose words have no times: by segment, a piece of the recording with its transcript.

    The paper's data has words; all of this is a choice of this project."""

    longest: Count = 4
    """Longest speech span, in segments; lengths are log-uniform from 1, those of text `data.spans.text_ratio`
    times."""
    text_speech: Share = 0.4
    """Share of one-segment documents that are read, then heard."""
    speech_text: Share = 0.4
    """Share that are heard, then read."""
    text: Share = 0.1
    """Share that are only read."""
    speech: Share = 0.1
    """Share that are only heard."""


@dataclass(frozen=True)
class DataConfig:
    """The training stream (SPEC 6, 7)."""

    sources: tuple[SourceConfig, ...] = ()
    """What is trained on."""
    validation: tuple[SourceConfig, ...] = ()
    """Held-out sources, never trained on."""
    units: Count = 4096
    """U, units in a row, which is one packed training sequence."""
    tokens: Count | None = None
    """N_cap, most tokens in a row; null: 3 U, above 4 tokens a patch 3/4 of `patching.size` times U."""
    workers: Annotated[int, Range(0, 1024)] = 2
    """Processes that build rows ahead, on each rank that builds; 0: the training process builds them."""
    seed: Seed = 0
    """Key of every random draw in the data."""
    streams: Count | None = None
    """S, logical streams, fixed for a run; null: the global batch."""
    spans: SpanConfig = field(default_factory=SpanConfig)
    """How documents with speech alternate between text and speech."""
    segments: SegmentConfig = field(default_factory=SegmentConfig)
    """How documents alternate whose words have no times."""
    on_damage: Literal["stop", "skip"] = "stop"
    """A corrupt or missing shard stops the run, or is skipped and counted."""
    stall_seconds: Seconds = 300.0
    """A loader that yields nothing for this long stops the run."""
    cache: PathText | None = None
    """Folder for downloaded and decompressed shards, best on a local disk; null: `cache/` beside the run folder,
    local sets below 1 GiB in memory."""
    cache_gigabytes: Positive | None = None
    """Its limit; the least recently used shards go first. null: none."""


@dataclass(frozen=True)
class ParallelConfig:
    """How the model is laid out over ranks; data parallelism is what remains of the world size."""

    tensor: Count = 1
    """Tensor-parallel ranks."""
    pipeline: Count = 1
    """Pipeline stages."""
    virtual: Count = 1
    """Interleaved model chunks a stage; 1: plain 1F1B."""
    sequence: bool = False
    """Sequence parallelism within the tensor-parallel group."""
    split: tuple[CountOr0, ...] | None = None
    """Global layers of each stage (virtual stages in order); null: by FLOPs."""


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
    """deepspeed: ZeRO stage."""
    offload_optimizer: bool = False
    """deepspeed: keep the optimizer's state in host memory."""
    deepspeed_config: PathText | None = None
    """deepspeed: a JSON file, merged over what this configuration gives."""
    attention: str = "auto"
    """Global attention: lst_kernels, flash_attn, varlen_attn (PyTorch's), or auto: the quickest of a measured table,
    else lst_kernels."""
    optimizer: str = "auto"
    """AdamW: lst_kernels (one pass), torch, apex, transformer_engine or auto: lst_kernels on a GPU where it agrees with
    torch's, else torch."""
    norm: str = "auto"
    """RMSNorm: auto (torch), torch, apex or transformer_engine."""
    fp8: Literal["none", "hybrid", "e4m3"] = "none"
    """megatron, bf16: global matrix products in fp8 while training, by Transformer Engine. `hybrid`: gradients in
    e5m2, the rest in e4m3. `e4m3`: all."""
    fp8_recipe: Literal["auto", "tensorwise", "blockwise", "mxfp8"] = "auto"
    """Numbers that share a scale: `tensorwise` a tensor, `blockwise` 128 (weights: 128 x 128), `mxfp8` 32. `auto`:
    mxfp8 on Blackwell, else tensorwise."""
    loss_chunk: CountOr0 = 4096
    """Tokens whose logits may live at once. Longer micro-batches go through the loss in chunks. 0: never."""


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation (SPEC 8)."""

    steps: Count = 200_000
    """Optimiser steps of the whole run."""
    global_batch: Count = 128
    """Rows a step, over all data-parallel ranks."""
    micro_batch: Count = 4
    """Rows that go through the model at once on a rank."""
    lr: Positive = 4e-4
    """Peak learning rate."""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """After the warm-up. `cosine`: half a cosine over the whole run. `constant`: the peak. `wsd`: the peak, then a
    line down over the last `decay_steps`; the checkpoint before it is kept, so that a longer run can go on from
    it."""
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
    """On matrices and embeddings, not on 1-D parameters."""
    clip: NotNegative = 1.0
    """Largest norm of the global gradient; 0: only measured."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 keeps fp32 master weights and reduces gradients in fp32."""
    seed: Seed = 0
    """Initial weights."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation recomputation in the global transformer."""
    init_from: PathText | None = None
    """An export to start from; null: random weights. Model, vocabulary, patch size, tokenizer and codebook must be
    this run's."""
    init_may_differ: tuple[str, ...] = ()
    """Keys that may differ from `init_from`, such as [model.rope_theta] or [codebook]."""
    freeze_global_steps: CountOr0 = 0
    """First steps in which what `lst warm-start` took stands still: the global transformer, and text rows of tables
    and heads."""
    trunk_lr_ratio: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Share of the learning rate for the global transformer and, with `text_path: direct`, text's own table, norm and
    head."""
    max_bad_steps: Count = 5
    """Steps in a row without a finite loss or gradient (each skipped) before the run stops."""
    hang_seconds: Seconds = 1800.0
    """A longer step writes the stacks of all ranks and stops the run."""
    spike_window: Annotated[int, Range(8, LARGEST_COUNT)] = 128
    """Losses that each new one is compared with."""
    spike_threshold: NotNegative = 8.0
    """A loss so many robust deviations above that window's median is an event; 0: never."""
    max_rollbacks: CountOr0 = 0
    """How often a spike sends the run back to its last checkpoint, past the data that it came from."""
    straggler_every: CountOr0 = 100
    """Steps between comparisons of the ranks' speed; 0: never."""
    straggler_ratio: Annotated[float, Range(1)] = 1.5
    """A rank so many times slower than the median is named in events.log."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save and what to keep."""

    every: Count = 1000
    """Steps between checkpoints; the last step is always saved."""
    keep: CountOr0 = 3
    """Newest checkpoints that stay, besides those of `lst checkpoint keep`; 0: all."""
    keep_best: bool = False
    """Keep that with the least held-out loss (mean of the validation sources), too. `every` must be a multiple of
    `evaluation.every`."""
    asynchronous: bool = True
    """Write while training goes on."""
    file_megabytes: Count = 1024
    """Rough size of a checkpoint's files. A file is one rank's, a tensor is never cut."""
    retries: CountOr0 = 2
    """More tries, with a pause, when a checkpoint cannot be written."""
    max_failures: CountOr0 = 2
    """Checkpoints in a row that may fail before the run stops."""
    verify: Literal["hashes", "sizes"] = "hashes"
    """At loading. `hashes`: every byte is hashed as it is read. `sizes`: every file is there with its size."""


@dataclass(frozen=True)
class TextAbilityConfig:
    """What is left of a language model's text ability: the perplexity of held-out text and tasks of lm-eval, before the
    first step, during training and after the last step, beside the language model's own (docs/warm-start.md)."""

    every: CountOr0 = 0
    """Steps between measures; 0: never."""
    original: PathText | None = None
    """Checkpoint of the language model that the run began with; it is measured once. null: without it."""
    pieces: Count = 32_768
    """Pieces of held-out text: of the sources of kind `text` in `data.validation`."""
    tasks: tuple[str, ...] = ()
    """Tasks of lm-eval that log-probabilities decide, such as [hellaswag, arc_easy]."""
    tasks_from: PathText | None = None
    """Folder of task YAML files of your own."""
    shots: CountOr0 | None = None
    """Examples before each question; null: as the task says."""
    limit: Count | None = None
    """First documents of each task only; null: all."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation during training."""

    every: CountOr0 = 0
    """Steps between held-out evaluations; 0: only at the end, by `lst eval`."""
    rows: Count = 32
    """Held-out rows of each validation source."""
    directions: tuple[Literal["S->S", "T->T", "S->T", "T->S"], ...] = ()
    """Choices that are scored as well, such as [S->S, T->T]."""
    items: Count = 200
    """Items of each choice."""
    text: TextAbilityConfig = field(default_factory=TextAbilityConfig)
    """Text ability, for a run that begins with a language model."""


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases beside TensorBoard. Its own variables, such as WANDB_API_KEY and WANDB_MODE, hold."""

    project: str = ""
    """Its project; empty: not used."""
    entity: str | None = None
    """Team or user; null: the account's own."""
    name: str | None = None
    """Name of the run there; null: the run folder's."""
    group: str | None = None
    """Group of runs."""
    tags: tuple[str, ...] = ()
    """Tags of the run."""
    mode: Literal["online", "offline"] | None = None
    """`offline` writes into the run folder alone, and `wandb sync` sends it later; null: as WANDB_MODE says."""


@dataclass(frozen=True)
class RunConfig:
    """Where everything of a run is written."""

    dir: PathText = "runs/default"
    """The run folder."""
    stale_seconds: Seconds = 300.0
    """A run on another machine without a sign of life for this long loses its folder."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Weights & Biases, which is optional."""


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
