"""`lst launch slurm`: job scripts to read and to keep. Values are checked and quoted, never interpolated."""

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_lst.config import Config
from megatron_lst.errors import UserError
from megatron_lst.launching.templates import fill, is_run_dir_filled_in, words

_DIRECTIVE = re.compile(r"^[A-Za-z0-9_.,:;|&!*@/+=%\[\]()~-]+$")
_TIME = re.compile(r"^(\d+-)?\d{1,3}(:\d{1,2}){0,2}$")
_VARIABLE = re.compile(r"^([A-Za-z_][A-Za-z0-9_]*)=(.*)$")
_EXTRA = re.compile(r"^--[a-z][a-z-]*(=.+)?$")
_MODULE = re.compile(r"^[A-Za-z0-9_.+/-]+$")


@dataclass(frozen=True)
class SlurmOptions:
    """What the scheduler and the nodes are asked for; an empty value leaves a thing to the cluster's default.

    Attributes:
        nodes: machines of the job.
        gpus: GPUs, and ranks, a node; 0 trains on CPUs.
        processes: ranks a node where there are no GPUs.
        cpus: CPU cores a node.
        time: limit of one start, SLURM's form (`4:00:00`, `2-00`); the job is requeued when it is over.
        signal_seconds: so long before the limit the ranks are told to save.
        partition, account, qos, constraint, reservation, memory, name: as sbatch has them.
        exclusive: whole nodes.
        extra: further sbatch options, each `--name=value`.
        retries: starts in a row without a new checkpoint before the job gives up.
        venv: a virtual environment to activate. container: an image, run by `runtime` (pyxis or apptainer).
        mounts: `HOST:CONTAINER` folders; the working folder is always there.
        modules: environment modules to load. env: `NAME=value`.
        interface: network interface of the cluster (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME); "" finds it.
        work_dir: where the command runs; relative paths of the configuration start here.
    """

    nodes: int = 1
    gpus: int = 8
    processes: int = 1
    cpus: int = 0
    time: str = ""
    signal_seconds: int = 300
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    reservation: str = ""
    memory: str = ""
    name: str = ""
    exclusive: bool = False
    extra: tuple[str, ...] = ()
    retries: int = 3
    venv: str = ""
    container: str = ""
    runtime: str = "pyxis"
    mounts: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    interface: str = ""
    work_dir: str = ""

    def __post_init__(self) -> None:
        if min(self.nodes, self.processes, self.retries) < 1 or min(self.gpus, self.cpus) < 0:
            raise UserError("--nodes, --processes and --retries must be at least 1, --gpus and --cpus at least 0")
        if self.time and not _TIME.match(self.time):
            raise UserError(f"--time {self.time!r}: expected minutes, H:M:S or D-H, such as 24:00:00")
        if self.signal_seconds < 30:
            raise UserError("--signal-seconds: saving needs at least 30 seconds")
        if self.container and self.venv:
            raise UserError("--container and --venv: choose one; the container brings its own environment")
        if self.runtime not in ("pyxis", "apptainer"):
            raise UserError(f"--runtime {self.runtime!r}: expected pyxis or apptainer")
        for option in self.extra:
            if not _EXTRA.match(option):
                raise UserError(f"--sbatch {option!r}: expected --name=value, such as --gres=gpu:h100:8")
        for module in self.modules:
            if not _MODULE.match(module):
                raise UserError(f"--module {module!r}: not the name of a module")

    @property
    def ranks(self) -> int:
        """Ranks a node."""
        return self.gpus or self.processes


