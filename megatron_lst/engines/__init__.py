"""Engines train and score a model that is spread over ranks; `build_engine` makes the configured one."""

from collections.abc import Iterator
from contextlib import contextmanager

from megatron_lst.config.schema import Config
from megatron_lst.engines.base import Engine, StepResult
from megatron_lst.parallel.layout import ParallelLayout

__all__ = ["Engine", "StepResult", "build_engine", "open_engine"]


def build_engine(config: Config, *, layout: ParallelLayout | None = None, fresh: bool = True) -> Engine:
    """The engine that `engine.name` asks for, its process groups made and its weights initialised.

    Args:
        layout: of the ranks, where the caller has checked it already; None: checked here.
        fresh: draw the weights. False: they are not set at all until `load`, `load_weights` or `init_weights`, for a
            model of many billions takes minutes to draw.

    The world is the launcher's (WORLD_SIZE and so on, as torchrun sets them), or this process alone.

    Raises:
        UserError: the layout cannot work on this number of ranks, or an explicit accelerator is missing.
    """
    if config.engine.name == "deepspeed":
        from megatron_lst.engines.deepspeed.engine import DeepSpeedEngine

        return DeepSpeedEngine(config, layout=layout, fresh=fresh)
    from megatron_lst.engines.megatron.engine import MegatronEngine

    return MegatronEngine(config, layout=layout, fresh=fresh)


@contextmanager
def open_engine(config: Config, *, fresh: bool = True) -> Iterator[Engine]:
    """`build_engine` for a `with` statement: the engine is closed at its end, its process groups with it."""
    engine = build_engine(config, fresh=fresh)
    try:
        yield engine
    finally:
        engine.close()
