# `make` alone says what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help install demo test check chaos
help:
	@echo "make demo    bring a fleet up here, send it two jobs, leave the files, take it down"
	@echo "make test    the whole suite, on real servers and real ranks"
	@echo "make check   ruff and mypy"
	@echo "make chaos   1000 jobs on two workers under random faults, an hour; benchmarks/README.md has more"

install: $(VENV)/.installed

# constraints.txt pins what was tested; torch's pin takes a CPU build where one is offered.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	@echo "installing into $(VENV): a minute or two"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[worker,embedded,dev]"
	touch $@

demo: install
	$(BIN)/fleet demo

test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

chaos: install
	for seed in 1 2 3 4; do $(BIN)/python -m benchmarks.chaos --seed $$seed || exit 1; done
	$(BIN)/python -m benchmarks.chaos --seed 5 --storage file
