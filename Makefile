# `make` alone lists the targets. Each makes what it needs on a fresh machine.
SHELL := /bin/bash
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
CORES ?= 2
SITE := 'import sysconfig; print(sysconfig.get_path("purelib"))'

RUN := python -m workflow launch -- snakemake all --cores $(CORES) --quiet host --configfile

.PHONY: help demo test check real reference slurm

help:
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## */    make \1\t/' | expand -t 24

demo: .venv/ready        ## the whole 5 x 10 matrix on the CPU, to the report
	@echo "The demo: 5 conditions x 10 EM seeds of a toy model, every stage and check of the full matrix. It takes 6 to 9"
	@echo "minutes on two cores, downloads nothing and ends with the answer. Ctrl-C stops it; the same command goes on."
	@$(RUN) config/demo.yaml
	@python -m workflow latest --configfile config/demo.yaml

test: .venv/ready check  ## everything that CI runs
	python -m pytest tests/unit tests/workflow tests/lessons tests/slurm/test_slurm.py

check: .venv/ready
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules
	mypy
	snakemake --lint --configfile config/demo.yaml

reference: .venv/ready   ## statistics, claims and report of the published table alone: seconds
	python -m workflow reference

real: .venv/ready        ## one condition, two EM seeds, on real data: make real DATA=DIR (config/README.md has the layout)
	@test -n "$(DATA)" || { echo "error: name the folder: make real DATA=DIR"; exit 1; }
	@$(RUN) config/real.yaml --config data_root="$(DATA)"
	@python -m workflow latest --configfile config/real.yaml

slurm: .venv-slurm/ready ## the demo, and faults, on a real SLURM on loopback: root, Debian's packages (tests/slurm/minislurm.sh)
	python -m pytest tests/slurm

# The plugin on top of .venv, not in it: with the plugin and no controller every start of Snakemake takes eleven seconds.
.venv-slurm/ready: .venv/ready envs/slurm.txt
	$(PYTHON) -m venv .venv-slurm
	"$(BIN)/python" -c $(SITE) > $$(.venv-slurm/bin/python -c $(SITE))/base.pth
	.venv-slurm/bin/python -m pip install --quiet --disable-pip-version-check -r envs/slurm.txt
	touch $@

.venv/ready: envs/install.sh envs/dev.txt envs/cpu.txt envs/base.lock.txt
	@PYTHON="$(PYTHON)" envs/install.sh
	@touch $@
