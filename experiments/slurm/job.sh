#!/bin/bash
# @{name}, written by:
#   @{command}
# Submit it again with `sbatch @{script}`: a run that is finished is not run
# again, one that was stopped resumes where it stopped.
#SBATCH --job-name=@{name}
@{resources}
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@90

# What your compute nodes need besides (module load …) belongs into a copy of this file: spikeprune launch --template

export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1  # no network here: see spikeprune fetch
export WANDB_MODE="${WANDB_MODE:-offline}"
export OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK" SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" PYTHONUNBUFFERED=1

@{choice}
echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1)): task $task, seed $seed"

# One process for each device. 90 s before the time is up each gets USR1: the run writes a checkpoint, stops, and requeues
# the job. Its exit code is the job's.
srun --kill-on-bad-exit=1 @{train} task="$task" seed="$seed"
exit $?
