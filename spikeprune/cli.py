"""The command line's actions and exit codes. Heavy imports stand inside the actions, so that help is printed, and a
wrong key refused, at once."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial

from spikeprune.arguments.commands import parse
from spikeprune.errors import InputError
from spikeprune.experiment import offline, slurm_job, streams
from spikeprune.files import jsonfile
from spikeprune.training import signals


def _train(args: argparse.Namespace) -> None:
    from spikeprune.config.load import load

    with signals.caught():
        config = load(args.experiment, args.overrides)  # before the imports below: they take seconds
        from spikeprune.experiment import pipeline
        from spikeprune.integrations.wandb.tracker import WandbTracker

        signals.check()
        pipeline.run(config, tracker=WandbTracker())


def _config(args: argparse.Namespace) -> None:
    from spikeprune.config import reference

    print("\n".join(reference.help_lines() if args.help_keys else reference.explained(args.experiment, args.overrides)))


def _evaluate(args: argparse.Namespace) -> None:
    from spikeprune.experiment import evaluation
    from spikeprune.report.command_output import evaluation_lines, other_data

    measured = evaluation.evaluate(
        args.run,
        stage=args.stage,
        data_dir=args.data,
        compacted=args.compact,
        stepwise=args.stepwise,
        early_exit=args.early_exit,
        energy=args.energy,
        overrides=args.overrides,
    )
    if args.json and (warning := other_data(measured)):
        print(warning, file=sys.stderr)
    print(jsonfile.dumps(measured, indent=2) if args.json else evaluation_lines(measured))


def _compact(args: argparse.Namespace) -> None:
    from spikeprune.experiment import compaction
    from spikeprune.report.command_output import compaction_lines

    record = compaction.compact_run(args.run, stage=args.stage, data_dir=args.data, overrides=args.overrides)
    print(compaction_lines(record))


def _export(args: argparse.Namespace) -> None:
    from spikeprune.export.command import export
    from spikeprune.report.command_output import export_lines

    record = export(args.run, args.to, args.directory, stage=args.stage, compacted=args.compact, data_dir=args.data)
    print(export_lines(record))


def _predict(args: argparse.Namespace) -> None:
    if args.glue_test and (args.file or args.cost):
        raise InputError("--glue-test predicts GLUE's test splits, without --file and --cost; leave them out")
    if not args.glue_test and (args.data or args.zip):
        raise InputError("--data and --zip belong to --glue-test; add it, or give texts by --file")
    from spikeprune.experiment import prediction, prediction_files, submission

    open_run = partial(prediction.open_predictor, stage=args.stage, compacted=args.compact, runtime=args.runtime)
    if args.glue_test:
        print("\n".join(submission.submit([args.run, *args.texts], open_run, args.data, args.out, args.zip)))
    elif line := prediction_files.predict_to(args.run, open_run, args.texts, args.file, args.out, cost=args.cost):
        print(line)


def _report(args: argparse.Namespace) -> None:
    from spikeprune.experiment.report import write_report

    print(f"report: {write_report(args.runs, args.out, args.text, energy=args.energy)}")


def _sync(args: argparse.Namespace) -> None:
    from spikeprune.integrations.wandb.tracker import sync

    for run in args.runs:
        print(f"{run}: {sync(run)}")


def _sweep(args: argparse.Namespace) -> int:
    from spikeprune.integrations.sweeps import spec

    sweep = spec.read(args.file, args.overrides)  # before the imports below: they take seconds
    if args.local:
        from spikeprune.integrations.sweeps.local import run_local
        from spikeprune.integrations.sweeps.report import report

        folder = args.dir or spec.default_folder(sweep)
        return report(run_local(sweep, folder, trials=args.trials, jobs=args.jobs))

    from spikeprune.integrations.sweeps import online

    if args.slurm is not None:
        return online.run_on_slurm(sweep, args.trials, args.slurm)
    return online.run_online(sweep, args.trials, args.agents)


def _launch(args: argparse.Namespace) -> None:
    from spikeprune.integrations.launch import Request, launch

    request = Request(
        array=args.array,
        seeds=args.seeds,
        gpus=args.gpus,
        nodes=args.nodes,
        cpus=args.cpus,
        time=args.time,
        partition=args.partition,
        options=args.sbatch,
        template=args.template,
    )
    command = shlex.join(["spikeprune", *args.words])
    print("\n".join(launch(args.experiment, args.overrides, request, dry_run=args.dry_run, command=command)))


def _fetch(args: argparse.Namespace) -> None:
    if args.check:
        offline.forbid_network()
    from spikeprune.experiment.fetch import fetch

    for line in fetch(args.experiment, args.overrides, array=args.array, check=args.check):
        print(line, flush=True)


ACTIONS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "train": _train,
    "config": _config,
    "evaluate": _evaluate,
    "compact": _compact,
    "predict": _predict,
    "export": _export,
    "report": _report,
    "sync": _sync,
    "sweep": _sweep,
    "launch": _launch,
    "fetch": _fetch,
}


def _stopped(stop: signals.Stopped) -> int:
    """The exit code after a signal. Of several processes only the first prints and fails: a launcher would kill the
    others for one that failed."""
    if not slurm_job.is_first_process():
        return 0
    print(f"stopped by {stop.signal.name}: {streams.RESUMES}", file=sys.stderr)
    job = slurm_job.own_job()
    if job and stop.signal is signals.REQUEUE:
        print(f"job {job[0]} is requeued", file=sys.stderr, flush=True)  # while there is time to say so
        if refused := slurm_job.requeue(job[0]):
            print(f"job {job[0]} is not requeued: {refused}", file=sys.stderr)
    return stop.code


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for bad input, 130 after Ctrl-C, 141 where nobody reads the output,
    75 or 143 after a signal of the cluster."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    resumable = next((word for word in arguments if not word.startswith("-")), "") in ("train", "sweep")
    return streams.exit_code(lambda: _act(arguments), hint=f"; {streams.RESUMES}" if resumable else "")


def _act(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    try:
        return ACTIONS[args.command](args) or 0
    except signals.Stopped as stop:
        return _stopped(stop)
