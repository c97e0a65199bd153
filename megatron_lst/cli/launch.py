"""`lst launch`: job scripts for SLURM, commands for Docker hosts."""

from pathlib import Path
from typing import Annotated

import typer

launch_app = typer.Typer(no_args_is_help=True, help="Put a run onto machines: SLURM, Docker.")

CONFIG = Annotated[str, typer.Argument(help="A YAML file, such as configs/demo.yaml")]
OVERRIDES = Annotated[list[str] | None, typer.Argument(help="key=value, such as parallel.tensor=2")]
NODES = Annotated[int, typer.Option(help="Machines")]
GPUS = Annotated[int, typer.Option(help="GPUs, and ranks, a machine; 0 trains on CPUs")]
PROCESSES = Annotated[int, typer.Option(help="Ranks a machine without GPUs")]
CPUS = Annotated[int, typer.Option(help="CPU cores a machine (0: the cluster's default)")]
TIME = Annotated[str, typer.Option(help="Limit of one start, such as 24:00:00; the job is requeued after it")]
SIGNAL = Annotated[int, typer.Option(help="Seconds before the limit at which the ranks save")]
PARTITION = Annotated[str, typer.Option(help="As sbatch has it")]
ACCOUNT = Annotated[str, typer.Option(help="As sbatch has it")]
QOS = Annotated[str, typer.Option(help="As sbatch has it")]
CONSTRAINT = Annotated[str, typer.Option(help="As sbatch has it")]
RESERVATION = Annotated[str, typer.Option(help="As sbatch has it")]
MEMORY = Annotated[str, typer.Option(help="Memory a machine, such as 500G")]
NAME = Annotated[str, typer.Option(help="The job's name")]
EXCLUSIVE = Annotated[bool, typer.Option("--exclusive", help="Whole machines")]
EXTRA = Annotated[list[str] | None, typer.Option("--sbatch", help="Another sbatch option: --sbatch=--gres=gpu:8")]
RETRIES = Annotated[int, typer.Option(help="Starts in a row without a new checkpoint before the job gives up")]
VENV = Annotated[str, typer.Option(help="Virtual environment to activate")]
CONTAINER = Annotated[str, typer.Option(help="Container image")]
RUNTIME = Annotated[str, typer.Option(help="What runs it: pyxis (enroot) or apptainer")]
MOUNTS = Annotated[list[str] | None, typer.Option("--mount", help="HOST:CONTAINER folder")]
MODULES = Annotated[list[str] | None, typer.Option("--module", help="Environment module to load")]
ENV = Annotated[list[str] | None, typer.Option("--env", help="NAME=value for the ranks")]
INTERFACE = Annotated[str, typer.Option(help="The cluster's network interface (empty: found by its route)")]
DRY_RUN = Annotated[bool, typer.Option("--dry-run", help="Print the script and submit nothing")]


@launch_app.command()
def slurm(
    config: CONFIG,
    overrides: OVERRIDES = None,
    nodes: NODES = 1,
    gpus: GPUS = 8,
    processes: PROCESSES = 1,
    cpus: CPUS = 0,
    time: TIME = "",
    signal_seconds: SIGNAL = 300,
    partition: PARTITION = "",
    account: ACCOUNT = "",
    qos: QOS = "",
    constraint: CONSTRAINT = "",
    reservation: RESERVATION = "",
    memory: MEMORY = "",
    name: NAME = "",
    exclusive: EXCLUSIVE = False,
    sbatch: EXTRA = None,
    retries: RETRIES = 3,
    venv: VENV = "",
    container: CONTAINER = "",
    runtime: RUNTIME = "pyxis",
    mounts: MOUNTS = None,
    modules: MODULES = None,
    env: ENV = None,
    interface: INTERFACE = "",
    dry_run: DRY_RUN = False,
) -> None:
    """Submit a training run; it survives time limits, preemption and lost nodes. --dry-run prints the script."""
    from megatron_lst.config import load_config
    from megatron_lst.launching.slurm import SlurmOptions, pin_run_dir, submit, train_script
    from megatron_lst.parallel.layout import check_layout

    options = SlurmOptions(
        nodes=nodes,
        gpus=gpus,
        processes=processes,
        cpus=cpus,
        time=time,
        signal_seconds=signal_seconds,
        partition=partition,
        account=account,
        qos=qos,
        constraint=constraint,
        reservation=reservation,
        memory=memory,
        name=name,
        exclusive=exclusive,
        extra=tuple(sbatch or ()),
        retries=retries,
        venv=venv,
        container=container,
        runtime=runtime,
        mounts=tuple(mounts or ()),
        modules=tuple(modules or ()),
        env=tuple(env or ()),
        interface=interface,
    )
    settings = load_config(config, overrides or ())
    check_layout(settings, options.nodes * options.ranks)
    script = train_script(config, pin_run_dir(config, overrides or [], settings), settings.run.dir, options)
    if dry_run:
        print(script, end="")
        return
    path = Path(settings.run.dir, "logs", "launch.sbatch")
    job = submit(script, path)
    print(f"submitted as job {job}: {path}")
    print(f"follow it: tail -f {path.parent}/slurm-{job}.txt {settings.run.dir}/events.log")


