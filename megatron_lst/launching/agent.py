"""Starts the ranks of one node: torchrun, with exit codes that mean something and signals that reach the ranks.

    python -m megatron_lst.launching.agent --processes 8 [--nodes 2 --node-rank 0 --address HOST --port PORT] \
        [--logs FOLDER] -- train CONFIG key=value

torchrun alone turns every failure into exit code 1 and ends its ranks when it gets SIGTERM. Here the exit code is
that of the rank that failed first (128 + the signal's number for a killed one), its last lines are shown first, and
SIGTERM, SIGINT, SIGHUP and SIGUSR1 are passed on: the ranks save and leave by themselves; what this process was started
to ignore (`nohup`) stays ignored. In a SLURM step the numbers of nodes come from SLURM.
"""

import argparse
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

from megatron_lst.errors import UserError
from megatron_lst.launching.hosts import expand_hosts
from megatron_lst.machine import environment_number, usable_cores
from megatron_lst.terminal import heard_signals, unfailing_output

_KNOWN_CODES = (2, 3, 4)
_TAIL_LINES = 20
_NEVER_SENT = "SIGURG"  # torchrun wants to be told of a signal to handle; this one means nothing here
_OUTSIDE = "192.0.2.1"  # an address that is nobody's (RFC 5737): the default route leads to it


def parse(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> tuple[argparse.Namespace, list[str]]:
    """Own options, and the command of `megatron_lst` after `--`.

    Raises:
        UserError: no command, or several nodes without an address.
    """
    own, command = list(arguments), []
    if "--" in own:
        own, command = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(prog="python -m megatron_lst.launching.agent", allow_abbrev=False)
    parser.add_argument("--processes", type=int, default=1, help="ranks on this node: one a GPU")
    parser.add_argument("--nodes", type=int, help="default: SLURM_NNODES, or 1")
    parser.add_argument("--node-rank", type=int, help="default: SLURM_NODEID, or 0")
    parser.add_argument("--address", help="a name or address of node 0; default: MASTER_ADDR, or SLURM's first node")
    parser.add_argument("--port", type=int, help="a free one on node 0; default: MASTER_PORT")
    parser.add_argument("--logs", help="folder for stdout and stderr of each rank")
    parser.add_argument("--module", default="megatron_lst", help="what each rank runs")
    options = parser.parse_args(own)
    if not command:
        raise UserError("nothing to run: put the command after `--`, such as `-- train configs/demo.yaml`")
    if options.nodes is None:
        options.nodes = environment_number("SLURM_NNODES", 1, environment, least=1)
    if options.node_rank is None:
        options.node_rank = environment_number("SLURM_NODEID", 0, environment)
    if options.port is None:
        options.port = environment_number("MASTER_PORT", 0, environment, least=1, most=65535)
    if options.address is None:
        options.address = environment.get("MASTER_ADDR", "") or _first_slurm_node(options.nodes, environment)
    if options.address and expand_hosts(options.address, "--address") != [options.address]:
        raise UserError(f"--address {options.address!r}: expected one host, node 0")
    if options.processes < 1 or options.nodes < 1 or not 0 <= options.port <= 65535:
        raise UserError("--processes and --nodes must be at least 1, and --port at most 65535")
    if options.nodes > 1 and not (options.address and options.port):
        raise UserError("several nodes need --address and --port (or MASTER_ADDR and MASTER_PORT) of node 0")
    if not 0 <= options.node_rank < options.nodes:
        raise UserError(f"--node-rank {options.node_rank}: must be 0 to {options.nodes - 1}")
    return options, command


def _first_slurm_node(nodes: int, environment: Mapping[str, str]) -> str:
    """Node 0 of a step that `srun` started by hand; empty outside one, or where one node needs no address."""
    named = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    return expand_hosts(named, "SLURM_JOB_NODELIST")[0] if named and nodes > 1 else ""


def torchrun_arguments(options: argparse.Namespace, command: Sequence[str]) -> list[str]:
    """What torchrun is called with."""
    arguments = [f"--nproc-per-node={options.processes}", f"--nnodes={options.nodes}", "--max-restarts=0"]
    if options.port:
        arguments += [
            f"--node-rank={options.node_rank}",
            f"--master-addr={options.address or '127.0.0.1'}",
            f"--master-port={options.port}",
        ]
    else:
        arguments.append("--standalone")
    if options.logs:
        arguments += [f"--log-dir={_folder(options)}", "--redirects=3", "--tee=3", "--local-ranks-filter=0"]
    return [*arguments, "-m", options.module, *command]


def interface_towards(address: str) -> str | None:
    """Name of the network interface that traffic to `address` leaves through; None where that cannot be told.

    Gloo otherwise takes the one that the host's own name resolves to, which Debian maps to 127.0.1.1. Node 0 meets
    that here too, as `address` is its own name: then the interface is that of the default route, which no other node
    would reach over loopback.
    """
    mine = _own_address_towards(address)
    if mine and _is_loopback(mine) and not (address == "localhost" or _is_loopback(address)):
        mine = _own_address_towards(_OUTSIDE)
    for name, addresses in psutil.net_if_addrs().items():
        if mine and any(entry.address.split("%")[0] == mine for entry in addresses):
            return name
    return None


def _own_address_towards(address: str) -> str | None:
    """The address that this host has towards another one; None where there is no route or no such name."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)  # UDP: chooses a route, sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # a name
        return False


def _pass_signals_on() -> None:
    def to_ranks(number: int) -> None:
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(number)

    def forward(number: int, frame: FrameType | None) -> None:
        to_ranks(number)

    def wait_for_usr1() -> None:
        while True:
            to_ranks(signal.sigwait({signal.SIGUSR1}))

    for number in heard_signals():
        if number != signal.SIGUSR1:
            signal.signal(number, forward)
    # Blocked here, it is blocked in the ranks from their first instruction on: one that comes while they still import
    # waits until they listen (`StopSignals`), where its default would kill them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    threading.Thread(target=wait_for_usr1, name="usr1", daemon=True).start()
    # torchrun would install handlers of its own, which end the ranks before they have saved
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = _NEVER_SENT


def _quiet_the_end() -> None:
    """Agents wait for each other at the end, and the one that serves the store may be gone first: no error at all."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    log = logging.getLogger("torch.distributed.elastic.agent.server.api")
    log.addFilter(lambda record: "exit barrier" not in record.getMessage())


def exit_code(codes: Sequence[int]) -> int:
    """One code for a node, from those of the ranks that failed by themselves, the first first.

    A code that names a cause wins, then a signal: ranks that lost a peer end with 1, sometimes in the same second.
    """
    causes = [c for c in codes if c in _KNOWN_CODES] or [c for c in codes if c < 0] or list(codes)
    return 128 - causes[0] if causes[0] < 0 else causes[0]


def run(arguments: Sequence[str]) -> int:
    """Start the ranks, wait, and give the exit code; it also goes to `exit_code` in the node's logs."""
    options, command = parse(arguments)
    code = _run(options, command)
    if options.logs:
        folder = _folder(options)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "exit_code").write_text(f"{code}\n")
    return code


