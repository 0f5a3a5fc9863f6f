#!/usr/bin/env bash
# Purpose:  One trial of a W&B sweep as a task of an array job: an agent that takes one trial and ends.
# Command:  make sweep SWEEP=budget SLURM="--partition=gpu --gpus=1 --time=2:00:00" TRIALS=40
#           (or by hand: sbatch --array=1-40 OPTIONS experiments/slurm/sweep.sh PROJECT/SWEEP)
# Hardware: whatever OPTIONS ask for; the compute nodes have to reach W&B's server, which hands out the trials.
# Expected: runs/sweeps/<file>/<sweep>/<trial>/, and the log of each task in sweep-<job>_<task>.log.
#
# A task that is preempted and started again takes the trial that the server gives it: the interrupted one first.
#SBATCH --job-name=spikeprune-sweep
#SBATCH --output=sweep-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@90
#SBATCH --requeue
set -u
cd "${SLURM_SUBMIT_DIR:-.}"
if [ -d .venv/bin ]; then PATH="$PWD/.venv/bin:$PATH"; fi  # the agent starts trials with the `python` of PATH
exec python -m wandb agent --forward-signals --count 1 "${1:?name the sweep: PROJECT/SWEEP}"
