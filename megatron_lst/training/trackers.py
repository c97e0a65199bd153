"""Where curves and samples go besides metrics.jsonl: TensorBoard, and Weights & Biases where `run.wandb.project` asks.

Rank 0 has the only ones.  One that fails is told of, and has no more of this start; the run goes on.

    RUN/trackers.json    samples that were sent, the id of the run at Weights & Biases, the last step that it may have
"""

import contextlib
import html
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from megatron_lst.config.load import to_plain
from megatron_lst.config.schema import Config, WandbConfig
from megatron_lst.errors import UserError
from megatron_lst.files import read_json, write_json

STATE = "trackers.json"
_SOUNDS = (".wav", ".ogg", ".flac", ".mp3")
_TAGS: dict[str, str] = {
    "loss": "loss/all",
    "lr": "optimizer/lr",
    "grad_norm": "optimizer/grad_norm",
    "seconds": "speed/seconds",
    "units_per_second": "speed/units_per_second",
    "mfu": "speed/mfu",
}
"""Fields whose tag does not follow from their name, see `tag_of`."""
Tell = Callable[[str], None]


def tag_of(field: str) -> str:
    """GROUP/NAME of a field of metrics.jsonl: `loss/speech` of `loss_speech`, `heldout/text_loss` of
    `heldout_text_loss`; what neither is that nor stands in `_TAGS` counts data: `data/tokens`."""
    if field in _TAGS:
        return _TAGS[field]
    group, _, name = field.partition("_")
    # TensorBoard takes no ">".
    return f"{group}/{name}".replace("->", "_to_") if group in ("loss", "heldout", "ability") else f"data/{field}"