def train_script(config: str, overrides: Sequence[str], run_dir: str, options: SlurmOptions) -> str:
    """The job script of a training run.

    Args:
        config, overrides: as `lst train` takes them.
        run_dir: the configuration's `run.dir`.

    Raises:
        UserError: a value that cannot stand in a script.
    """
    work_dir = _work_dir(options)
    logs = Path(work_dir, run_dir, "logs")
    directives = _directives(options, options.name or "lst-train", logs / "slurm-%j.txt", ["--open-mode=append"])
    return fill(
        "slurm/train.sbatch",
        {
            "DIRECTIVES": directives,
            "COMMAND": words(["train", config, *overrides], "command"),
            "RUN_DIR": words([run_dir], "run.dir"),
            "WORK_DIR": words([work_dir], "--work-dir"),
            "PROCESSES": str(options.ranks),
            "RETRIES": str(options.retries),
            "THREADS": str(max(1, options.cpus // options.ranks) if options.cpus else 1),
            "SETUP": _setup(options),
            # a container sees /tmp, and of the node's other disks only what is mounted
            "SCRATCH": "/tmp" if options.container else '"${SLURM_TMPDIR:-${TMPDIR:-/tmp}}"',
            "SRUN": _container(options, [work_dir, str(Path(work_dir, run_dir))]),
            "PYTHON": _python(options),
        },
    )


def pin_run_dir(config: str, overrides: Sequence[str], settings: Config) -> list[str]:
    """The overrides, and `run.dir` as it is here where `~` or `$NAME` was filled in: on the nodes a variable may have
    another value, and the script's log and its run would part."""
    pinned = [f"run.dir={settings.run.dir}"] if is_run_dir_filled_in(config, overrides) else []
    return [*overrides, *pinned]


def prep_script(command: Sequence[str], tasks: int, at_once: int, logs: str, options: SlurmOptions) -> str:
    """The job script of an array that runs `lst prep ...`, a slice of the items each.

    Args:
        command: such as ["prep", "units", "configs/prep.yaml"].
        tasks: slices. at_once: tasks that run at the same time; 0: as many as fit.

    Raises:
        UserError: a value that cannot stand in a script.
    """
    if tasks < 1 or at_once < 0:
        raise UserError("--tasks must be at least 1, and --at-once at least 0")
    work_dir = _work_dir(options)
    array = f"--array=0-{tasks - 1}" + (f"%{at_once}" if at_once else "")
    output = Path(work_dir, logs) / "slurm-%A_%a.txt"
    directives = _directives(options, options.name or "lst-prep", output, [array, "--open-mode=append"])
    return fill(
        "slurm/prep.sbatch",
        {
            "DIRECTIVES": directives,
            "COMMAND": words(command, "command"),
            "TASKS": str(tasks),
            "WORK_DIR": words([work_dir], "--work-dir"),
            "RETRIES": str(options.retries),
            "SETUP": _setup(options),
            "SRUN": _container(options, [work_dir]),
            "PYTHON": _python(options),
        },
    )


def submit(script: str, path: Path) -> str:
    """Write the script and hand it to sbatch. Returns the job's id.

    Raises:
        UserError: there is no sbatch, or it refuses; says why.
    """
    path.parent.mkdir(parents=True, exist_ok=True)  # SLURM writes its log there and makes no folders
    path.write_text(script)
    try:
        done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise UserError(f"there is no sbatch on this machine; the script is {path}: submit it where SLURM is") from None
    if done.returncode:
        raise UserError(f"sbatch refused {path}: {done.stderr.strip()}")
    return done.stdout.strip().split(";")[0]


def _work_dir(options: SlurmOptions) -> str:
    return str(Path(options.work_dir or Path.cwd()).resolve())


def _directives(options: SlurmOptions, name: str, output: Path, more: Sequence[str]) -> str:
    if not str(output).isprintable() or any(character in str(output) for character in '"\\'):
        raise UserError(f"sbatch cannot write its log to {str(output)!r}: choose another run.dir")
    log = f"{str(output.parent).replace('%', '%%')}/{output.name}"  # SLURM fills in %j, %A, %a, and whatever looks so
    wanted = [
        ("job-name", name),
        ("nodes", str(options.nodes)),
        ("ntasks-per-node", "1"),
        ("gpus-per-node", str(options.gpus) if options.gpus else ""),
        ("cpus-per-task", str(options.cpus) if options.cpus else ""),
        ("mem", options.memory),
        ("time", options.time),
        ("partition", options.partition),
        ("account", options.account),
        ("qos", options.qos),
        ("constraint", options.constraint),
        ("reservation", options.reservation),
    ]
    lines = []
    for option, value in wanted:
        if value and not _DIRECTIVE.match(value):
            raise UserError(f"--{option} {value!r}: holds characters that no sbatch option has")
        if value:
            lines.append(f"--{option}={value}")
    lines += ["--exclusive"] if options.exclusive else []
    lines += [f"--signal=B:USR1@{options.signal_seconds}", "--requeue", f'--output="{log}"', *more]
    for option in options.extra:
        if not _DIRECTIVE.match(option):
            raise UserError(f"--sbatch {option!r}: holds characters that no sbatch option has")
        lines.append(option)
    return "\n".join(f"#SBATCH {line}" for line in lines)


def _setup(options: SlurmOptions) -> str:
    lines = [f"module load {words([module], '--module')} || exit 2" for module in options.modules]
    if options.venv:
        lines.append(f"source {words([str(Path(options.venv).resolve() / 'bin' / 'activate')], '--venv')} || exit 2")
    if options.container:
        lines.append("export PYTHONNOUSERSITE=1  # packages in ~/.local are not the image's")
    for entry in options.env:
        match = _VARIABLE.match(entry)
        if not match:
            raise UserError(f"--env {entry!r}: expected NAME=value")
        lines.append(f"export {match[1]}={words([match[2]], '--env')}")
    if options.interface:
        if not _MODULE.match(options.interface):
            raise UserError(f"--interface {options.interface!r}: not the name of a network interface")
        lines.append(f"export GLOO_SOCKET_IFNAME={options.interface} NCCL_SOCKET_IFNAME={options.interface}")
    return "\n".join(lines)


def _container(options: SlurmOptions, folders: Sequence[str]) -> str:
    """What stands between `srun` and Python.

    Args:
        folders: what the container must see where the host has it: the working folder, and a run folder elsewhere,
            whose checkpoints would otherwise go into the container and be lost with it.
    """
    if not options.container:
        return ""
    work_dir = folders[0]
    seen = [folder for folder in folders if folder == work_dir or not Path(folder).is_relative_to(work_dir)]
    mounts = list(dict.fromkeys([*options.mounts, *(f"{folder}:{folder}" for folder in seen)]))
    for mount in mounts:
        if "," in mount or ":" not in mount:
            raise UserError(f"--mount {mount!r}: expected HOST:CONTAINER, without a comma")
    if options.runtime == "pyxis":
        flags = [
            f"--container-image={options.container}",
            f"--container-mounts={','.join(mounts)}",
            f"--container-workdir={work_dir}",
            "--no-container-mount-home",
        ]
        return words(flags, "--container")
    binds = [f"--bind={mount}" for mount in mounts]
    gpu = ["--nv"] if options.gpus else []
    return words(["apptainer", "exec", *gpu, *binds, f"--pwd={work_dir}", options.container], "--container")


def _python(options: SlurmOptions) -> str:
    """Inside a container or an activated environment its own Python; else the one that wrote this script."""
    return "python" if options.container or options.venv else shlex.quote(sys.executable)
