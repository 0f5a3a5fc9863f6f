"""A sweep without a server: Optuna chooses, this process starts the trials and ends with the Pareto front.

DIR/sweep.json      the sweep as it was started; another one is refused
   journal.log      Optuna's storage: every trial's values, intermediate scores and state
   trials/<n>/      a run directory each, <n>.log what it printed
   results.json     the finished trials; front.svg quality against energy

A trial that was interrupted goes on where its run stopped, with its values; one that failed is tried again on the next
start. Trials take stages over from each other where the swept keys do not touch them (`sharing.py`).
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikeprune.checks import acts
from spikeprune.config import Config
from spikeprune.errors import InputError
from spikeprune.report.results import results
from spikeprune.rundir import RunDir, write_json
from spikeprune.sharing import common_stages
from spikeprune.sweeps.spec import Parameter, Sweep, cores, gpus

POLL = 0.25  # seconds between two looks at the trials
PATIENCE = 3.0  # seconds for the trials of a killed start to be gone
HOPELESS = 3  # failures without any success, after which no more trials are started
KILLED_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux' prctl


@dataclass
class Trial:
    """One trial of this start: Optuna's side of it, its configuration and run, and its process once there is one."""

    trial: Any  # optuna.Trial
    values: dict[str, Any]
    config: Config
    run: RunDir
    process: subprocess.Popen | None = None
    slot: int = 0
    pruned: bool = False

    @property
    def number(self) -> int:
        return self.trial.number


def active(config: Config) -> list[str]:
    """The stages that run, in order."""
    return [n for n in config.run.stages if n == "teacher" or acts(config, n)]


# ------------------------------------------------------------------------------------------------------ what is to run


def run_local(sweep: Sweep, folder: str | Path, trials: int | None = None, jobs: int | None = None) -> Driver:
    """Run what is missing of a sweep in `folder`, `trials` in all, `jobs` at a time, and return what there is then.

    Raises InputError where another sweep has been started in `folder`, or is being run there.
    """
    folder, target = Path(folder), trials or sweep.run_cap or sweep.size
    if target is None:
        raise InputError(f"{sweep.path}: a {sweep.method} sweep has no end; give --trials N or run_cap in the file")
    if sweep.size is not None:
        target = min(target, sweep.size)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as lock:
        enter(sweep, folder)
        driver = Driver(sweep, folder, target, jobs, lock)
        driver.run()
    return driver


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """A lock that ends with the last process that holds it, trials included. Yields its file descriptor."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        until = time.monotonic() + PATIENCE
        while not _taken(handle):
            if time.monotonic() > until:
                owner = os.pread(handle, 100, 0).decode() or "another process"
                raise InputError(f"{folder}: is being run by {owner}; wait for it, or use another --dir")
            time.sleep(POLL)
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {os.uname().nodename}".encode())
        yield handle
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def enter(sweep: Sweep, folder: Path) -> None:
    """Note the sweep in its folder, or make sure that it is the one there; how many trials it has may change."""
    now = {key: value for key, value in sweep.tree.items() if key not in ("run_cap", "description", "name")}
    path = folder / "sweep.json"
    if path.is_file():
        before = json.loads(path.read_text())
        changed = [key for key in {**before, **now} if before.get(key) != json.loads(json.dumps(now)).get(key)]
        if changed:
            raise InputError(
                f"{folder}: was started with another sweep ({', '.join(changed)} differ); use another --dir, or the "
                f"old file and values: {path}"
            )
        return
    write_json(path, now)


def open_study(sweep: Sweep, folder: Path) -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.NopPruner()
    if sweep.rungs:
        first, factor = sweep.rungs
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor)
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    study = optuna.create_study(
        storage=storage, study_name="sweep", direction=sweep.goal, pruner=pruner, load_if_exists=True
    )
    if sweep.method == "grid" and not study.user_attrs.get("grid"):
        for values in sweep.grid():
            study.enqueue_trial({key: _spelt(value) for key, value in values.items()}, skip_if_exists=True)
        study.set_user_attr("grid", True)
    return study


def sampler(sweep: Sweep, begun: int) -> Any:
    """Seeded by the trials so far: a start that goes on does not draw the first start's values again."""
    from optuna.samplers import RandomSampler, TPESampler

    return TPESampler(seed=begun) if sweep.method == "bayes" else RandomSampler(seed=begun)


