"""Figures, results, samples, configuration, checkpoints and events of a run's page."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_lst.config.load import build, read_yaml
from megatron_lst.errors import LstError
from megatron_lst.evaluation.report import load_results
from megatron_lst.files import read_json
from megatron_lst.pages import Listing, Paragraph, Player, Players, Sound, Sounds, Table
from megatron_lst.pages.blocks import Block
from megatron_lst.training.checkpoint import complete_checkpoints
from megatron_lst.training.provenance import FILE, FOLDER
from megatron_lst.training.report.curves import Records, summarise
from megatron_lst.training.resilience.events import read_events
from megatron_lst.vocabulary import Vocabulary

_EVENTS = 300
"""The last ones are shown."""
_SAMPLES = 24
_SOUNDS = (".wav", ".ogg", ".flac", ".mp3")


def facts(records: Records) -> list[tuple[str, str]]:
    """The large numbers at the top."""
    if not records:
        return []
    found = summarise("", records)
    minutes, seconds = divmod(round(found["seconds"]), 60)
    shown = [
        (f"{found['steps']:,}", "steps"),
        (_number(found["loss"]), "loss, mean of the last tenth"),
        (_number(found["loss_speech"]), "on speech tokens"),
        (_number(found["loss_text"]), "on text pieces"),
        (f"{found['units_per_second']:,.0f}", "units a second, median"),
        (f"{found['tokens']:,}", "raw tokens read"),
        (f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}", "in steps, h:mm:ss"),
    ]
    return [(value, what) for value, what in shown if value != "-"]


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return f"{value:,.4g}" if math.isfinite(value) else "-"


def vocabulary_of(run: Path) -> str:
    """Text pieces and codec of a run, for people; empty: its configuration is not there."""
    path = run / "config.yaml"
    return str(build(Vocabulary, read_yaml(path).get("vocabulary", {}))) if path.is_file() else ""


def evaluations(runs: Sequence[Path]) -> list[Block]:
    """What `lst eval` wrote into the run folders, a column each: choices, and measures of held-out documents."""
    blocks: list[Block] = []
    columns: dict[str, dict[str, Any]] = {}
    for path in (path for run in runs for path in sorted(run.glob("*/results.json"))):
        try:
            found = load_results(path)
            columns[f"{path.parents[1].name}/{path.parent.name}"] = {
                "tasks": _choices(found),
                "held_out": found["held_out"],
            }
        except (LstError, KeyError, TypeError, AttributeError) as error:
            blocks.append(Paragraph(f"{path} cannot be shown ({error}).", warning=True))
    if not columns:
        return [*blocks, Paragraph(f"No results yet: `lst eval {runs[0]}` writes them.")]
    tasks = dict.fromkeys(key for found in columns.values() for key in found["tasks"])
    rows = [[*task, *(found["tasks"].get(task, "-") for found in columns.values())] for task in tasks]
    about = "Choices by mean log-probability a token: right, % [95 % interval]"
    measures = dict.fromkeys(key for found in columns.values() for key in found["held_out"])
    values = [[key.replace("_", " "), *(_number(found["held_out"].get(key)) for found in columns.values())]
              for key in measures]  # fmt: skip
    return [
        *blocks,
        Table(["task", "direction", "items", "chance, %", *columns], rows, about),
        Table(["measure", *columns], values, "Held-out documents"),
    ]


def _choices(results: dict[str, Any]) -> dict[tuple[str, str, str, str], str]:
    """(task, direction, items, chance) -> the share that is right."""
    found = {}
    for task in results["tasks"]:
        right = task["accuracy"]["mean"]
        shown = f"{100 * right['mean']:.1f} [{100 * right['low']:.1f}, {100 * right['high']:.1f}]" if right else "-"
        found[task["task"], task["direction"], f"{task['items']:,}", f"{100 * task['chance']:.1f}"] = shown
    return found


def samples(run: Path, sounds: Sounds) -> list[Block]:
    """Sound and text files in RUN/samples; a text beside a sound of the same name is what it says."""
    files = sorted(path for path in (run / "samples").glob("*") if path.is_file())
    heard = [path for path in files if path.suffix in _SOUNDS][:_SAMPLES]
    stems = {path.stem for path in heard}
    players = []
    for path in heard:
        sound = sounds.read(path)
        text = next((_text(other) for other in files if other.stem == path.stem and other.suffix == ".txt"), "")
        if isinstance(sound, Sound):
            players.append(Player(path.name, text=text, sound=sound))
        else:
            players.append(Player(path.name, text=text, note=f"no sound: {sound}"))
    blocks: list[Block] = [Players("Speech", players)] if players else []
    texts = [path for path in files if path.suffix == ".txt" and path.stem not in stems][:_SAMPLES]
    blocks += [Players("Text", [Player(path.name, text=_text(path)) for path in texts])] if texts else []
    return blocks or [Paragraph(f"No samples yet: `lst generate EXPORT --out {run}/samples/NAME.wav` writes them.")]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")[:2000]


def configuration(run: Path) -> list[Block]:
    """config.yaml, and what the run's ids mean."""
    about = read_json(run / FOLDER / FILE) or {}
    rows = [["vocabulary", _vocabulary(run)]]
    for key in ("tokenizer", "codebook"):
        if about.get(key):
            rows.append([key, ", ".join(f"{k} {v}" for k, v in about[key].items() if not isinstance(v, dict | list))])
    rows += [[key, "; ".join(map(str, about[key]))] for key in ("data", "licenses", "attributions") if about.get(key)]
    text = (run / "config.yaml").read_text(encoding="utf-8", errors="replace")
    return [Table(["", "what the run's ids mean"], rows), Listing("config.yaml", text)]


def _vocabulary(run: Path) -> str:
    try:
        return vocabulary_of(run)
    except LstError as error:
        return str(error)


def checkpoints(run: Path) -> list[Block]:
    """The complete checkpoints."""
    rows = []
    for found in complete_checkpoints(run):
        loss = found.heldout_loss()
        kept = "kept" if found.kept else ""
        rows.append([found.path.name, f"{found.size() / 1e6:,.1f} MB", "-" if loss is None else f"{loss:.4f}", kept])
    if not rows:
        return [Paragraph("No complete checkpoint yet.")]
    return [Table(["checkpoint", "size", "held-out loss", ""], rows)]


def events(run: Path) -> list[Block]:
    """The last lines of events.log."""
    found = read_events(run / "events.log")
    rows = [
        [
            f"{datetime.fromtimestamp(event.time, UTC):%Y-%m-%d %H:%M:%S}",
            "-" if event.step is None else f"{event.step:,}",
            event.kind,
            event.message,
        ]
        for event in found[-_EVENTS:]
    ]
    if not rows:
        return [Paragraph("No event yet.")]
    more = f"The last {_EVENTS} of {len(found):,} events; times in UTC" if len(found) > _EVENTS else "Times in UTC"
    return [Table(["time", "step", "kind", "what"], rows, more)]
