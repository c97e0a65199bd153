"""What a command is pointed at: an exported model, or a run folder whose newest checkpoint goes through its engine."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_lst.config.load import load_run
from megatron_lst.config.schema import Config, ModelConfig, ParallelConfig, PatchingConfig
from megatron_lst.engines.scoring import score_on_all_ranks
from megatron_lst.errors import LstError, UserError
from megatron_lst.patching.row import Row
from megatron_lst.patching.strategies import Patcher, evaluation_patcher
from megatron_lst.vocabulary import Vocabulary

if TYPE_CHECKING:
    from megatron_lst.engines import Engine


@dataclass
class Scorer:
    """Something that scores rows.

    Attributes:
        name: the path that was given.
        score: rows -> log p(label) of every token; collective where there are several ranks.
        model, patching: as trained.
        units: U that its rows must have.
        metadata: fingerprints and provenance.
        config: a run's configuration; None for an export.
        is_writer: this process writes results.
        close: leave the process groups.
    """

    name: str
    score: Callable[[Sequence[Row]], list[np.ndarray]]
    vocabulary: Vocabulary
    model: ModelConfig
    patching: PatchingConfig
    units: int
    metadata: dict[str, Any] = field(default_factory=dict)
    config: Config | None = None
    is_writer: bool = True
    close: Callable[[], None] = lambda: None

    def patcher(self, aligned: bool | None = None) -> Patcher:
        """How speech is cut for it; `aligned`: see `evaluation_patcher`."""
        return evaluation_patcher(self.model, self.patching, aligned)


def is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file()


def require_target(path: Path) -> None:
    """Raises UserError where a path is neither a run nor an export."""
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder; name a run (run.dir) or an exported model")
    if not is_run(path) and not (path / "config.json").is_file():
        raise UserError(f"{path}: neither a run folder (config.yaml) nor an exported model (config.json)")


def open_scorer(
    path: Path, step: int | None = None, device: str | None = None, units: int | None = None, untrained: bool = False
) -> Scorer:
    """Open an export (config.json) or a run (config.yaml).

    Args:
        step: of a run's checkpoint; None: the newest.
        untrained: a run's initial weights instead of a checkpoint.
        device: of an export; None: CUDA where there is one.
        units: U of rows for an export; None: what it was trained on, or 4096 where it does not say.

    Raises:
        UserError: neither, or no checkpoint.
    """
    require_target(path)
    if is_run(path):
        return _open_run(path, step, untrained)
    from megatron_lst.gpu import gpu_is_usable
    from megatron_lst.inference import load_export

    export = load_export(path)
    model = export.model(device=device or ("cuda" if gpu_is_usable() else "cpu"))
    metadata = {**export.metadata, "kind": export.config.kind, "strategy": export.patching.strategy}
    return Scorer(
        str(path),
        model.score,
        export.vocabulary,
        export.config,
        export.patching,
        units or export.units or 4096,
        metadata,
    )


def open_engine(run: Path, step: int | None = None, untrained: bool = False) -> tuple["Engine", Config, int]:
    """A run's engine with the weights of a checkpoint: on the run's layout under a launcher, else on one rank.

    A run that trains may delete the checkpoint meanwhile. Then the newest one is read, unless a step was asked for.

    Returns:
        (engine, configuration in use, the checkpoint's step; 0 for the initial weights).

    Raises:
        UserError: there is no such checkpoint.
        DamagedDataError: it is not what was written.
    """
    from megatron_lst.engines import build_engine
    from megatron_lst.parallel.layout import world_size
    from megatron_lst.training.checkpoint import find_checkpoint
    from megatron_lst.training.checkpoint.verification import load_checkpoint
    from megatron_lst.training.ranks import Ranks

    found = None if untrained else find_checkpoint(run, step)
    config = load_run(run)
    if alone := world_size() == 1:
        config = dataclasses.replace(config, parallel=ParallelConfig())
    engine = build_engine(config, fresh=untrained)
    try:
        while found is not None:
            try:
                load_checkpoint(engine, found, config.checkpoint, Ranks())
                break
            except Exception as error:
                if found.is_complete():
                    raise
                gone = f"{found.path} was deleted while it was read, as checkpoint.keep={config.checkpoint.keep} has it"
                if step is not None or not alone:
                    raise UserError(f"{gone}; there are {_steps(run)}") from error
                print(f"{gone}; reading the newest one", file=sys.stderr)
                found = find_checkpoint(run)
    except BaseException:
        engine.close()
        raise
    return engine, config, found.step if found is not None else 0


def _steps(run: Path) -> str:
    from megatron_lst.training.checkpoint import complete_checkpoints

    return ", ".join(str(found.step) for found in complete_checkpoints(run)) or "none"


def _open_run(path: Path, step: int | None, untrained: bool) -> Scorer:
    engine, config, found = open_engine(path, step, untrained)
    return Scorer(
        name=str(path),
        score=lambda rows: score_on_all_ranks(engine, rows),
        vocabulary=config.vocabulary,
        model=config.model,
        patching=config.patching,
        units=config.data.units,
        metadata={
            "step": found,
            "kind": config.model.kind,
            "strategy": config.patching.strategy,
            **data_fingerprints(path, config),
        },
        config=config,
        is_writer=engine.is_writer,
        close=engine.close,
    )


def data_fingerprints(run: Path, config: Config) -> dict[str, Any]:
    """Tokenizer, codebook and licences of a run's sources, as it recorded them when it began.

    For runs of older versions, as its shards say them now; the names of the sources alone where those are not here.
    """
    from megatron_lst.training.provenance import describe_sources, read

    recorded = read(run)
    if recorded is not None or not config.data.sources:
        return recorded or {}
    try:
        return describe_sources(config)
    except LstError:
        return {"data": [source.name for source in config.data.sources]}
