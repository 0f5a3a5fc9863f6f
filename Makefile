# `make help` lists the targets.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup glue slurm fetch ablation sweep sweep-local test test-slow test-faults audit test-kernels check results docs bench lock clean

PYTHON ?= python3
PRESET ?= tiny
# The teacher of tiny starts from random weights and cannot learn real GLUE: its default data are generated.
DATA ?= $(if $(filter-out tiny,$(PRESET))$(filter custom,$(TASK)),auto,embedded)
# tiny runs on the CPU
GPUS ?= $(if $(filter tiny,$(PRESET)),0,1)
TORCH ?= auto
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV := $(shell command -v uv 2>/dev/null)

ifneq ($(UV),)
MAKE_VENV = $(UV) venv --quiet --allow-existing --python '>=3.10' $(VENV)
# uv does not read pip's settings, such as a folder of wheels.
INSTALL := $(if $(PIP_FIND_LINKS),UV_FIND_LINKS="$(PIP_FIND_LINKS)") $(UV) pip install --quiet --python $(BIN)/python
else
MAKE_VENV = $(PYTHON) -m venv $(VENV)
INSTALL := $(BIN)/python -m pip install --quiet
endif
# The locks are complete: nothing is resolved.
LOCKED := $(INSTALL) --no-deps --require-hashes -r

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 13

setup: $(STAMP)  ## make .venv and install the locked versions [TORCH=auto|cpu|cuda]

# torch's CUDA packages are several GB. A machine without an NVIDIA GPU tries for a CPU build first; on a login node whose
# compute nodes have GPUs set TORCH=cuda.
$(STAMP): pyproject.toml requirements/base.lock requirements/cpu.lock requirements/cuda.lock
	$(MAKE_VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python 3.10 or newer is needed: set PYTHON")'
	$(LOCKED) requirements/base.lock
	@case $(TORCH) in \
	    cpu) set -x; $(LOCKED) requirements/cpu.lock ;; \
	    cuda) set -x; $(LOCKED) requirements/cuda.lock ;; \
	    auto) if ! nvidia-smi -L >/dev/null 2>&1 && $(LOCKED) requirements/cpu.lock 2>/dev/null; \
	          then echo "torch: CPU build"; \
	          else set -x; $(LOCKED) requirements/cuda.lock; fi ;; \
	    *) echo "error: TORCH is auto, cpu or cuda" >&2; exit 2 ;; \
	esac
	$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

# The variable that names the task; ARRAY names several.
NAMED = $(TASK)
slurm fetch: NAMED = $(TASK)$(ARRAY)
# A value quoted as one word of the shell.
Q = '$(subst ','\'',$(1))'
# One more argument of the shell, NAME=VALUE, where the value is given.
SET = if [ -n $(call Q,$(2)) ]; then set -- "$$@" $(1)=$(call Q,$(2)); fi

# ARGS are words of the shell, quoted by the user; not of make, so that '${task}' stays. An unquoted # makes the rest of the
# line a comment, `whole=1` too, so START stands on the next line: it checks, and starts a program of the environment with
# the arguments of the shell.
GIVEN = whole=; set -- "$$@" $(value ARGS); whole=1
define START
if [ -z "$$whole" ]; then echo "error: ARGS: put quotes around what holds a #: ARGS=\"'run.dir=exp #1'\"" >&2; exit 2; fi; \
exec $(BIN)/$(1) "$$@"
endef

