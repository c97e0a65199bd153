"""Ranks of a job side by side: a table for people."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from megatron_lst.config.schema import Config
from megatron_lst.simulation.counting import FIRST_BATCH, RESUME, SAVE, START, STEP
from megatron_lst.simulation.job import STEPS, JobCounts, looked_at, simulate

NOTE = (
    "Each cell is of the worst rank that was looked at: the first of each pipeline stage and the last. Sockets follow "
    "from gloo's algorithms and are not counted. Files of a save and bytes on rank 0 are extrapolated from those, as "
    "if the ranks of a stage were alike."
)


def simulate_sizes(config: Config, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """For each number of ranks the worst rank and the whole job, as `summary` says.

    Raises:
        UserError: the layout cannot work on one of them.
    """
    return [summary([simulate(config, ranks, rank) for rank in looked_at(config, ranks)]) for ranks in sizes]


def summary(found: Sequence[JobCounts]) -> dict[str, Any]:
    """Of the ranks of one job that were looked at, the first of each stage and the last.

    Returns:
        `ranks`, `layout`; `worst`: the largest of each number of `JobCounts`; `phases`: phase -> the largest of each
        count; `extrapolated`: of the whole job, as if the ranks of a stage were alike: `files` and `written` of a save,
        ranks that write (`writers`), bytes that rank 0 hears in it (`gathered`). What a resume reads is not among them:
        of many ranks only as many read as there are tensors.
    """
    plain = [asdict(one) for one in found]
    which = ("ranks", "rank", "tensor", "pipeline")
    numbers = [key for key, value in plain[0].items() if isinstance(value, int) and key not in which]
    phases = {
        phase: {key: max(one["phases"][phase][key] for one in plain) for key in plain[0]["phases"][phase]}
        for phase in plain[0]["phases"]
    }
    stages, tensor = found[: found[0].pipeline], found[0].tensor
    writers = sum(one.writers for one in stages) * tensor
    most = max(found, key=lambda one: one.letters)
    return {
        "ranks": found[0].ranks,
        "layout": found[0].layout,
        "worst": {key: max(one[key] for one in plain) for key in numbers},
        "phases": phases,
        "extrapolated": {
            "files": sum(one.files * one.writers for one in stages) * tensor,
            "written": sum(one.written * one.writers for one in stages) * tensor,
            "writers": writers,
            "gathered": most.letters * writers,
        },
    }


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown: the worst rank of each size, and the whole job where it says so, then `NOTE`."""
    head = [
        "ranks", "layout", "groups", "peers", "sockets", "start: files", "first batch: files", "step: collectives",
        "save: files", "save: messages", "resume: files", "state GB", "step GB", "save GB", "load GB", "host GB",
        "job: save files", "on rank 0 MB",
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]

    def files(phase: dict[str, int]) -> str:
        return str(phase["opened"] + phase["listed"] + phase["stated"])

    for one in found:
        worst, phases, job = one["worst"], one["phases"], one["extrapolated"]
        cells = [
            str(one["ranks"]),
            one["layout"],
            *(str(worst[key]) for key in ("groups", "peers", "sockets")),
            files(phases[START]),
            files(phases[FIRST_BATCH]),
            f"{phases[STEP]['collectives'] / STEPS:.0f}",
            files(phases[SAVE]),
            str(phases[SAVE]["collectives"] + phases[SAVE]["store"]),
            files(phases[RESUME]),
            *(f"{worst[f'{key}'] / 1e9:.2f}" for key in ("state", "step_device", "save_device", "load_device")),
            f"{worst['save_host'] / 1e9:.2f}",
            str(job["files"]),
            f"{job['gathered'] / 1e6:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", NOTE])
