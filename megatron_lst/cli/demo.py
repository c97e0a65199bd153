"""`lst demo`: the main job from recorded speech to a model that speaks, each stage by the command a person would use.

Every stage is skipped when what it makes is there; a demo that was killed anywhere goes on when it is started again.
Stages that need nothing of each other run at once, with their share of the cores.
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from megatron_lst.cli.tables import print_table
from megatron_lst.errors import LstError, UserError

PREPARATION, LST, BASELINE = "configs/prep-demo.yaml", "configs/demo.yaml", "configs/demo-baseline.yaml"
DATA = Path("data/demo")
TEXT_PROMPT = "And the king said unto the people,"
PROMPT_SECONDS = 4


@dataclass(frozen=True)
class DemoStage:
    """One stage of the demo.

    Attributes:
        title: for people.
        made: the file that the stage makes last, or a test of whether it is done.
        command: arguments of `lst`, or what makes them when the stage begins.
    """

    title: str
    made: Path | Callable[[], bool]
    command: list[str] | Callable[[], list[str]]

    def is_done(self) -> bool:
        return self.made.exists() if isinstance(self.made, Path) else self.made()


def demo() -> None:
    """Recorded speech and text in, a trained LST out: prepare, train it and its baseline, evaluate, generate."""
    from megatron_lst.config import load_config

    if not Path(LST).is_file():
        raise UserError(f"{LST} is not here: run this from the repository's root, or `make -C FOLDER demo`")
    run, baseline = Path(load_config(LST).run.dir), Path(load_config(BASELINE).run.dir)
    all_stages = stages(run, baseline)
    times: dict[str, float] = {}
    began = time.monotonic()
    for number, together in enumerate(all_stages, 1):
        print(f"\n== {number}/{len(all_stages)} {' | '.join(stage.title for stage in together)}", flush=True)
        left = [stage for stage in together if not stage.is_done()]
        for stage in together:
            if stage not in left:
                print(f"   {stage.title}: done before", flush=True)
        if left:
            times |= run_together(left)
    if times:
        times["all"] = time.monotonic() - began
    _summary(run, baseline, times)


def stages(run: Path, baseline: Path) -> list[tuple[DemoStage, ...]]:
    """What is made, in order; the stages of one tuple need nothing of each other."""
    plots, samples, exported = run / "plots", run / "samples", run / "export"
    codebook = str(DATA / "codebook.safetensors")

    def evaluation(title: str, folder: Path, out: Path, *more: str) -> DemoStage:
        short = ["--prompt-words", "12", "--continuation-words", "8"]
        short += ["--direction", "S->S", "--direction", "T->T"]
        return DemoStage(title, out / "results.json", ["eval", str(folder), "--out", str(out), *short, *more])

    def speech_sample() -> list[str]:
        units = ["--units", _held_out_prompt(), "--to", "speech", "--max-tokens", "150"]
        return ["generate", str(exported), *units, "--codebook", codebook, "--out", str(samples / "speech.wav")]

    text_sample = ["--text", TEXT_PROMPT, "--to", "text", "--max-tokens", "60", "--save", str(samples / "text.txt")]
    measured = ["--prompt", "100", "--tokens", "100", "--out", str(run / "speed.json")]
    return [
        (DemoStage("prepare speech and text", DATA / "summary.json", ["prep", "run", PREPARATION]),),
        (
            DemoStage(
                "a picture of one row",
                plots / "row.png",
                ["data", "inspect", LST, "--row", "1", "--units", "20", "--out", str(plots / "row.png")],
            ),
        ),
        (
            DemoStage("train the LST", lambda: _finished(run), ["train", LST]),
            DemoStage("train its unpatched baseline", lambda: _finished(baseline), ["train", BASELINE]),
        ),
        (
            evaluation("evaluate the LST", run, run / "eval"),
            evaluation("evaluate the baseline", baseline, baseline / "eval"),
            evaluation("evaluate the untrained LST", run, run / "eval-untrained", "--untrained"),
        ),
        (DemoStage("measure generation", run / "speed.json", ["eval", "speed", LST, BASELINE, *measured]),),
        (
            DemoStage(
                "export the LST",
                exported / "config.json",
                ["export", str(run), str(exported), "--results", str(run / "eval")],
            ),
        ),
        (
            DemoStage("continue speech", samples / "speech.wav", speech_sample),
            DemoStage("continue text", samples / "text.txt", ["generate", str(exported), *text_sample]),
        ),
        (DemoStage("a page of all this", run / "report.html", ["report", str(run), str(baseline)]),),
    ]


def _finished(run: Path) -> bool:
    from megatron_lst.training.resilience import outcome

    said = outcome.read(run)
    return said is not None and said["state"] == "finished"


def _held_out_prompt() -> str:
    """The first seconds of a held-out recording, as units."""
    from megatron_lst.documents.shards import ShardSet

    shards = ShardSet.open(DATA / "heldout-speech")
    assert shards.codec is not None, "a set of speech"
    ids = shards.get(0).speech_ids[: int(PROMPT_SECONDS * shards.codec.rate)]
    return " ".join(str(int(u)) for u in ids)


def run_together(stages: Sequence[DemoStage]) -> dict[str, float]:
    """Run stages that need nothing of each other, as many at once as there are cores.

    One alone has the terminal and every core; several share the cores, and their lines begin with who says them.

    Returns:
        Seconds of each, by title.

    Raises:
        LstError: a stage failed; the others that run at its side are finished first.
    """
    from megatron_lst.machine import usable_cores

    commands = [stage.command if isinstance(stage.command, list) else stage.command() for stage in stages]
    for stage, command in zip(stages, commands, strict=True):
        print("   lst " + " ".join(w if len(w) < 60 else f"'{w[:40]}...'" for w in command), flush=True)
        if isinstance(stage.made, Path):
            stage.made.parent.mkdir(parents=True, exist_ok=True)
    at_once = min(len(stages), usable_cores())
    environment = dict(os.environ)
    if at_once > 1:
        environment |= {"OMP_NUM_THREADS": str(max(1, usable_cores() // at_once)), "PYTHONUNBUFFERED": "1"}

    def run(stage: DemoStage, command: list[str]) -> tuple[int, float]:
        began = time.monotonic()
        whole = [sys.executable, "-m", "megatron_lst", *command]
        if at_once == 1:
            code = subprocess.run(whole, env=environment, check=False).returncode
        else:
            code = _prefixed(whole, environment, stage.title)
        return code, time.monotonic() - began

    with ThreadPoolExecutor(at_once) as pool:
        ended = list(pool.map(run, stages, commands))
    for stage, (code, _) in zip(stages, ended, strict=True):
        if code:
            error = LstError(f"the stage '{stage.title}' failed with exit code {code}; its message stands above")
            error.exit_code = code
            raise error
    return {stage.title: seconds for stage, (_, seconds) in zip(stages, ended, strict=True)}


def _prefixed(command: list[str], environment: dict[str, str], title: str) -> int:
    """Run a command whose lines are printed whole, each after a title. Returns its exit code."""
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(f"   {title}: {line}", end="", flush=True)
        except BaseException:
            process.terminate()
            raise
    return process.returncode


def _summary(run: Path, baseline: Path, times: dict[str, float]) -> None:
    """What was made, how long it took, how good it is, and where everything lies."""
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.table import Table

    from megatron_lst.cli.demo_table import Model, comparison
    from megatron_lst.files import write_json, write_text

    console = Console()
    if times:
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        table = Table("stage", "time", title=f"time on {os.cpu_count()} cores; largest process {peak:.1f} GB")
        for title, seconds in times.items():
            table.add_row(title, f"{int(seconds) // 60}:{int(seconds) % 60:02d}")
        print_table(table, console)
        write_json(run / "demo.json", {"seconds": times, "peak_gigabytes": peak, "cores": os.cpu_count()})
    page = comparison(
        [
            Model("LST", run / "eval", run, "lst"),
            Model("unpatched baseline", baseline / "eval", baseline, "baseline"),
            Model("untrained LST", run / "eval-untrained"),
        ],
        run / "speed.json",
    )
    write_text(run / "demo.md", page)
    console.print(Markdown(page))
    for what, path in (
        ("a page to look at and listen to", run / "report.html"),
        ("the same of the preparation", DATA / "report.html"),
        ("one row: units, words, patches", run / "plots/row.png"),
        ("speech, continued by the model", run / "samples/speech.wav"),
        ("text, continued by the model", run / "samples/text.txt"),
        ("this table", run / "demo.md"),
        ("metrics, one line a step", run / "metrics.jsonl"),
        ("the model, for transformers", run / "export"),
        ("its baseline", baseline),
    ):
        print(f"{what:32s} {path}")
    print("\nNext, your own data and your own cluster: docs/data-prep.md, docs/training.md, docs/clusters.md")
