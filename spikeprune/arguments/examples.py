"""Examples of each command, shown below its options."""

TRAIN = """\
examples:
  spikeprune train task=mrpc preset=tiny
  spikeprune train experiments/glue.yaml task=sst2 preset=minilm data.source=dir data.dir=glue \\
      teacher.checkpoint=checkpoints/minilm student.t_steps=4
  spikeprune train experiments/glue.yaml preset=tiny 'student.t_steps=[4,2,2]' stages.finetune.epochs=0

A later value wins: defaults, the file and its base, the preset, the ablation, then key=value.
The same command started again resumes where the run stopped.
"""

CONFIG = """\
examples:
  spikeprune config task=sst2 preset=minilm
  spikeprune config experiments/glue.yaml stages.budget.value=0.05 stages.budget.epochs=4
  spikeprune config --help-keys

Without an experiment file it reads experiments/glue.yaml.
"""

EVALUATE = """\
examples:
  spikeprune evaluate runs/mrpc-tiny-s0
  spikeprune evaluate runs/mrpc-tiny-s0 --stage internal_kd --json
  spikeprune evaluate runs/mrpc-tiny-s0 --energy cost.model=memory
  spikeprune evaluate runs/mrpc-minilm-s0 --data glue
  spikeprune evaluate runs/mrpc-tiny-s0 student.coding=running_mean --early-exit
  spikeprune evaluate runs/mrpc-tiny-s0 student.dead_zone=60
"""

COMPACT = """\
examples:
  spikeprune compact runs/mrpc-tiny-s0
  spikeprune compact runs/mrpc-tiny-s0 --stage spatial
  spikeprune evaluate runs/mrpc-tiny-s0 --compact

Writes RUN/compact/: weights, shapes, tokenizer, and a record of its origin and of how its logits compare.
"""

EXPORT = """\
examples:
  spikeprune export runs/mrpc-tiny-s0 --to hf exported/mrpc
  spikeprune export runs/mrpc-tiny-s0 --to onnx mrpc-onnx --stage spatial
  spikeprune export runs/mrpc-tiny-s0 --to hf mrpc-compact --compact

Writes a new directory that other programs load: the last stage's student, without its pruned heads and neurons.
"""

PREDICT = """\
examples:
  spikeprune predict runs/sst2-tiny-s0 "a fine film" "a dull one"
  spikeprune predict runs/sst2-tiny-s0 --file reviews.csv --out predictions.csv --cost
  cat reviews.txt | spikeprune predict runs/sst2-tiny-s0 --compact --out predictions.jsonl
  spikeprune predict runs/mrpc-minilm-s0 "He slept ." "He was asleep ."
  spikeprune predict runs/sst2-minilm-s0 --glue-test --data glue
  spikeprune predict runs/sst2-minilm-s0 runs/rte-minilm-s0 --glue-test --data glue --zip submission.zip

Without texts or --file it reads lines from standard input, the two texts of a pair with a tab between. A file is CSV,
TSV, JSON lines, parquet or plain lines (.txt), with the columns of the run's own data. Predictions go to standard
output as CSV, or to --out, in the order of the texts; a file that exists is not overwritten.
"""

REPORT = """\
examples:
  spikeprune report runs/mrpc-tiny-s0
  spikeprune report runs/sst2-tiny-s0 --text "a fine film" --text "not a fine film" -o spikes.html
  spikeprune report runs/mrpc-tiny-s0 runs/mrpc-tiny-s1 --energy -o seeds.html

Writes one HTML file that needs no network, over what was there: stages, curves, what each layer keeps, energy,
predictions and spikes; of several runs also their Pareto front. A run writes its own when it ends.
"""

SYNC = """\
examples:
  spikeprune sync runs/mrpc-tiny-s0
  spikeprune sync runs/mrpc-*

Sends runs that were offline, or offline at times, to the W&B server, each as one run; no row is sent twice.
"""

SWEEP = """\
examples:
  spikeprune sweep experiments/sweeps/budget.yaml --local --trials 20
  spikeprune sweep experiments/sweeps/budget.yaml task=rte preset=minilm data.source=hub
  spikeprune sweep experiments/sweeps/budget.yaml --slurm='--partition=gpu --gpus=1' --trials 40

Creates the sweep on W&B's server and runs an agent per GPU; with --local Optuna chooses the trials instead. A local
sweep that is started again runs the missing trials, and ends with the Pareto front of quality and energy.
"""

LAUNCH = """\
examples:
  spikeprune launch experiments/glue.yaml task=mrpc preset=tiny data.source=embedded --gpus 0 --time 30:00
  spikeprune launch experiments/glue.yaml preset=minilm data.source=hub --array "mrpc rte" --seeds 0-4 --gpus 1 \\
      --partition gpu --time 4:00:00 --sbatch=--mem=32G
  spikeprune launch experiments/glue.yaml task=sst2 data.source=hub --template my-cluster.sh --dry-run

Writes a script into the run's directory (of an array: into a launch directory beside the runs), has SLURM check it,
and submits it. The same command again submits the runs that are not finished.
"""

FETCH = """\
examples:
  spikeprune fetch experiments/glue.yaml task=mrpc preset=minilm
  spikeprune fetch experiments/glue.yaml preset=minilm --array "mrpc rte cola"
  spikeprune fetch experiments/glue.yaml task=mrpc preset=minilm --check

Run it on a machine with a network, such as a login node; compute nodes then find everything in the cache (HF_HOME).
"""