def suggest(trial: Any, parameter: Parameter) -> Any:
    """A trial's value; one that it has already comes back."""
    p = parameter
    if p.values:
        return json.loads(trial.suggest_categorical(p.key, [_spelt(value) for value in p.values]))
    if p.distribution == "int_uniform":
        return trial.suggest_int(p.key, int(p.low), int(p.high))
    if p.distribution == "q_uniform":
        return trial.suggest_float(p.key, p.low, p.high, step=p.q)
    return trial.suggest_float(p.key, p.low, p.high, log=p.distribution == "log_uniform_values")


def _spelt(value: Any) -> str:
    """Optuna's categories are plain values; a list such as t_steps is none."""
    return json.dumps(value)


# ------------------------------------------------------------------------------------------------------------ the loop


class Driver:
    """Starts trials as long as there are any to start, tells Optuna what becomes of them."""

    def __init__(self, sweep: Sweep, folder: Path, target: int, jobs: int | None, lock: int):
        self.sweep, self.folder, self.target, self.lock = sweep, folder, target, lock
        self.devices = gpus()
        self.jobs = jobs or len(self.devices) or cores()
        self.study = open_study(sweep, folder)
        self.running: list[Trial] = []
        self.next: Trial | None = None  # chosen, but waiting for a stage that another one is making
        self.known = [self.restore(frozen) for frozen in self.begun()]
        self.failed: dict[int, str] = {}
        self.done_now = 0
        (folder / "trials").mkdir(exist_ok=True)
        self.left = [trial for trial in self.known if self.state(trial) == "RUNNING" and not self.settle(trial)]

    def run(self) -> None:
        if self.left or len(self.begun()) < self.target:
            print(f"{self.folder}: {self.target} trials, {self.finished()} finished, {self.jobs} at a time", flush=True)
        try:
            while self.fill() or self.running:
                time.sleep(POLL)
                for trial in list(self.running):
                    self.look(trial)
        finally:
            self.stop()

    def begun(self) -> list[Any]:
        return [t for t in self.study.get_trials(deepcopy=False) if t.state.name != "WAITING"]

    def state(self, trial: Trial) -> str:
        return self.study.get_trials(deepcopy=False)[trial.number].state.name

    def finished(self) -> int:
        return sum(t.state.is_finished() for t in self.begun())

    def restore(self, frozen: Any) -> Trial:
        import optuna

        return self.prepare(optuna.trial.Trial(self.study, frozen._trial_id))

    def prepare(self, trial: Any) -> Trial:
        values = {p.key: suggest(trial, p) for p in self.sweep.parameters}
        config = self.sweep.config(values, "run.dir=check")
        return Trial(trial, values, config, RunDir(self.folder / "trials" / str(trial.number)))

    # ------------------------------------------------------------------------------------------------- starting trials

    def fill(self) -> bool:
        """Start trials on free slots; whether one is left to start."""
        while len(self.running) < self.jobs:
            self.next = self.next or self.choose()
            if self.next is None:
                return False
            if self.waits(self.next):
                return True
            self.launch(self.next)
            self.next = None
        return self.next is not None or bool(self.left) or len(self.begun()) < self.target

    def choose(self) -> Trial | None:
        """What an earlier start left unfinished, then new ones up to the target."""
        hopeless = len(self.failed) >= HOPELESS and not self.done_now
        if self.left and not hopeless:
            return self.left.pop(0)
        begun = len(self.begun())
        if hopeless or begun >= self.target:
            return None
        self.study.sampler = sampler(self.sweep, begun)
        trial = self.prepare(self.study.ask())
        self.known.append(trial)
        return trial

    def waits(self, trial: Trial) -> bool:
        """Whether a running trial is making a stage that this one could take over, and nobody has it yet."""
        made = max(self.made(other, trial) for other in self.known)  # its own stages among them
        return any(len(common_stages(other.config, trial.config)) > made for other in self.running)

    def made(self, other: Trial, trial: Trial) -> int:
        """How many of the first stages `trial` finds finished in `other`."""
        common = common_stages(other.config, trial.config)
        return next((i for i, stage in enumerate(common) if not other.run.finished(stage)), len(common))

    def launch(self, trial: Trial) -> None:
        taken = {other.slot for other in self.running}
        trial.slot = next(i for i in range(self.jobs) if i not in taken)
        threads = max(1, cores() // self.jobs)
        mine = [f"run.dir={trial.run.path}", "run.wandb=false"]
        donor = max(self.known, key=lambda other: self.made(other, trial))
        if self.made(donor, trial) > self.made(trial, trial):
            mine.append(f"run.start_from={donor.run.path}")
        mine += ["run.progress=false", f"run.threads={threads}"]
        command = [sys.executable, "-m", "spikeprune", "train", self.sweep.experiment]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[trial.slot % len(self.devices)]
        with self.log(trial).open("ab") as log:
            trial.process = subprocess.Popen(
                [*command, *self.sweep.overrides(trial.values), *mine],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[self.lock],  # a start that finds trials of a killed one still at work is refused
                preexec_fn=_die_with_parent,
            )
        self.running.append(trial)
        self.say(trial, " ".join(f"{key}={trial.values[key]}" for key in self.sweep.swept))

    def log(self, trial: Trial) -> Path:
        return trial.run.path.with_suffix(".log")

    # ---------------------------------------------------------------------------------------------- watching, and ends

    def look(self, trial: Trial) -> None:
        """Report the stages that a trial has finished since, stop it where it is not among the best, note its end."""
        code = trial.process.poll()  # before the reports: what a trial wrote before it ended is then among them
        scores = self.scores(trial)
        known = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        for step, score in enumerate(scores, 1):
            if step not in known:
                trial.trial.report(score, step)
                if self.sweep.rungs and step < self.steps(trial) and trial.trial.should_prune():
                    trial.pruned = True
        if trial.pruned and code is None:
            trial.process.kill()
            trial.process.wait()
        elif code is None:
            return
        self.running.remove(trial)
        self.end(trial, code, scores)

    def end(self, trial: Trial, code: int | None, scores: list[float]) -> None:
        import optuna

        if trial.pruned:
            self.study.tell(trial.number, state=optuna.trial.TrialState.PRUNED)
            stages = [name for name in active(trial.config) if trial.run.finished(name)]
            self.say(trial, f"stopped early after {stages[-1]}: {self.sweep.metric} {scores[-1]:.4g}")
        elif code == 0 and trial.run.summary.is_file():
            self.study.tell(trial.number, scores[-1])
            self.done_now += 1
            self.say(trial, f"{self.sweep.metric} {scores[-1]:.4g}")
        else:
            lines = self.log(trial).read_text(errors="replace").strip().splitlines()
            self.failed[trial.number] = lines[-1] if lines else f"exit code {code}"
            self.say(trial, f"failed with exit code {code} ({self.log(trial)}): {self.failed[trial.number]}")

    def settle(self, trial: Trial) -> bool:
        """Note a trial that ended after the start that ran it; whether it has."""
        if not trial.run.summary.is_file():
            return False
        self.end(trial, 0, self.scores(trial))
        return True

    def steps(self, trial: Trial) -> int:
        return len([name for name in active(trial.config) if name != "teacher"])

    def scores(self, trial: Trial) -> list[float]:
        """The metric after each finished stage of the student, in order."""
        students = [name for name in active(trial.config) if name != "teacher" and trial.run.finished(name)]
        if not students:
            return []
        teacher = trial.run.record("teacher")
        return [results(trial.run.record(name), teacher)[self.sweep.metric] for name in students]

    def stop(self) -> None:
        for trial in self.running:
            trial.process.send_signal(signal.SIGKILL)  # as good as any: a run goes on from its last checkpoint
            trial.process.wait()

    def say(self, trial: Trial, text: str) -> None:
        print(f"[trial {trial.number}] {text}", flush=True)

    # --------------------------------------------------------------------------------------------------- what there is

    def rows(self) -> list[dict[str, Any]]:
        """The trials that ran to their end: number, swept values, results, and the dense teacher's."""
        found = []
        for trial in sorted(self.known, key=lambda trial: trial.number):
            if self.state(trial) != "COMPLETE":
                continue
            summary = json.loads(trial.run.summary.read_text())
            teacher = summary["teacher"]
            row = {"trial": trial.number, "values": {key: trial.values[key] for key in self.sweep.swept}}
            row["results"] = results(summary["stages"][summary["final"]], teacher)
            row["teacher"] = {"main": teacher["main"], "energy_pj": teacher["cost"]["energy_pj"]}
            found.append({**row, "task": summary["task"], "preset": summary["preset"], "data": summary["data"]})
        return found

    def pruned(self) -> int:
        return sum(t.state.name == "PRUNED" for t in self.begun())


def _die_with_parent() -> None:
    """In the child, before it becomes the trial: Linux kills it when this process is gone, however it went."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(KILLED_WITH_PARENT, signal.SIGKILL)