@launch_app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def slurm_prep(
    command: Annotated[list[str], typer.Argument(help="What `lst prep` takes, after --: -- units prep.yaml")],
    tasks: Annotated[int, typer.Option(help="Slices of the items: tasks of the array")] = 16,
    at_once: Annotated[int, typer.Option(help="Tasks that run at the same time (0: as many as fit)")] = 0,
    logs: Annotated[str, typer.Option(help="Folder of the tasks' logs")] = "logs",
    gpus: GPUS = 0,
    cpus: CPUS = 0,
    time: TIME = "",
    signal_seconds: SIGNAL = 60,
    partition: PARTITION = "",
    account: ACCOUNT = "",
    qos: QOS = "",
    memory: MEMORY = "",
    name: NAME = "",
    sbatch: EXTRA = None,
    retries: RETRIES = 3,
    venv: VENV = "",
    container: CONTAINER = "",
    runtime: RUNTIME = "pyxis",
    mounts: MOUNTS = None,
    modules: MODULES = None,
    env: ENV = None,
    dry_run: DRY_RUN = False,
) -> None:
    """Submit a stage of `lst prep` as an array; tasks that are preempted or die go on where they were."""
    from megatron_lst.cli.prep import check_slices
    from megatron_lst.launching.slurm import SlurmOptions, prep_script, submit

    check_slices(command)
    options = SlurmOptions(
        gpus=gpus,
        cpus=cpus,
        time=time,
        signal_seconds=signal_seconds,
        partition=partition,
        account=account,
        qos=qos,
        memory=memory,
        name=name,
        extra=tuple(sbatch or ()),
        retries=retries,
        venv=venv,
        container=container,
        runtime=runtime,
        mounts=tuple(mounts or ()),
        modules=tuple(modules or ()),
        env=tuple(env or ()),
    )
    script = prep_script(["prep", *command], tasks, at_once, logs, options)
    if dry_run:
        print(script, end="")
        return
    path = Path(logs, "launch-prep.sbatch")
    job = submit(script, path)
    print(f"submitted as job {job}, {tasks} tasks: {path}\nfollow it: tail -f {path.parent}/slurm-{job}_*.txt")


@launch_app.command()
def docker(
    config: CONFIG,
    overrides: OVERRIDES = None,
    hosts: Annotated[
        str, typer.Option(help="Hosts: node-a,node-b or node[01-04]; the first serves the rendezvous")
    ] = "localhost",
    image: Annotated[str, typer.Option(help="Image built from the Dockerfile")] = "megatron-lst",
    runs: Annotated[str, typer.Option(help="Folder for runs, shared by all hosts")] = "runs",
    data: Annotated[str, typer.Option(help="Folder with the shards")] = "data",
    configs: Annotated[str, typer.Option(help="Folder with the configuration")] = "configs",
    port: Annotated[int, typer.Option(help="Rendezvous port of the first host")] = 29400,
    gpus: Annotated[str, typer.Option(help="As docker has it: all, a number, none")] = "all",
    processes: Annotated[int, typer.Option(help="Ranks a host (0: one a GPU)")] = 0,
) -> None:
    """Print the command that each Docker host runs, once the configuration and its layout are checked; within the
    container the folders are runs/, data/ and configs/."""
    from megatron_lst.launching.docker import host_commands, seen_inside
    from megatron_lst.launching.hosts import expand_hosts
    from megatron_lst.parallel.layout import check_layout

    names = expand_hosts(hosts)
    inside = seen_inside(config, overrides or [], runs=runs, configs=configs)
    commands = host_commands(
        inside.config,
        inside.overrides,
        names,
        image=image,
        runs=str(Path(runs).resolve()),
        data=str(Path(data).resolve()),
        configs=inside.configs,
        port=port,
        gpus=gpus,
        processes=processes,
        run_dir=inside.run_dir,
    )
    if ranks := processes or (int(gpus) if gpus.isdigit() else 0):  # else each host counts its GPUs when it starts
        check_layout(inside.settings, len(names) * ranks)
    for host, command in commands:
        print(f"# {host}\n{command}")
