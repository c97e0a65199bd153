"""A real SLURM cluster on this machine: slurmctld and some slurmd on loopback, munge, two partitions.

    python -m tests.slurm.cluster up FOLDER [NODES]     installs what is missing (Debian, root) and starts
    python -m tests.slurm.cluster down FOLDER

Partition `high` preempts `low` by requeueing; preempted jobs get SIGUSR1 and 20 seconds.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.support.debian import missing_programs

PACKAGES = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
CPUS = 8
CONFIG = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
CryptoType=crypto/munge
SlurmctldPort={port}
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
SlurmdTimeout=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,requeue_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=5
InactiveLimit=0
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL Default=NO MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
"""


class Cluster:
    """slurmctld, and slurmd for nodes n1, n2, ...; state, logs and pid files live in one folder."""

    def __init__(self, folder: Path, nodes: int = 2):
        self.folder, self.nodes = folder.resolve(), nodes
        self.environment = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Start everything and wait until the nodes are idle."""
        for name in ("controller", "log", "run", *(f"spool.n{i}" for i in range(1, self.nodes + 1))):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        with contextlib.closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        host = socket.gethostname().split(".")[0]
        lines = [
            f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + i} CPUs={CPUS} RealMemory=8000"
            for i in range(1, self.nodes + 1)
        ]
        config = CONFIG.format(folder=self.folder, host=host, port=port, nodes="\n".join(lines))
        (self.folder / "slurm.conf").write_text(config)
        self._start_munge()
        self._run(shutil.which("slurmctld") or "/usr/sbin/slurmctld")
        for i in range(1, self.nodes + 1):
            self.start_node(f"n{i}")
        self.wait(lambda: self._run("sinfo", "-h", "-p", "low", "-N", "-o", "%T").split() == ["idle"] * self.nodes, 60)

    def _start_munge(self) -> None:
        key = Path("/etc/munge/munge.key")
        if not key.exists() or not key.stat().st_size:
            key.write_bytes(os.urandom(1024))
            shutil.chown(key, "munge", "munge")
            key.chmod(0o400)
        run = Path("/run/munge")
        run.mkdir(exist_ok=True)
        shutil.chown(run, "munge", "munge")
        run.chmod(0o755)
        if subprocess.run(["munge", "-n"], capture_output=True).returncode:
            subprocess.run(["runuser", "-u", "munge", "--", "/usr/sbin/munged"], check=True)

    def start_node(self, name: str) -> None:
        """Start a node's slurmd (again)."""
        self._run(shutil.which("slurmd") or "/usr/sbin/slurmd", "-N", name)

    def kill_node(self, name: str) -> None:
        """kill -9 of a node's slurmd: the controller finds it silent after SlurmdTimeout."""
        os.kill(int((self.folder / "run" / f"slurmd.{name}.pid").read_text()), signal.SIGKILL)

    def stop(self) -> None:
        """End our own daemons, by their pid files, and the jobs that still run."""
        with contextlib.suppress(subprocess.SubprocessError):
            self._run("scancel", "--user=root")
            self.wait(lambda: not self._run("squeue", "-h"), 20)
        for file in (self.folder / "run").glob("*.pid"):
            with contextlib.suppress(ValueError, ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGTERM)

    def _run(self, *command: str, timeout: float = 30) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=timeout)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout

    def run(self, *command: str) -> str:
        """A SLURM command; its output."""
        return self._run(*command)

    def submit(self, *arguments: str) -> str:
        """`sbatch`; the job's id."""
        return self._run("sbatch", "--parsable", *arguments).strip()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` knows: JobState, Restarts, ExitCode, ..."""
        return dict(re.findall(r"(\w+)=(\S*)", self._run("scontrol", "show", "job", job)))

    def wait_for(self, job: str, *states: str, seconds: float = 120) -> dict[str, str]:
        """Wait until a job is in one of some states."""
        self.wait(lambda: self.job(job)["JobState"] in states, seconds, f"job {job} to be {' or '.join(states)}")
        return self.job(job)

    def wait(self, condition, seconds: float, what: str = "the cluster") -> None:
        """Wait until a condition holds.

        Raises:
            TimeoutError: it did not in time.
        """
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {seconds} s for {what}: {self._run('squeue', '-a')}")
            time.sleep(0.3)


if __name__ == "__main__":
    action, cluster = sys.argv[1], Cluster(Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 2)
    if action == "up":
        if reason := missing_programs(PACKAGES):
            sys.exit(reason)
        cluster.start()
        print(f"export SLURM_CONF={cluster.folder / 'slurm.conf'}")
    else:
        cluster.stop()
