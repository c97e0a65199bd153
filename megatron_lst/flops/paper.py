"""The published accounting, recomputed from first principles beside the published figures (SPEC 8, 10).

Every `Line` keeps the two apart: `recomputed` follows from the inputs below by arithmetic that stands here,
`published` is what the paper prints.  Nothing is copied from one to the other.
"""

from dataclasses import dataclass, replace

from megatron_lst.config.schema import Config, ModelConfig, PatchingConfig
from megatron_lst.flops.counter import parameters, row_flops
from megatron_lst.flops.work import ALIGNED_SEPARATE, MixtureStatistics, expected_work

# What the paper says of its set-up: the inputs of everything below.
BATCH_ROWS, ROW_UNITS, STEPS, ABLATION_STEPS = 128, 4096, 500_000, 200_000
SEVEN_B_STEPS, SEVEN_B_BATCH = 25_000, 4_194_304
GPUS, HOURS = 32, 17
SPEECH_TOKENS = 13.7e9
UNITS_PER_BPE_PIECE = 1.47
"""Mean speech units in a piece of unit BPE. The one input that is inferred: from the published saving of 8.2 %."""
PEAK_BF16_H100 = 989.4e12
PAPER_MIX = MixtureStatistics()
"""9.4 frames and 1.4 text pieces a word, two words of text for one of speech, twice as much plain text."""


@dataclass(frozen=True)
class Line:
    """One figure.

    Attributes:
        table: where it is published.
        what: what it is.
        recomputed: by this program.
        published: by the paper; None where the paper gives no such figure.
        unit: unit and, through it, the number of decimals.
        note: inputs, or why the two differ.
    """

    table: str
    what: str
    recomputed: float
    published: float | None
    unit: str
    note: str = ""


def static_mix(patch_length: float, mix: MixtureStatistics = PAPER_MIX) -> MixtureStatistics:
    return replace(mix, patch_length=patch_length)


def curriculum_patch() -> float:
    """Half of the documents of a run are aligned, half static: the mean of P(u) over a run is 1/2."""
    return 1 / (0.5 / 4 + 0.5 / ALIGNED_SEPARATE)


def unit_lines(mixture: MixtureStatistics = PAPER_MIX) -> list[Line]:
    """Table 13, the token columns of Table 3, the savings of Table 4, and units of runs: pure accounting."""
    speech, text = mixture.speech_share, 1 - mixture.speech_share
    baseline, static, curriculum, bpe = (
        static_mix(length, mixture) for length in (1, 4, curriculum_patch(), UNITS_PER_BPE_PIECE)
    )
    units = STEPS * BATCH_ROWS * ROW_UNITS
    share = "raw tokens per interleaved raw token"
    lines = [
        Line("Table 13", "baseline: speech of interleaved documents", speech, 0.77, share, "9.4 / (9.4 + 2 x 1.4)"),
        Line("Table 13", "baseline: text of interleaved documents", text, 0.23, share),
        Line("Table 13", "baseline: all, with plain text", speech + text + 2, 3.00, share),
        Line("Table 13", "LST static 4: speech patches", speech / 4, 0.19, share),
        Line("Table 13", "LST static 4: all, with plain text", speech / 4 + text + 2, 2.42, share),
    ]
    for name, mix, interleaved, plain, note in (
        ("baseline", baseline, 87.0, 175.0, ""),
        ("BPE", bpe, 95.0, 190.0, "1.47 units a piece"),
        ("LST static 4", static, 108.0, 217.0, ""),
    ):
        raw = units / mix.units_per_token
        published = "500k steps of 524,288 units" + (f"; {note}" if note else "")
        lines += [
            Line("Table 3", f"{name}: interleaved tokens", raw / 3 / 1e9, interleaved, "B tokens", published),
            Line("Table 3", f"{name}: text tokens", raw * 2 / 3 / 1e9, plain, "B tokens"),
        ]
    for name, mix, saving, note in (
        ("BPE", bpe, 8.2, "agrees by construction: 1.47 is inferred from it"),
        ("LST static 4", static, 19.3, ""),
        ("LST curriculum", curriculum, 19.7, f"half aligned, {ALIGNED_SEPARATE:.2f} frames a patch on average"),
    ):
        lines.append(Line("Table 4", f"{name}: units saved", 100 * (1 - mix.units_per_token), saving, "%", note))
    raw = units / static.units_per_token
    return [
        *lines,
        Line("8, 3", "units of 500k steps", units / 1e9, None, "B units"),
        Line("Tables 6-10", "units of 200k steps", ABLATION_STEPS * BATCH_ROWS * ROW_UNITS / 1e9, 105.0, "B units"),
        Line("Table 8", "units of 7B: 25k steps", SEVEN_B_STEPS * SEVEN_B_BATCH / 1e9, 105.0, "B units"),
        Line(
            "Table 8",
            "7B: plain text of these units",
            SEVEN_B_STEPS * SEVEN_B_BATCH * 2 / 3 / 1e9,
            70.0,
            "B tokens",
            "the published 70B is text alone",
        ),
        Line("A.1", "passes over the speech, static 4", raw / 3 * speech / SPEECH_TOKENS, 6.0, "epochs"),
        Line(
            "8", "baseline steps for the same data as static 4", STEPS / static.units_per_token / 1e3, None, "k steps"
        ),
    ]