# Task, preset, data and teacher of a target as arguments of the shell.
define CHOSEN
test -n $(call Q,$(NAMED)) || { echo "error: name a task, such as: make $@ TASK=mrpc" >&2; exit 2; }; \
set -- $(if $(TASK),task=$(call Q,$(TASK))) preset=$(call Q,$(PRESET)); data=$(call Q,$(DATA)); \
case "$$data" in \
    "") ;; \
    auto|hub|embedded) set -- "$$@" data.source="$$data" ;; \
    */*) set -- "$$@" data.source=dir data.dir="$$data" ;; \
    *) if [ -d "$$data" ]; then set -- "$$@" data.source=dir data.dir="$$data"; \
       else set -- "$$@" data.source="$$data"; fi ;; \
esac; \
$(call SET,teacher.checkpoint,$(TEACHER)); $(call SET,stages.budget.value,$(BUDGET))
endef

glue: $(STAMP)  ## run the pipeline: TASK=mrpc [PRESET=tiny|minilm|base|paper] [DATA=auto|hub|embedded|DIR, embedded for tiny] [TEACHER=name-or-dir] [BUDGET=0.01, share of the dense energy] [SEED=0] [ARGS="key=value …"]
	@$(CHOSEN); \
	$(call SET,seed,$(SEED)); \
	$(GIVEN); \
	$(call START,spikeprune train experiments/glue.yaml)

slurm: $(STAMP)  ## submit to SLURM what glue runs: TASK=mrpc or ARRAY="mrpc rte …" [SEEDS=0-4] [GPUS=1, 0 for tiny] [NODES=] [CPUS=] [TIME=] [PARTITION=] [SBATCH="--mem=32G …"] [DRY=1] [glue's arguments]
	@$(CHOSEN); \
	$(call SET,seed,$(SEED)); $(call SET,--array,$(ARRAY)); $(call SET,--seeds,$(SEEDS)); $(call SET,--gpus,$(GPUS)); \
	$(call SET,--nodes,$(NODES)); $(call SET,--cpus,$(CPUS)); $(call SET,--time,$(TIME)); \
	$(call SET,--partition,$(PARTITION)); \
	for option in $(SBATCH); do set -- "$$@" --sbatch="$$option"; done; \
	if [ -n "$(DRY)" ]; then set -- "$$@" --dry-run; fi; \
	$(GIVEN); \
	$(call START,spikeprune launch experiments/glue.yaml)

fetch: $(STAMP)  ## get data and checkpoints of TASK=mrpc or ARRAY="mrpc rte …" into the cache [glue's arguments]
	@$(CHOSEN); $(call SET,--array,$(ARRAY)); \
	$(GIVEN); \
	$(call START,spikeprune fetch experiments/glue.yaml)

ablation: $(STAMP)  ## each way of compressing from one distilled student, one table: as glue, [SEEDS="0 1 2"] [ABLATIONS="none joint …"]
	@$(CHOSEN); \
	if [ -n $(call Q,$(ABLATIONS)) ]; then set -- "$$@" --only $(call Q,$(ABLATIONS)); fi; \
	$(GIVEN); \
	$(call START,python experiments/ablation.py --seeds $(call Q,$(or $(SEEDS),$(SEED),0)))

sweep: WHERE = $(if $(filter undefined,$(origin SLURM)),,--slurm=$(call Q,$(SLURM)))
sweep: $(STAMP)  ## trials on W&B's server, an agent per GPU: SWEEP=budget [TRIALS=n] [SLURM="sbatch options"] [ARGS="key=value …"]

sweep-local: WHERE = --local $(if $(JOBS),--jobs $(call Q,$(JOBS)))
sweep-local: $(STAMP)  ## the same without a server; ends with the Pareto front: SWEEP=budget [TRIALS=n] [JOBS=n] [ARGS="key=value …"]

sweep sweep-local:
	@test -n $(call Q,$(SWEEP)) || { echo "error: name a file of experiments/sweeps, such as: make $@ SWEEP=budget" >&2; exit 2; }
	@set -- $(WHERE) $(if $(TRIALS),--trials $(call Q,$(TRIALS))); \
	$(GIVEN); \
	$(call START,spikeprune sweep experiments/sweeps/$(call Q,$(SWEEP)).yaml)

# Four files at a time on two cores: tests wait more than they compute.
PYTEST = $(BIN)/python -m pytest -n $(or $(JOBS),4) --dist loadfile --no-loadscope-reorder

test: $(STAMP)  ## run the tests but for the slow ones, four files at a time [JOBS=4] [ARGS="-k name"]
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(STAMP)  ## run the slow ones: SLURM clusters, sweeps, a W&B server, an installed wheel [JOBS=4] [ARGS="-k name"]
	$(PYTEST) -m slow $(ARGS)

test-faults: $(STAMP)  ## kill runs, fill disks, mutate inputs: campaigns of some minutes each [ARGS="kills --count 20 --seed 1"]
	PYTHONPATH=tests $(BIN)/python -m faults $(ARGS)

audit: $(STAMP)  ## ask the package index for known weaknesses of the locked versions
	test -d .audit/pip_audit || $(INSTALL) --target .audit pip-audit
	PYTHONPATH=.audit $(BIN)/python -m pip_audit --disable-pip --require-hashes $(patsubst %,-r requirements/%.lock,base cuda)

# A CPU build of torch comes without Triton. It is installed beside the environment, so that nothing else imports it.
test-kernels: $(STAMP)  ## run the GPU's kernels on the CPU, in Triton's interpreter
	awk '/^triton==/ { here = 1 } here { print } here && !/\\$$/ { exit }' requirements/cuda.lock > .triton.txt
	test -d .triton/triton || $(INSTALL) --target .triton --no-deps --require-hashes -r .triton.txt
	PYTHONPATH=.triton $(BIN)/python -m pytest -n 2 $(ARGS) tests/test_kernels.py tests/test_scan.py tests/test_engine.py

check: $(STAMP)  ## ruff, ruff format and the import-layer test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q tests/test_layers.py

results: $(STAMP)  ## the tables of README and docs/results.md [RUNS="runs/mrpc-tiny-s0 …" to keep]
	$(BIN)/python experiments/results.py $(RUNS)

docs: $(STAMP)  ## the pages and figures that are generated: configuration, figures, results
	$(BIN)/python -c 'from spikeprune.config.reference import markdown; print(markdown(), end="")' > docs/configuration.md
	$(BIN)/python docs/figures/draw.py
	$(BIN)/python experiments/results.py

# The benchmark's peers are installed without their dependencies: SpikingJelly would bring another torch. The row of a
# missing peer has the reason in place of a ratio.
bench: $(STAMP)  ## our speed beside others', on this machine's CPU [ARGS="--device cuda"]
	@$(LOCKED) requirements/bench.lock || echo "bench: SpikingJelly and snnTorch cannot be installed; their rows are skipped"
	$(BIN)/python -m experiments.bench $(ARGS)
	$(BIN)/python -m experiments.bench.runtime

lock:  ## resolve the locked versions again, with uv [UPGRADE=--upgrade]
	@test -n "$(UV)" || { echo "error: make lock needs uv" >&2; exit 2; }
	cat requirements/base.lock requirements/cuda.lock > .lock.txt 2>/dev/null || true
	UV_FIND_LINKS= $(UV) pip compile pyproject.toml --extra dev --universal --python-version 3.10 --generate-hashes --no-annotate \
	    --no-header --no-emit-index-url --no-emit-find-links --quiet $(UPGRADE) --output-file .lock.txt
	echo '# Made by `make lock`: everything but torch.' > requirements/base.lock
	echo '# Made by `make lock`: torch as the package index has it, and the CUDA packages that this build needs.' > requirements/cuda.lock
	awk '/^[a-z]/ { out = /^(torch=|triton=|nvidia-|cuda-)/ ? "requirements/cuda.lock" : "requirements/base.lock" } \
	     { print >> out }' .lock.txt
	rm .lock.txt
	echo '# Made by `make lock`: what the benchmark compares with, installed by `make bench` only.' > requirements/bench.lock
	printf '%s\n' loguru snntorch "spikingjelly ; python_version >= '3.11'" | UV_FIND_LINKS= $(UV) pip compile - --no-deps \
	    --universal --python-version 3.10 --generate-hashes --no-annotate --no-header --no-emit-index-url \
	    --no-emit-find-links --quiet $(UPGRADE) >> requirements/bench.lock

clean:  ## remove what was generated, but no run
	rm -rf $(VENV) *.egg-info build dist .pytest_cache .ruff_cache .hypothesis .bench .triton .triton.txt .audit
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
