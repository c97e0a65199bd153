"""How the work of a preparation is spread: configuration that the results do not depend on."""

from dataclasses import dataclass, field
from typing import Annotated

from megatron_lst.errors import UserError
from megatron_lst.values import Count, NotNegative, Range

STAGES = (
    "text-heldout", "cut", "codebook", "units", "align", "text-hashes", "text", "shards", "import-check",
    "import-shards", "chat", "publish",
)  # fmt: skip
"""Stages of items, of all preparations."""


@dataclass
class StageResources:
    """What one worker of a stage needs, with `jobs.engine: ray`."""

    num_cpus: Annotated[float, Range(0, 1024)] = 1.0
    """CPU cores."""
    num_gpus: Annotated[float, Range(0, 64)] | None = None
    """GPUs; a fraction shares one, as 0.25 for four workers a GPU. null: 1 for a neural model where the cluster has
    GPUs, else 0."""
    memory_gb: NotNegative = 0.0
    """Memory in GB that a node must have free of other workers; 0: not asked for."""


@dataclass
class Jobs:
    """Who does the items of work."""

    engine: str = "local"
    """`local`: processes on this machine. `ray`: the nodes of a Ray cluster, see ray.md."""
    address: str = "auto"
    """ray: `auto` (the cluster of this machine or of RAY_ADDRESS), `local` (Ray is started here, for this machine
    alone), `HOST:PORT`, or `ray://HOST:10001` (Ray's client, from outside the cluster)."""
    workers: Annotated[int, Range(0, 1 << 16)] = 0
    """Processes on this machine; 0: one a core (one a GPU for GPU stages). ray: workers in all; 0: as many as the nodes
    that are there hold, and more when nodes join."""
    attempts: Count = 3
    """An item whose worker dies this often is given up and named."""
    resources: dict[str, StageResources] = field(default_factory=dict)
    """ray: stage -> what a worker of it needs, where that is not the default."""

    def __post_init__(self) -> None:
        if self.engine not in ("local", "ray"):
            raise UserError(f"jobs.engine: {self.engine!r} is not one of local, ray")
        for name in self.resources:
            if name not in STAGES:
                raise UserError(f"jobs.resources: {name!r} is no stage; stages are {', '.join(STAGES)}")
