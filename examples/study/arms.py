"""What is compared: the arms, their configurations and their budgets."""

from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

from examples.study.corpus import Corpus
from megatron_lst.config.checks import check
from megatron_lst.config.schema import (
    Config,
    DataConfig,
    ModelConfig,
    PatchingConfig,
    SourceConfig,
    SpanConfig,
    TrainingConfig,
)
from megatron_lst.data import RowStream
from megatron_lst.documents.shards import ShardSet
from megatron_lst.errors import UserError
from megatron_lst.flops import row_flops
from megatron_lst.vocabulary import Vocabulary, rate_text

ARMS = ("base", "static", "curriculum", "base-flops")
"""`base`, `static` and `curriculum` share a budget of units; `base-flops` is `base` with the FLOPs of `static`."""
SAMPLED_ROWS = 480
"""Rows from which the FLOPs of a step are known before training; what was spent is counted exactly afterwards."""


@dataclass(frozen=True)
class StudyPlan:
    """Everything that the results of a study depend on.

    Attributes:
        seeds: of initial weights and of the data's order, for every arm the same.
        units_budget: units that an arm trains on, rounded down to whole steps.
        evaluations: points of the curves after the start, evenly spread; the last is the end.
        items, final_items: of each direction, within the curves and at the end.
        documents, final_documents: whose speech and text are coded, within the curves and at the end.
        prompt_words, continuation_words: of an item.
        speech_weight: raw tokens of interleaved documents for each raw token of text alone.
    """

    seeds: int = 5
    units_budget: int = 204_800
    units: int = 256
    global_batch: int = 4
    hidden: int = 96
    layers: int = 3
    local_hidden: int = 64
    decoder_layers: int = 2
    init_std: float = 0.1
    patch: int = 4
    lr: float = 3e-3
    evaluations: int = 4
    items: int = 24
    final_items: int = 200
    documents: int = 4
    final_documents: int = 40
    prompt_words: int = 12
    continuation_words: int = 8
    speech_weight: float = 3.0
    corpus: Corpus = field(default_factory=Corpus)

    @property
    def steps(self) -> int:
        return self.units_budget // (self.units * self.global_batch)

    def check(self) -> None:
        """Raises UserError: a study that cannot be."""
        if self.seeds < 1:
            raise UserError(f"study: at least one seed, got {self.seeds}")
        if self.steps < self.evaluations:
            step = self.units * self.global_batch
            raise UserError(
                f"study: a budget of {self.units_budget:,} units is {self.steps} steps of {step:,} units, "
                f"and {self.evaluations} evaluations need as many steps: give {step * self.evaluations:,} or more"
            )


QUICK = StudyPlan(
    seeds=1, units_budget=60_000, evaluations=2, items=8, final_items=40, documents=2, final_documents=5,
    corpus=Corpus(minutes=0, heldout_minutes=0),
)  # fmt: skip
"""Does it run?"""


def arm_config(plan: StudyPlan, arm: str, seed: int, sets: dict[str, Path], steps: int | None = None) -> Config:
    """The configuration of one arm.

    Args:
        sets: folders of the shard sets, see `corpus.write_corpus`.
        steps: None: as the units' budget says.
    """
    unpatched = arm.startswith("base")
    steps = steps or plan.steps
    config = Config(
        vocabulary=vocabulary_of(sets["speech"]),
        model=ModelConfig(
            kind="baseline" if unpatched else "lst",
            hidden=plan.hidden,
            layers=plan.layers,
            heads=4,
            ffn=4 * plan.hidden,
            local_hidden=plan.local_hidden,
            local_heads=4,
            local_ffn=4 * plan.local_hidden,
            decoder_layers=plan.decoder_layers,
            init_std=plan.init_std,
            window=128,
        ),
        patching=PatchingConfig(strategy="none" if unpatched else arm, size=plan.patch),  # type: ignore[arg-type]
        data=DataConfig(
            sources=(
                SourceConfig("speech", "interleaved", (str(sets["speech"]),), plan.speech_weight),
                SourceConfig("text", "text", (str(sets["text"]),), 1.0),
            ),
            validation=(SourceConfig("held-out", "interleaved", (str(sets["held-out"]),)),),
            units=plan.units,
            tokens=8 * plan.units,  # never the limit: a row is full when its units are
            workers=0,
            seed=seed,
            spans=SpanConfig(speech_max=40, text_ratio=1.0),
        ),
        training=TrainingConfig(
            steps=steps,
            global_batch=plan.global_batch,
            micro_batch=plan.global_batch,
            lr=plan.lr,
            warmup_steps=max(1, steps // 20),
            precision="fp32",
            seed=seed,
        ),
    )
    check(config)
    return config


def vocabulary_of(speech: Path) -> Vocabulary:
    """Of a shard set of speech."""
    shards = ShardSet.open(speech, kind="speech")
    assert shards.codec is not None, "a set of speech"
    tokenizer = shards.tokenizer
    return Vocabulary(
        text_size=tokenizer.size,
        speech_size=shards.codec.size,
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        multiple=32,
        frame_rate=rate_text(shards.codec.rate),
    )


def step_flops(config: Config) -> float:
    """Mean training FLOPs of a step, from the first rows of the configuration's own stream."""
    stream = RowStream(config, 0, 1)
    steps = min(config.training.steps, -(-SAMPLED_ROWS // config.training.global_batch))
    return sum(row_flops(config, row) for batch in islice(stream, steps) for row in batch.rows) / steps


def matched_steps(plan: StudyPlan, seed: int, sets: dict[str, Path]) -> int:
    """Steps of the baseline that spend what the static arm spends on the units' budget."""
    static, base = (arm_config(plan, arm, seed, sets) for arm in ("static", "base"))
    return max(1, round(plan.steps * step_flops(static) / step_flops(base)))


def tasks(plan: StudyPlan, sets: dict[str, Path]) -> list[tuple[str, int, int]]:
    """(arm, seed, steps) of every run, seed by seed, so that an unfinished study has whole seeds."""
    return [
        (arm, seed, matched_steps(plan, seed, sets) if arm == "base-flops" else plan.steps)
        for seed in range(plan.seeds)
        for arm in ARMS
    ]


def plain(plan: StudyPlan) -> dict[str, object]:
    """The plan as JSON knows it."""
    return asdict(plan)
