"""A private SLURM cluster on loopback, of one node or several, in a directory of its own; not a test."""

from __future__ import annotations

import getpass
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
FirstJobId={first}
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={spool}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
GresTypes=gpu
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=2000 Gres=gpu:2 State=UNKNOWN\n"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


class Cluster:
    """munged, slurmctld and a slurmd for each node; `environment` makes SLURM's commands speak to them.

    Of several nodes each has an address as its name, since Lightning asks the resolver for the first; several on one
    machine need a slurmd that was built for it, as Debian's is.
    """

    def __init__(self, folder: Path, cpus: int = 4, nodes: int = 1):
        self.folder = folder
        self.nodes = ["localhost"] if nodes == 1 else [f"127.0.0.{number}" for number in range(1, nodes + 1)]
        (folder / "state").mkdir(parents=True)
        self.spool = Path(tempfile.mkdtemp(prefix="slurm-"))  # of sockets, whose paths have 108 bytes at most
        for node in self.nodes:
            (self.spool / node).mkdir()
        folder.chmod(0o755)
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        port = _ports(1 + nodes)
        first = 1 + secrets.randbelow(9000)  # Lightning's port follows the job id, and two clusters must not meet there
        text = CONFIGURATION.format(folder=folder, user=getpass.getuser(), first=first, port=port, spool=self.spool)
        for place, node in enumerate(self.nodes, port + 1):
            text += NODE.format(name=node, port=place, cpus=cpus)
        (folder / "slurm.conf").write_text(text)
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")  # for SLURM to count
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        folder = self.folder
        places = [f"--{name}={folder}/munge{end}" for name, end in (("socket", ".socket"), ("key-file", ".key"))]
        places += [f"--{name}={folder}/munged.{end}" for name, end in (("pid-file", "pid"), ("log-file", "log"))]
        self._run("munged", "--force", *places, f"--seed-file={folder}/munged.seed")
        self._run("slurmctld", "-f", f"{folder}/slurm.conf")
        for node in self.nodes:
            self._run("slurmd", *(["-N", node] if len(self.nodes) > 1 else []), "-f", f"{folder}/slurm.conf")
        for _ in range(200):
            if set(self._run("sinfo", "-h", "-N", "-o", "%T", check=False).split()) == {"idle"}:
                return
            time.sleep(0.1)
        self.stop()
        raise RuntimeError("a node does not come up:\n" + (folder / "slurmctld.log").read_text())

    def stop(self) -> None:
        """End the daemons, all at once, by the process numbers that they wrote, and wait for them."""
        ending = []
        for daemon in (*(f"slurmd.{node}" for node in self.nodes), "slurmctld", "munged"):
            path = self.folder / f"{daemon}.pid"
            pid = int(path.read_text()) if path.is_file() and path.read_text().strip() else 0
            comm = Path(f"/proc/{pid}/comm")
            if comm.is_file() and comm.read_text().strip() == daemon.partition(".")[0]:
                os.kill(pid, signal.SIGTERM)
                ending.append(comm)
        for _ in range(100):
            if not any(comm.exists() for comm in ending):
                break
            time.sleep(0.1)
        shutil.rmtree(self.spool)

    def _run(self, *command: str, check: bool = True) -> str:
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def sbatch(self, script: Path) -> str:
        """Submit a script as a user would again; returns the job's number."""
        return self._run("sbatch", "--parsable", str(script)).strip()

    def signal(self, job: str, name: str | None = None, *options: str) -> None:
        """What SLURM sends before the time is up; without a name the job is cancelled."""
        self._run("scancel", *([f"--signal={name}"] if name else []), *options, job)

    def show(self, job: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S*)", self._run("scontrol", "--oneliner", "show", "job", job)))

    def queue(self) -> list[str]:
        """The numbers of all jobs that SLURM remembers, waiting, running or ended."""
        return sorted(self._run("squeue", "--noheader", "--states=all", "--format=%i").split())

    def wait(self, job: str, seconds: float = 300) -> dict[str, str]:
        """What SLURM says of the job when it has ended."""
        until = time.monotonic() + seconds
        while (shown := self.show(job))["JobState"] not in ENDED:
            if time.monotonic() > until:
                raise TimeoutError(f"job {job} is still {shown['JobState']} ({shown['Reason']})")
            time.sleep(0.2)
        return shown

    def stop_jobs(self) -> None:
        self._run("scancel", f"--user={getpass.getuser()}", check=False)
        for _ in range(100):
            if not self._run("squeue", "-h", check=False).strip():
                return
            time.sleep(0.1)


def _ports(count: int) -> int:
    """The first of so many neighbouring ports that nobody listens on."""
    while True:
        with ExitStack() as stack:
            first = port = 0
            try:
                for _ in range(count):
                    found = stack.enter_context(socket.socket())
                    found.bind(("127.0.0.1", port))
                    first = first or found.getsockname()[1]
                    port = found.getsockname()[1] + 1
            except (OSError, OverflowError):
                continue
            return first
