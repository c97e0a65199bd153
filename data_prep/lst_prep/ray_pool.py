"""Workers on a Ray cluster. Ray places them and says when they die; items, receipts and files are ours.

A worker is an actor that loads its model once and is handed one item at a time, so that no more items are in flight
than there are workers. It writes files and receipts to the shared storage and answers with a few counts; audio, units
and documents never pass through Ray's object store.
"""

import contextlib
import os
import socket
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from lst_prep.dealing import Dealing
from lst_prep.items import ItemWorker, Outcome, Receipts, Stage
from lst_prep.jobs import Jobs, StageResources
from lst_prep.strings import printable
from megatron_lst.errors import UserError
from megatron_lst.machine import usable_cores

_HIRE_EVERY = 2.0
"""Seconds between looks for nodes that have joined."""
_SAY_EVERY = 60.0
"""Seconds between reminders that there is no worker at all."""
_OPTIONS = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
"""What `ray.nodes` calls a resource, and what an actor's options call it."""
_OBJECT_STORE = 100 << 20
"""Bytes of shared memory for Ray's object store where Ray is started here; nothing large goes through it."""


def ray_module() -> ModuleType:
    """Ray, with its usage statistics switched off. Raises UserError when it is not installed."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read on import, and by what it starts
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError("jobs.engine=ray: Ray is not installed: pip install 'megatron-lst[ray]'") from error
    return ray


def connect(jobs: Jobs, quiet: bool = False) -> ModuleType:
    """Ray, connected to the cluster that `jobs.address` names, once a process.

    Where Ray is started here, it listens on 127.0.0.1 alone, and looks neither for its address nor for a cloud.

    Raises:
        UserError: no such cluster.
    """
    ray = ray_module()
    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {"address": jobs.address, "log_to_driver": False, "logging_level": "warning"}
    if jobs.address == "local":
        options |= {"_node_ip_address": "127.0.0.1", "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
        options["num_cpus"] = jobs.workers or usable_cores()
    elif jobs.address.startswith("ray://"):
        options.pop("log_to_driver")
    try:
        context = ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        if "InvalidAuthToken" in "".join(traceback.format_exception(error)):  # Ray says it in the error before this one
            raise UserError(
                f"jobs.address: the Ray cluster at {jobs.address!r} asks for a token: set RAY_AUTH_MODE=token, and "
                f"copy ~/.ray/auth_token of its head to this machine"
            ) from error
        raise UserError(
            f"jobs.address: no Ray cluster at {jobs.address!r} ({_reason(error)}); start one with `ray start --head`, "
            f"or take jobs.address=local for this machine alone"
        ) from error
    if not quiet:
        nodes = _nodes(ray)
        total = {kind: sum(node["Resources"].get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
        where = f"; dashboard: http://{context.dashboard_url}" if context.dashboard_url else ""
        said = f"{len(nodes)} nodes, {total['CPU']:g} CPUs, {total['GPU']:g} GPUs"
        print(f"prep: Ray {ray.__version__}, {said}{where}", file=sys.stderr)
    return ray


def _nodes(ray: ModuleType) -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


class _RayWorker:
    """The actor: an `ItemWorker` in the driver's folder, which says with every answer where it is."""

    def __init__(self, stage: tuple[Stage, Receipts], folder: str, shared: str) -> None:
        self._worker, self._folder, self._shared = ItemWorker(*stage), folder, Path(shared)
        import ray

        self._node = f"{socket.gethostname()}/{ray.get_runtime_context().get_node_id()[:6]}"

    def start(self) -> tuple[Outcome, str, int]:
        """Go to the driver's folder, see that the output folder is the same one, load the model."""
        return self._start(), self._node, os.getpid()

    def _start(self) -> Outcome:
        try:
            os.chdir(self._folder)
        except OSError as error:
            why = f"has no folder {self._folder} ({error.strerror}): paths start there on every node"
            return "user", f"node {self._node} {why}"
        if not self._shared.exists():
            why = f"does not see {self._shared.parent}: `out` must be on storage that all nodes share"
            return "user", f"node {self._node} {why}"
        kind, payload = self._worker.start()
        return kind, f"node {self._node}: {payload}" if isinstance(payload, str) else payload

    def do(self, item: int, following: int | None) -> tuple[Outcome, str, int]:
        return self._worker.do(item, following), self._node, os.getpid()


@dataclass
class _Hired:
    """One actor, the item that it has (None while it starts), and the one that it is given next, if known."""

    actor: Any
    item: int | None = None
    held: int | None = None
    node: str = ""
    where: str = ""


