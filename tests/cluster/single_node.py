"""Slurm as a single node on loopback, without systemd and without accounting; it pretends to have a GPU."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun")
CONFIGURED = Path("/etc/slurm/slurm.conf")  # Snakemake's plugin removes SLURM_CONF from the environment

SETTINGS = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=20
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
GresTypes=gpu
MinJobAge=300
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=8000 Gres=gpu:1 State=UNKNOWN
PartitionName=gpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why Slurm cannot be started here; empty if it can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (apt-get install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "only root can start Slurm's daemons"
    if CONFIGURED.is_file() and not CONFIGURED.is_symlink():
        return f"{CONFIGURED} belongs to a Slurm of this machine"
    return ""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[None]:
    """Inside the block jobs can be submitted to the partition ``gpu``; all daemons end with it.

    A machine has one configured Slurm, so another process that asks for one waits until this one has ended.

    Raises:
        RuntimeError: the node does not come up; says what the daemons have logged.
    """
    with FileLock(Path(tempfile.gettempdir()) / "slurm_of_tests.lock"):
        yield from _alone(folder)


def _alone(folder: Path) -> Iterator[None]:
    """Start the daemons, and end them when the caller is done."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    host = socket.gethostname().partition(".")[0]
    settings = SETTINGS.format(folder=folder, host=host, ports=_free_ports(2), cores=os.cpu_count())
    (folder / "slurm.conf").write_text(settings)
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu Count=1 File=/dev/null\n")
    (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
    (folder / "munge.key").chmod(0o400)
    links = [CONFIGURED.with_name(name) for name in ("slurm.conf", "gres.conf")]
    CONFIGURED.parent.mkdir(exist_ok=True)
    try:
        for link in links:
            link.unlink(missing_ok=True)
            link.symlink_to(folder / link.name)
        _start(folder)
        yield
    finally:
        for link in links:
            link.unlink(missing_ok=True)
        for daemon in ("slurmd", "slurmctld", "munged"):
            _end(folder / f"{daemon}.pid")


def _start(folder: Path) -> None:
    files = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munged.pid", "log-file": "munged.log"}
    options = [f"--{name}={folder / file}" for name, file in files.items()]
    subprocess.run(["munged", "--force", f"--seed-file={folder / 'munge.seed'}", *options], check=True)
    for daemon in ("slurmctld", "slurmd"):
        subprocess.run([daemon, "-f", str(folder / "slurm.conf")], check=True)
    for _ in range(60):
        state = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True)
        if "idle" in state.stdout:
            return
        time.sleep(0.5)
    logs = {path.name: path.read_text()[-500:] for path in folder.glob("*.log")}
    raise RuntimeError(f"expected an idle node, got {state.stdout or state.stderr}: {logs}")


def _end(pid_file: Path) -> None:
    """End a daemon, and wait until it is gone."""
    if pid_file.is_file():
        process = int(pid_file.read_text())
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, 15)
            for _ in range(100):
                os.kill(process, 0)
                time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as open_ones:
        found = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]