def paper_config(kind: str, **model: object) -> Config:
    """Table 7's 1B as published, over a run of 500k steps."""
    shape = ModelConfig(kind="baseline") if kind == "baseline" else replace(ModelConfig(), **model)  # type: ignore[arg-type]
    chosen = "none" if kind == "baseline" else "static"
    return Config(model=shape, patching=PatchingConfig(strategy=chosen))  # type: ignore[arg-type]


def flop_lines() -> list[Line]:
    """What the paper counts in units, in true FLOPs: forward and backward, by the exact counter."""
    baseline = paper_config("baseline")
    per_unit = row_flops(baseline) / ROW_UNITS
    budget = STEPS * BATCH_ROWS * ROW_UNITS
    lines = [
        Line("7", "baseline: parameters", parameters(baseline) / 1e6, None, "M"),
        Line("7", "LST: parameters", parameters(paper_config("lst")) / 1e6, None, "M"),
        Line("3", "baseline: training FLOPs per unit", per_unit / 1e9, None, "GFLOP"),
    ]
    arms: tuple[tuple[str, dict[str, object]], ...] = (
        ("LST", {}),
        ("LST, decoder sees 512 units", {"decoder_window_units": 512}),
        ("LST, text_path direct", {"text_path": "direct"}),
    )
    for name, options in arms:
        config = paper_config("lst", **options)
        work = expected_work(config, static_mix(4))
        flops = row_flops(config)
        lines += [
            Line("3", f"{name}: training FLOPs per unit", flops / ROW_UNITS / 1e9, None, "GFLOP"),
            Line(
                "3",
                f"{name}: FLOPs of an equal number of units / baseline",
                flops / ROW_UNITS / per_unit,
                1.0,
                "x",
                "compute-controlled in the paper's sense",
            ),
            Line(
                "4",
                f"{name}: FLOPs of the same data / baseline",
                flops / work.tokens / per_unit,
                0.807,
                "x",
                "data-controlled; the published figure counts units",
            ),
        ]
    lst = paper_config("lst")
    ratio = row_flops(lst) / ROW_UNITS / per_unit
    rate = ABLATION_STEPS * BATCH_ROWS * ROW_UNITS / (HOURS * 3600 * GPUS)
    return [
        *lines,
        Line("3", "LST: whole run of 500k steps", budget * per_unit * ratio / 1e21, None, "ZFLOP"),
        Line("3", "baseline: steps with the FLOPs of LST's 500k", STEPS * ratio / 1e3, None, "k steps"),
        Line("A", "200k steps in 17 h on 32 H100: speed", rate / 1e3, None, "k units/s/GPU"),
        Line(
            "A",
            "the same as MFU, if the baseline was timed",
            100 * rate * per_unit / PEAK_BF16_H100,
            None,
            "%",
            "which model was timed is not stated",
        ),
        Line("A", "the same as MFU, if LST was timed", 100 * rate * per_unit * ratio / PEAK_BF16_H100, None, "%"),
    ]