class RayPool:
    """Workers on every node that has room for one; more when nodes join.

    Raises:
        UserError: no cluster, or a stage that asks for what no node has.
    """

    def __init__(self, dealing: Dealing, jobs: Jobs, quiet: bool = False) -> None:
        self._dealing, self._jobs = dealing, jobs
        self._ray = connect(jobs, quiet)
        self._needs = self._resources()
        self._calls: dict[Any, _Hired] = {}
        self._looked, self._said = -_HIRE_EVERY, time.monotonic()

    def _resources(self) -> dict[str, float]:
        wanted = self._jobs.resources.get(self._dealing.stage.name, StageResources())
        gpus = wanted.num_gpus
        if gpus is None:
            there = any(node["Resources"].get("GPU", 0) >= 1 for node in _nodes(self._ray))
            gpus = 1.0 if self._dealing.stage.gpu and there else 0.0
        needs = {"CPU": wanted.num_cpus, "GPU": gpus, "memory": wanted.memory_gb * 1e9}
        return {kind: amount for kind, amount in needs.items() if amount}

    def _room(self) -> int:
        """Workers that the nodes hold which are there now."""
        room = 0
        for node in _nodes(self._ray):
            there, needs = node["Resources"], self._needs.items()
            room += min((int(there.get(kind, 0) / amount + 1e-6) for kind, amount in needs), default=1)
        return room

    def run(self, take: Callable[[int | None, Outcome, str], None]) -> None:
        """Do all items.

        Args:
            take: called with the item, what came of it, and the node.
        """
        ray, dealing = self._ray, self._dealing
        work = dealing.receipts.work
        shared = (work / f".shared-{uuid.uuid4().hex}.tmp").resolve()
        shared.parent.mkdir(parents=True, exist_ok=True)
        shared.touch()
        if not self._jobs.workers and not self._room():
            needs = ", ".join(f"{kind}: {amount:g}" for kind, amount in self._needs.items())
            raise UserError(
                f"jobs.resources.{dealing.stage.name}: no node of the cluster has what a worker needs ({needs}); set "
                f"jobs.workers to wait for nodes that an autoscaler starts"
            )
        try:
            stage = ray.put((dealing.stage, dealing.receipts))
            while dealing.waiting or any(hired.item is not None for hired in self._calls.values()):
                self._hire(stage, shared)
                ready, _ = ray.wait(list(self._calls), timeout=_HIRE_EVERY) if self._calls else ([], None)
                if not self._calls:
                    time.sleep(_HIRE_EVERY)
                if ready and len(self._calls) > 1:
                    ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
                for call in ready:
                    self._take(call, take)
        finally:
            shared.unlink(missing_ok=True)
            for hired in self._calls.values():
                self._dismiss(hired)

    def _hire(self, stage: Any, shared: Path) -> None:
        now = time.monotonic()
        if not self._dealing.waiting or now - self._looked < _HIRE_EVERY:
            return
        self._looked = now
        wanted = min(self._jobs.workers or self._room(), len(self._calls) + len(self._dealing.waiting))
        self._dealing.places = max(self._dealing.places, wanted)
        if any(hired.node for hired in self._calls.values()):
            self._said = now
        elif now - self._said > _SAY_EVERY:
            self._said = now
            print(f"prep {self._dealing.stage.name}: no node has room for a worker yet; waiting", file=sys.stderr)
        needs = {"num_cpus": 0.0, **{_OPTIONS[kind]: amount for kind, amount in self._needs.items()}}
        hiring = self._ray.remote(_RayWorker).options(
            max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD", **needs
        )
        for _ in range(wanted - len(self._calls)):
            hired = _Hired(hiring.remote(stage, os.getcwd(), str(shared)))
            self._calls[hired.actor.start.remote()] = hired

    def _take(self, call: Any, take: Callable[[int | None, Outcome, str], None]) -> None:
        ray, dealing, hired = self._ray, self._dealing, self._calls.pop(call)
        try:
            outcome, node, process = ray.get(call)
        except ray.exceptions.RayActorError as error:  # the worker or its node died, or cannot be reached
            self._dismiss(hired)
            self._looked = -_HIRE_EVERY
            place = f"on {hired.where}" if hired.where else "while it started"
            dealing.died(hired.item, f"{place}: {_reason(error)}", hired.held)
            return
        hired.node, hired.where = node, f"node {node}, process {process}, `ray logs actor --id {_id(hired.actor)}`"
        take(hired.item, dealing.settle(hired.item, outcome, hired.where), node)
        hired.item, hired.held = dealing.next(hired.held)
        if hired.item is None:
            self._dismiss(hired)
        else:
            self._calls[hired.actor.do.remote(hired.item, hired.held)] = hired

    def _dismiss(self, hired: _Hired) -> None:
        with contextlib.suppress(Exception):  # it may be dead already, or the cluster
            self._ray.kill(hired.actor)


def _id(actor: Any) -> str:
    return str(actor._actor_id.hex())


def _reason(error: Exception) -> str:
    """The last sentence that Ray says of it; it begins with the names of everything."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[-1] if lines else type(error).__name__)[:500]
