"""Speeds and memory that others have published for dense decoders in bf16 on H100s, with where they stand.

    python -m tests.planning.published      the table of docs/performance.md

Each run is written as a baseline of this project of the same sizes. Their systems differ from ours (FSDP, other
kernels); what a plan is asked for is the time of the same work.
"""

from dataclasses import dataclass, replace

from megatron_lst.config.load import load_config
from megatron_lst.config.schema import Config
from megatron_lst.flops import module_parameters
from megatron_lst.parallel.layout import ParallelLayout
from megatron_lst.parallel.split import pipeline_split
from megatron_lst.planning import find_device, step_time
from megatron_lst.planning.devices import Device
from megatron_lst.planning.memory import stage_memory
from megatron_lst.planning.rates import EAGER, FUSED
from megatron_lst.planning.speed import Assumptions

TORCHTITAN = "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, tables 1 and 3 (December 2024)"
FOUNDRY = "llm-foundry, scripts/train/benchmarking/README.md, H100 80GB BF16 (read November 2026)"
OLMO = "OLMo-core 1.6, README, H100, BF16, context 4096 (1B, 7B); 1.5 (13B)"


@dataclass(frozen=True)
class Model:
    """Sizes: width, layers, heads, groups of keys and values, SwiGLU width, pieces."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int


def _mpt(hidden: int, layers: int, heads: int) -> Model:
    """MPT's MLP has two matrices of 4 d; three of 8/3 d are as many parameters."""
    return Model(hidden, layers, heads, heads, 8 * hidden // 3 // 16 * 16, 50_368)


LLAMA_8B = Model(4096, 32, 32, 8, 14_336, 128_256)
MODELS = {
    "llama-3.1-8B": LLAMA_8B,
    "mpt-760m": _mpt(1536, 24, 12),
    "mpt-1b": _mpt(2048, 24, 16),
    "mpt-3b": _mpt(2560, 32, 20),
    "mpt-7b": _mpt(4096, 32, 32),
    "mpt-13b": _mpt(5120, 40, 40),
    "mpt-30b": _mpt(7168, 48, 56),
    "mpt-70b": _mpt(8192, 80, 64),
    "olmo-1B": Model(2048, 16, 16, 16, 8192, 100_352),
    "olmo-7B": Model(4096, 32, 32, 32, 11_008, 100_352),
    "olmo-13B": Model(5120, 40, 40, 40, 13_824, 100_352),
}


@dataclass(frozen=True)
class Run:
    """One published measurement.

    Attributes:
        micro_batch: sequences of a GPU in one micro-batch.
        accumulate: micro-batches a step.
        tokens_per_second: of one GPU.
        compiled: with torch.compile, or kernels of its own in place of it.
        watts: that each GPU was allowed.
        memory: GiB at the peak, where it is published.
    """

    source: str
    model: str
    sequence: int
    gpus: int
    micro_batch: int
    accumulate: int
    tokens_per_second: float
    recompute: str = "none"
    compiled: bool = True
    watts: int = 700
    memory: float | None = None

    def __str__(self) -> str:
        return f"{self.model}, {self.sequence} tokens, {self.gpus} GPUs"


RUNS = (
    Run(TORCHTITAN, "llama-3.1-8B", 8192, 8, 2, 1, 6667, "selective", watts=500, memory=77.0),
    Run(TORCHTITAN, "llama-3.1-8B", 8192, 128, 2, 1, 6514, "selective", watts=500, memory=62.0),
    Run(TORCHTITAN, "llama-3.1-8B", 8192, 8, 2, 1, 5762, "selective", compiled=False, watts=500, memory=82.4),
    Run(OLMO, "olmo-1B", 4096, 8, 4, 32, 55_000),
    Run(OLMO, "olmo-7B", 4096, 8, 2, 64, 10_000),
    Run(FOUNDRY, "mpt-760m", 2048, 32, 24, 1, 67_971, compiled=False),
    Run(FOUNDRY, "mpt-1b", 2048, 8, 14, 1, 45_455, compiled=False),
    Run(FOUNDRY, "mpt-1b", 4096, 8, 7, 4, 38_535, compiled=False),
    Run(FOUNDRY, "mpt-1b", 2048, 64, 20, 1, 44_402, compiled=False),
    Run(FOUNDRY, "mpt-3b", 2048, 16, 10, 3, 24_142, compiled=False),
    Run(FOUNDRY, "mpt-3b", 4096, 8, 5, 6, 20_964, compiled=False),
    Run(FOUNDRY, "mpt-7b", 2048, 8, 6, 1, 10_643, compiled=False),
    Run(FOUNDRY, "mpt-7b", 4096, 8, 16, 2, 8611, "full", compiled=False),
    Run(FOUNDRY, "mpt-7b", 8192, 8, 8, 2, 6935, "full", compiled=False),
    Run(FOUNDRY, "mpt-13b", 2048, 8, 2, 1, 4792, compiled=False),
    Run(FOUNDRY, "mpt-13b", 4096, 8, 10, 3, 4717, "full", compiled=False),
    Run(FOUNDRY, "mpt-13b", 2048, 64, 2, 1, 4800, compiled=False),
    Run(FOUNDRY, "mpt-30b", 2048, 32, 14, 3, 2308, "full", compiled=False),
    Run(FOUNDRY, "mpt-30b", 4096, 8, 1, 21, 1802, "full", compiled=False),
    Run(FOUNDRY, "mpt-70b", 2048, 64, 8, 4, 1039, "full", compiled=False),
    Run("OLMo-core 1.5, README", "olmo-13B", 4096, 8, 1, 128, 4600),
)


def config_of(run: Run) -> Config:
    """A baseline of the run's sizes under ZeRO-3, which is what FSDP does."""
    model = MODELS[run.model]
    values = {
        "model.hidden": model.hidden, "model.layers": model.layers, "model.heads": model.heads,
        "model.kv_heads": model.kv_heads, "model.ffn": model.ffn, "data.units": run.sequence,
        "vocabulary.text_size": model.vocabulary - 504, "vocabulary.multiple": 1, "patching.strategy": "none",
        "training.micro_batch": run.micro_batch, "training.recompute": run.recompute,
        "training.global_batch": run.gpus * run.micro_batch * run.accumulate,
        "engine.name": "deepspeed", "engine.zero_stage": 3, "engine.loss_chunk": 0,
    }  # fmt: skip
    return load_config("configs/base-1b.yaml", [f"{key}={value}" for key, value in values.items()])


def device_of(run: Run) -> Device:
    """The H100 of the run: torchtitan's have slower memory (2.4 TB/s) and 500 W, 0.84 of the clock of 700 W."""
    device = find_device("h100")
    assert device is not None
    return replace(device, bandwidth=2400e9, memory=96e9) if run.watts == 500 else device


def planned(run: Run) -> tuple[float, float]:
    """(tokens a second of one GPU, GiB at the peak) that a plan gives."""
    config, layout = config_of(run), ParallelLayout(1, 1, 1, run.gpus, False)
    split = pipeline_split(config, 1)
    assumed = Assumptions(elementwise=FUSED if run.compiled else EAGER)
    if run.watts == 500:  # dynamic power goes with the cube of the clock, and about a quarter of 700 W is not dynamic
        assumed = replace(assumed, efficiency=assumed.efficiency * 0.84)
    time = step_time(config, layout, split, device_of(run), assumed)
    (memory,) = stage_memory(config, layout, split, fused=run.compiled)
    # Their loss has the gradient of the logits beside them in fp32 and in bf16; this project's does not keep it.
    theirs = 6.0 * run.micro_batch * run.sequence * config.vocabulary.padded_size
    return config.training.global_batch * run.sequence / time.total / run.gpus, (memory.total + theirs) / 2**30


def table() -> str:
    """Markdown."""
    lines = ["| run | source | published, tokens/s a GPU | planned | difference |", "|---|---|---:|---:|---:|"]
    for run in RUNS:
        speed, memory = planned(run)
        name = f"{run}{'' if run.compiled else ', eager'}{', recomputed' if run.recompute == 'full' else ''}"
        lines.append(
            f"| {name} | {run.source.split(',')[0]} | {run.tokens_per_second:,.0f} | {speed:,.0f} | "
            f"{100 * (speed / run.tokens_per_second - 1):+.0f} % |"
        )
    lines += ["", "| memory of | published, GiB | planned | difference |", "|---|---:|---:|---:|"]
    for run in RUNS:
        if run.memory:
            memory = planned(run)[1]
            lines.append(f"| {run} | {run.memory:.1f} | {memory:.1f} | {100 * (memory / run.memory - 1):+.0f} % |")
    return "\n".join(lines)


if __name__ == "__main__":
    for model in MODELS:
        run = next(run for run in RUNS if run.model == model)
        print(f"{model}: {sum(module_parameters(config_of(run)).values()) / 1e9:.2f}B parameters")
    print(table())
