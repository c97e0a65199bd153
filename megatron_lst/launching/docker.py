"""`lst launch docker`: the command of each host, for a person to paste or for ssh to run."""

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_lst.config import Config, load_config
from megatron_lst.config.paths import told
from megatron_lst.config.shipped import find
from megatron_lst.errors import UserError
from megatron_lst.launching.templates import is_run_dir_filled_in, template_folder, words

_GPUS = re.compile(r'all|none|[1-9][0-9]*|"?device=[A-Za-z0-9,:-]+"?')


@dataclass(frozen=True)
class Inside:
    """A run as the container sees it.

    Attributes:
        settings: the configuration, checked.
        config, overrides: what `lst train` is called with there.
        configs: the host's folder that is `configs/` there.
        run_dir: a run folder that has to be mounted by itself; empty: it is in `runs/`.
    """

    settings: Config
    config: str
    overrides: tuple[str, ...]
    configs: str
    run_dir: str


def seen_inside(config: str, overrides: Sequence[str], *, runs: str, configs: str) -> Inside:
    """Load the configuration here, and find what the container calls it, whose folders are `configs/` and `runs/`.

    Args:
        config: a file of this host, or a path that begins with `configs/`, as it is seen in the container.
        runs, configs: folders of this host.

    Raises:
        UserError: the configuration is wrong, or the run's folder would be lost with the container.
    """
    file = Path(config)
    if file.parts[:1] == ("configs",) and (Path(configs) / Path(*file.parts[1:])).is_file():
        file = Path(configs) / Path(*file.parts[1:])
    folder, shipped = Path(configs).resolve(), find(file)
    if shipped:  # it is in the image, too
        file, inside = shipped
    else:
        file = file.resolve()
        folder = folder if file.is_relative_to(folder) else file.parent
        inside = Path("configs") / file.relative_to(folder)
    settings: Config = load_config(file, overrides, at=inside)  # paths count from where the container has the file
    run, shared, mounted = Path(settings.run.dir), Path(runs).resolve(), ""
    here = Path(os.path.abspath(load_config(file, overrides, at=inside if shipped else None).run.dir))
    if here.is_relative_to(shared):
        run = Path("runs") / here.relative_to(shared)
    elif run.is_absolute():
        mounted = str(run)
    elif (".." in run.parts) or run.parts[:1] != ("runs",):
        raise UserError(
            f"run.dir={told(settings.run.dir)}: the container is removed at the end, and only runs/ outlives it: give "
            "run.dir=runs/... behind the configuration, or an absolute path"
        )
    pinned = str(run) != settings.run.dir or is_run_dir_filled_in(file, overrides)
    given = (*overrides, f"run.dir={run}") if pinned else tuple(overrides)
    return Inside(settings, config if shipped else str(inside), given, str(folder), mounted)


def host_commands(
    config: str,
    overrides: Sequence[str],
    hosts: Sequence[str],
    *,
    image: str,
    runs: str,
    data: str,
    configs: str,
    port: int = 29400,
    gpus: str = "all",
    processes: int = 0,
    run_dir: str = "",
) -> list[tuple[str, str]]:
    """(host, shell command) for each host; the first one serves the rendezvous.

    Args:
        config, overrides: as `lst train` takes them, seen from within the container.
        runs, data, configs: folders of the hosts; `runs` is shared by all of them.
        processes: ranks a host; 0: one a GPU.
        run_dir: a run folder outside `runs`, which the container sees at the same path.

    Raises:
        UserError: no host, the same host twice, or a value that cannot stand in a command.
    """
    if not hosts or len(set(hosts)) != len(hosts):
        raise UserError(f"hosts {', '.join(hosts) or '(none)'}: expected each host once")
    if not _GPUS.fullmatch(gpus):
        raise UserError(f"--gpus {gpus!r}: expected all, none, a number or device=0,1, as docker has it")
    if not 1 <= port <= 65535 or processes < 0:
        raise UserError(f"--port {port} must be 1 to 65535, and --processes {processes} at least 0")
    if gpus == "none" and not processes:
        raise UserError("--gpus none: say how many ranks a host runs, with --processes")
    script = template_folder() / "docker" / "train.sh"
    commands = []
    for rank, host in enumerate(hosts):
        values = {
            "IMAGE": image,
            "NODES": str(len(hosts)),
            "NODE_RANK": str(rank),
            "ADDRESS": hosts[0],
            "PORT": str(port),
            "RUNS": runs,
            "DATA": data,
            "CONFIGS": configs,
            "GPUS": gpus,
        }
        if processes:
            values["PROCESSES"] = str(processes)
        if run_dir:
            values["RUN_DIR"] = run_dir
        assigned = " ".join(f"{name}={words([value], name.lower())}" for name, value in values.items())
        commands.append((host, f"{assigned} {shlex.quote(str(script))} {words([config, *overrides], 'command')}"))
    return commands
