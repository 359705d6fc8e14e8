# Two commands matter: `make demo` and `make test`. Both set everything up first; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/cpu.lock
READY := $(VENV)/.ready

# Set-up compiles no module beforehand: Python keeps what it compiles at the first import. Where it may not (many
# container images say so), every process that Ray starts compiles torch anew, and the tests take twice as long.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test unit lint lock clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 10

setup: $(READY)  ## make the virtual environment .venv (does nothing the second time)

$(READY): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Rondo needs Python 3.11 or newer; set PYTHON=/path/to/python3")'
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@# Most modules of the large packages are never imported; those that are, Python compiles then.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -r $(LOCK)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup  ## run the quickstart: two rounds of DPO on SmolLM2-135M
	$(BIN)/rondo run quickstart

test: setup lint unit  ## run every check and test
	$(BIN)/python -m pytest tests/ray tests/e2e --numprocesses=2 --dist=loadfile --no-loadscope-reorder

unit: setup  ## run the tests that take seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit --numprocesses=auto --dist=worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

lock: setup  ## resolve the CPU set-up anew and write requirements/cpu.lock
	$(BIN)/python requirements/lock.py

clean:  ## delete the virtual environment and the results
	rm -rf $(VENV) .rondo