def _folder(options: argparse.Namespace) -> Path:
    return Path(options.logs) / f"node{options.node_rank:04d}"


def _run(options: argparse.Namespace, command: Sequence[str]) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // options.processes)))
    interface = interface_towards(options.address) if options.nodes > 1 else None
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    _quiet_the_end()
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    parsed = torchrun.parse_args([*torchrun_arguments(options, command)])
    parsed.signals_to_handle = _NEVER_SENT
    _pass_signals_on()
    try:
        torchrun.run(parsed)
    except ChildFailedError as error:
        failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
        code = exit_code([failure.exitcode for _, failure in failures])
        rank, first = next((r, f) for r, f in failures if code in (f.exitcode, 128 - f.exitcode))
        how = f"was killed by {signal.Signals(-first.exitcode).name}" if first.exitcode < 0 else f"exit code {code}"
        print(f"rank {rank} on {socket.gethostname()} failed first: {how}", file=sys.stderr)
        for line in _tail(options, first.local_rank):
            print(f"  {line}", file=sys.stderr)
        return code
    finally:
        for number in heard_signals():  # a late one must not kill this process on its way out
            signal.signal(number, signal.SIG_IGN)
    return 0


def _tail(options: argparse.Namespace, local_rank: int) -> list[str]:
    """The last lines that a rank wrote to stderr."""
    if not options.logs:
        return []
    files = sorted(_folder(options).glob(f"*/attempt_*/{local_rank}/stderr.log"), key=lambda path: path.stat().st_mtime)
    return files[-1].read_text(errors="replace").splitlines()[-_TAIL_LINES:] if files else []


def main() -> None:
    """The command line."""
    with unfailing_output():
        try:
            code = run(sys.argv[1:])
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = error.exit_code
    sys.exit(code)


if __name__ == "__main__":
    main()
