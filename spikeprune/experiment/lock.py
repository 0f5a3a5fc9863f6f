"""The lock on the directory of a run or a sweep: one at a time, on one machine or on several that share the disk.

A lock is a file `lock.<n>` that names its holder, created by a hard link, which is atomic on NFS as well. A holder that
is killed leaves it behind; the next run finds that holder dead and creates `lock.<n+1>`; the highest number is valid. A
file is never replaced, and after creating one a run checks that nothing has changed since it decided to: of two runs
that find the same dead holder, or one that ends at that moment, only one succeeds.
"""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from spikeprune.errors import InputError
from spikeprune.experiment import slurm_job
from spikeprune.files import jsonfile


@dataclass(frozen=True)
class Holder:
    host: str
    boot: str  # of the machine, since process numbers begin anew
    pid: int
    started: str  # in the machine's clock ticks, since process numbers are used again
    job: str | None  # SLURM's
    restarts: int
    token: str  # tells two locks of one process apart

    @classmethod
    def me(cls) -> Holder:
        job, restarts = slurm_job.own_job() or (None, 0)
        return cls(
            socket.gethostname(), _boot(), os.getpid(), _started(os.getpid()), job, restarts, secrets.token_hex(8)
        )

    def __str__(self) -> str:
        job = f", SLURM job {self.job}" if self.job else ""
        return f"host {self.host}, pid {self.pid}{job}"

    def alive(self) -> bool | None:
        """None where this machine cannot know."""
        mine = slurm_job.own_job()
        if mine and mine[0] == self.job and mine[1] > self.restarts:
            return False  # an earlier attempt of this same job
        if self.host == socket.gethostname():
            return self.boot == _boot() and self.started == _started(self.pid) != ""
        return slurm_job.alive(self.job, self.restarts) if self.job else None


def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _started(pid: int) -> str:
    """When a process began; empty where there is none, or only its remains (a zombie)."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state in "ZX" else rest[18]


class RunLock:
    """`with RunLock(folder) as lock:`; raises InputError that names the run which holds it. `lock.takeover` is a
    sentence on the dead run whose lock this one took over, else empty. Only rank 0 takes it.
    `option` chose the folder, and begins the sentences.
    """

    def __init__(self, folder: Path, option: str = "run.dir"):
        self.folder = folder
        self.option = option
        self.takeover = ""
        self.path: Path | None = None

    def __enter__(self) -> RunLock:
        while self.path is None:
            self.path = self._try()
        return self

    def __exit__(self, *error: object) -> None:
        self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises InputError where another run holds the lock; takes nothing."""
        for number in self._numbers()[-1:]:
            if (holder := self._read(number)) is not None:
                self._refuse_unless_dead(holder, number)

    def _try(self) -> Path | None:
        """The lock file that is now ours; None if another run was faster and the directory must be read again."""
        there, dead = self._numbers(), None
        if there:
            dead = self._read(there[-1])
            if dead is None:
                return None
            self._refuse_unless_dead(dead, there[-1])
        number = there[-1] + 1 if there else 1
        if not self._make(number):
            return None
        if self._numbers() != [*there, number] or (dead and self._read(there[-1]) != dead):
            self._path(number).unlink()
            return None
        if dead:
            self.takeover = f"took the run directory over from a run that is dead ({dead})"
        for old in there:
            self._path(old).unlink(missing_ok=True)
        return self._path(number)

    def _path(self, number: int) -> Path:
        return self.folder / f"lock.{number}"

    def _numbers(self) -> list[int]:
        return sorted(int(path.suffix[1:]) for path in self.folder.glob("lock.*") if path.suffix[1:].isdecimal())

    def _read(self, number: int) -> Holder | None:
        try:
            return Holder(**jsonfile.loads(self._path(number).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise InputError(f"{self._path(number)}: is no lock of a run; remove it") from None

    def _make(self, number: int) -> bool:
        draft = self.folder / f".lock.{secrets.token_hex(8)}"
        draft.write_text(jsonfile.dumps(asdict(Holder.me())), encoding="utf-8")
        try:
            os.link(draft, self._path(number))
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        return True

    def _refuse_unless_dead(self, holder: Holder, number: int) -> None:
        alive = holder.alive()
        if alive:
            raise InputError(
                f"{self.option}: {self.folder} is in use by another run ({holder}); wait for it, or stop it"
            )
        if alive is None:
            raise InputError(
                f"{self.option}: {self.folder} is locked by a run on another machine ({holder}), and cannot be "
                f"checked from here; if it no longer runs, remove {self._path(number)}"
            )