def scalars_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl by their tags."""
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, dict):  # raw_tokens, by source
            found |= {f"data/{key}/{source}": count for source, count in value.items()}
        elif key != "step" and isinstance(value, int | float) and not isinstance(value, bool):
            found[tag_of(key)] = value
    return found


class Tracker(Protocol):
    """Something that keeps a run's curves and samples. Any method may raise: then it gets no more."""

    name: str

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values of a step by tag; steps come in order."""

    def sample(self, step: int, name: str, sound: Path | None, text: str) -> None:
        """A sound file, what it says, or a text alone."""

    def close(self, failed: bool) -> None:
        """The run ends."""


class TensorBoard:
    """RUN/tensorboard, with the configuration in the text tab.

    Args:
        after_step: later steps of earlier starts are hidden.
    """

    name = "TensorBoard"

    def __init__(self, run: Path, after_step: int, config_yaml: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=after_step + 1)
        # The tab reads Markdown: indented lines are shown as they are.
        self._board.add_text("configuration", textwrap.indent(config_yaml, "    "), after_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._board.add_scalar(tag, value, step)

    def sample(self, step: int, name: str, sound: Path | None, text: str) -> None:
        if sound is not None:
            import soundfile
            import torch

            samples, rate = soundfile.read(sound, dtype="float32", always_2d=True)
            self._board.add_audio(f"samples/{name}", torch.from_numpy(samples.mean(1))[None], step, rate)
        if text:
            self._board.add_text(f"samples/{name}", textwrap.indent(text, "    "), step)

    def close(self, failed: bool) -> None:
        self._board.close()


class Wandb:
    """Weights & Biases: one run there for a run folder, however often it starts. RUN/wandb holds its files.

    A step is sent once: what an earlier start did past the checkpoint that this one goes on from stays as it was.
    """

    name = "Weights & Biases"

    def __init__(self, run: Path, config: Config, last_step: int, tell: Tell) -> None:
        """
        Args:
            last_step: of metrics.jsonl as the last start left it; -1: no step.
        """
        import wandb

        settings, self._wandb, self._path = config.run.wandb, wandb, run / STATE
        known = (read_json(self._path) or {}).get("wandb") or {}
        # Only a run that is known there can have steps.
        self._sent = max(known["sent"], last_step) if known else -1
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=settings.group,
            tags=list(settings.tags) or None,
            name=settings.name or run.name,
            id=known.get("id"),
            resume="allow" if known else None,
            dir=str(run),
            config=to_plain(config),
            mode=settings.mode,
            allow_val_change=True,
            settings=wandb.Settings(console="off", quiet=True, init_timeout=60),
        )
        self._keep()
        tell(f"Weights & Biases: {self._run.url or self._run.dir}")

    def _keep(self) -> None:
        write_json(self._path, (read_json(self._path) or {}) | {"wandb": {"id": self._run.id, "sent": self._sent}})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step <= self._sent:
            return
        self._run.log(dict(values), step=step)
        if step == 0:  # metrics.jsonl has no line that says so
            self._sent = 0
            self._keep()

    def sample(self, step: int, name: str, sound: Path | None, text: str) -> None:
        shown: Any
        if sound is not None:
            shown = self._wandb.Audio(str(sound), caption=text or None)
        else:
            shown = self._wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False)
        self._run.log({f"samples/{name}": shown}, step=max(step, self._sent))

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def require_trackers(settings: WandbConfig) -> None:
    """
    Raises:
        UserError: Weights & Biases is asked for and not installed.
    """
    if not settings.project:
        return
    with contextlib.suppress(ImportError):
        import wandb

        if hasattr(wandb, "init"):  # else a folder of that name, such as a run's own
            return
    raise UserError(f"run.wandb.project={settings.project}: wandb is not installed: pip install 'megatron-lst[wandb]'")


class Trackers:
    """All trackers of a run."""

    def __init__(self, run: Path, opening: Sequence[Callable[[], Tracker]] = (), tell: Tell = lambda sentence: None):
        """
        Args:
            opening: makes a tracker each; one whose library is not installed is left out.
            tell: takes a sentence when one fails.
        """
        self._run, self._tell, self._open = run, tell, list[Tracker]()
        for make in opening:
            try:
                self._open.append(make())
            except ModuleNotFoundError:  # TensorBoard; Weights & Biases has been asked for before
                continue
            except Exception as error:
                self._tell(f"a tracker cannot be opened ({_short(error)}): it has no steps of this start")

    def scalars(self, step: int, record: Mapping[str, Any]) -> None:
        values = scalars_of(record)
        self._each(lambda tracker: tracker.scalars(step, values))

    def samples(self, step: int) -> None:
        """Send what is new in RUN/samples."""
        if not self._open:
            return
        state = read_json(self._run / STATE) or {}
        sent: dict[str, int] = state.get("samples") or {}
        files = sorted(path for path in (self._run / "samples").glob("*") if path.suffix in (*_SOUNDS, ".txt"))
        sounds = {path.stem: path for path in files if path.suffix in _SOUNDS}
        for path in files:
            written = path.stat().st_mtime_ns
            if sent.get(path.name) == written or (path.suffix == ".txt" and path.stem in sounds):
                continue
            beside = path.with_suffix(".txt")
            text = beside.read_text(encoding="utf-8", errors="replace") if beside.is_file() else ""
            for tracker in self._open:
                try:
                    tracker.sample(step, path.stem, path if path.suffix in _SOUNDS else None, text)
                except Exception as error:  # the file's fault as well as the tracker's
                    self._tell(f"{tracker.name} does not take the sample {path.name} ({_short(error)})")
            sent[path.name] = written
        if sent:
            write_json(self._run / STATE, (read_json(self._run / STATE) or {}) | {"samples": sent})

    def close(self, failed: bool = False) -> None:
        self._each(lambda tracker: tracker.close(failed))
        self._open.clear()

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for tracker in list(self._open):
            try:
                action(tracker)
            except Exception as error:  # of someone else's library: a curve is not worth a run
                self._open.remove(tracker)
                self._tell(f"{tracker.name} fails ({_short(error)}): it has no more steps of this start")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def open_trackers(config: Config, after_step: int, last_step: int, config_yaml: str, tell: Tell) -> Trackers:
    """Those that a configuration asks for.

    Args:
        after_step: the step of the checkpoint that training goes on from; 0 for a new run.
        last_step: of metrics.jsonl as it was before this start; -1: none.
    """
    run = Path(config.run.dir)
    opening: list[Callable[[], Tracker]] = [lambda: TensorBoard(run, after_step, config_yaml)]
    if config.run.wandb.project:
        opening.append(lambda: Wandb(run, config, last_step, tell))
    return Trackers(run, opening, tell)
