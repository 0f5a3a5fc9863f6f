"""A sweep without a server: Optuna chooses trials, this process runs them and ends with the Pareto front.

DIR/sweep.json      the sweep as it was started; another one is refused
   journal.log      Optuna's storage: every trial's values, intermediate scores and state
   trials/<n>/      a run directory each, <n>.log its output
   results.json     the finished trials and those that failed; front.svg quality against energy

An interrupted trial resumes where its run stopped, with its values; a failed one is tried again on the next start.
Trials take stages over from each other where the swept keys do not touch them (`experiment/reuse.py`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from joblib import cpu_count
from optuna.trial import TrialState

from spikeprune.config import scalars
from spikeprune.errors import InputError
from spikeprune.experiment.lock import RunLock
from spikeprune.experiment.reuse import common_stages
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_json
from spikeprune.integrations.sweeps.machine import gpus
from spikeprune.integrations.sweeps.spec import Sweep
from spikeprune.integrations.sweeps.study import begun_trial, draw, open_study
from spikeprune.integrations.sweeps.trial import Trial
from spikeprune.report.results import results

POLL = 0.25  # seconds between polls of the trials
MAX_FAILURES = 3  # without any success; then no more trials are started


def run_local(sweep: Sweep, folder: str | Path, trials: int | None = None, jobs: int | None = None) -> Driver:
    """Run the missing trials of a sweep in `folder`, `trials` in all, `jobs` at a time; returns the finished driver.

    Raises InputError where another sweep has been started in `folder`, or is being run there.
    """
    folder, target = Path(folder), trials or sweep.run_cap or sweep.size
    if target is None:
        raise InputError(f"{sweep.path}: a {sweep.method} sweep has no end; give --trials N or run_cap in the file")
    if sweep.size is not None:
        target = min(target, sweep.size)
    folder.mkdir(parents=True, exist_ok=True)
    with RunLock(folder, "--dir"):
        enter(sweep, folder)
        driver = Driver(sweep, folder, target, jobs)
        driver.run()
    return driver


def enter(sweep: Sweep, folder: Path) -> None:
    """Write the sweep into its folder, or compare it with the one there; the number of trials may change."""
    now = {key: value for key, value in sweep.tree.items() if key not in ("run_cap", "description", "name")}
    path = folder / "sweep.json"
    if path.is_file():
        before = jsonfile.read(path, "remove it if the sweep in this folder is the one to resume")
        now = jsonfile.loads(jsonfile.dumps(now))
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            raise InputError(
                f"{folder}: was started with another sweep ({', '.join(changed)} differ); use another --dir, or the "
                f"old file and values: {path}"
            )
        return
    write_json(path, now)


class Driver:
    """Starts trials up to the target and reports their scores and ends to Optuna."""

    def __init__(self, sweep: Sweep, folder: Path, target: int, jobs: int | None):
        self.sweep, self.folder, self.target = sweep, folder, target
        self.devices = gpus()
        self.jobs = jobs or len(self.devices) or cpu_count()
        self.study, self.storage = open_study(sweep, folder)
        self.running: list[Trial] = []
        self.next: Trial | None = None  # chosen, but waiting for a stage that another one is making
        self.known = [self.prepare(begun_trial(self.study, self.storage, t.number)) for t in self.begun()]
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
                    self.poll(trial)
        finally:
            self.stop()

    def begun(self) -> list[Any]:
        return [t for t in self.study.get_trials(deepcopy=False) if t.state.name != "WAITING"]

    def state(self, trial: Trial) -> str:
        return self.study.get_trials(deepcopy=False)[trial.number].state.name

    def finished(self) -> int:
        return sum(t.state.is_finished() for t in self.begun())

    def prepare(self, trial: Any) -> Trial:
        values = draw(trial, self.sweep)
        config = self.sweep.config(values, "run.dir=check")
        return Trial(trial, values, config, RunDirectory(self.folder / "trials" / str(trial.number)))

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
        """An unfinished trial of an earlier start, then new ones up to the target."""
        give_up = len(self.failed) >= MAX_FAILURES and not self.done_now
        if self.left and not give_up:
            return self.left.pop(0)
        if give_up or len(self.begun()) >= self.target:
            return None
        trial = self.prepare(self.study.ask())
        self.known.append(trial)
        return trial

    def waits(self, trial: Trial) -> bool:
        """Whether a running trial is making a stage that this one could take over, and no other trial has it yet."""
        made = max(other.made_for(trial) for other in self.known)  # its own stages among them
        return any(len(common_stages(other.config, trial.config)) > made for other in self.running)

    def launch(self, trial: Trial) -> None:
        taken = {other.slot for other in self.running}
        trial.slot = next(i for i in range(self.jobs) if i not in taken)
        threads = max(1, cpu_count() // self.jobs)
        mine = [scalars.of_path("run.dir", trial.run.path), "run.wandb=off"]
        donor = max(self.known, key=lambda other: other.made_for(trial))
        if donor.made_for(trial) > trial.made_for(trial):
            mine.append(scalars.of_path("run.start_from", donor.run.path))
        environment = {"OMP_NUM_THREADS": str(threads)}
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[trial.slot % len(self.devices)]
        words = [self.sweep.experiment, *self.sweep.overrides(trial.values), *mine]
        trial.start(words, environment)
        self.running.append(trial)
        trial.print_line(" ".join(f"{key}={trial.values[key]}" for key in self.sweep.swept))

    # ---------------------------------------------------------------------------------------------- polling, and ends

    def poll(self, trial: Trial) -> None:
        """Report newly finished stages to Optuna, stop a trial that it prunes, handle a trial that has ended."""
        code = trial.process.poll()  # before reading scores, so that a trial's last ones are read
        scores, lacking = self.scored(trial)
        known = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        for step, score in enumerate(scores, 1):
            if step not in known:
                trial.trial.report(score, step)
                if self.sweep.rungs and step < trial.steps() and trial.trial.should_prune():
                    trial.pruned = True
        if trial.pruned and code is None:
            trial.kill()
        elif code is None:
            return
        self.running.remove(trial)
        self.end(trial, code, scores, lacking)

    def scored(self, trial: Trial) -> tuple[list[float], str]:
        """Its scores so far, and why they cannot be used."""
        try:
            return trial.scores(self.sweep.metric), ""
        except InputError as error:
            return [], str(error)

    def end(self, trial: Trial, code: int | None, scores: list[float], lacking: str) -> None:
        """Tell Optuna how a trial ended. One without a comparable score has failed."""
        if trial.pruned:
            self.study.tell(trial.number, state=TrialState.PRUNED)
            trial.print_line(f"stopped early after {trial.finished()[-1]}: {self.sweep.metric} {scores[-1]:.4g}")
        elif code == 0 and trial.run.summary.is_file() and scores:
            self.study.tell(trial.number, scores[-1])
            self.done_now += 1
            trial.print_line(f"{self.sweep.metric} {scores[-1]:.4g}")
        else:
            self.failed[trial.number] = lacking or trial.why_failed(code)
            trial.print_line(f"failed with exit code {code} ({trial.log}): {self.failed[trial.number]}")

    def settle(self, trial: Trial) -> bool:
        """Record a trial whose process finished after its driver was gone; whether it had."""
        if not trial.run.summary.is_file():
            return False
        self.end(trial, 0, *self.scored(trial))
        return True

    def stop(self) -> None:
        for trial in self.running:
            trial.kill()

    # --------------------------------------------------------------------------------------------------- results

    def rows(self) -> list[dict[str, Any]]:
        """The trials that ran to their end: number, swept values, results, and the dense teacher's."""
        found = []
        for trial in sorted(self.known, key=lambda trial: trial.number):
            if self.state(trial) != "COMPLETE":
                continue
            summary = trial.run.read_summary()
            teacher = summary["teacher"]
            row = {"trial": trial.number, "values": {key: trial.values[key] for key in self.sweep.swept}}
            row["results"] = results(summary["stages"][summary["final"]], teacher)
            row["teacher"] = {"main": teacher["main"], "energy_pj": teacher["cost"]["energy_pj"]}
            found.append({**row, "task": summary["task"], "preset": summary["preset"], "data": summary["data"]})
        return found

    def failures(self) -> list[dict[str, Any]]:
        """The trials of this start that failed: number, swept values, and why."""
        trials = {trial.number: trial for trial in self.known}
        chosen = {n: {key: trials[n].values[key] for key in self.sweep.swept} for n in sorted(self.failed)}
        return [{"trial": n, "values": values, "why": self.failed[n]} for n, values in chosen.items()]

    def pruned(self) -> int:
        return sum(t.state.name == "PRUNED" for t in self.begun())
