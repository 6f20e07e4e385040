# Everything a user or a CI machine runs. `make up` and `make test` need only git, make, a C++ compiler
# and Python 3.11 or newer (`make PYTHON=python3.12 up` chooses which).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What goes to `penstock up`, e.g. make up ARGS="--port 9000"
ARGS ?=
# What goes to pip, e.g. an index with CPU-only builds of torch; see the README.
PIP_ARGS ?=
# What goes to pytest, e.g. make test TESTS="tests/engine -x"
TESTS ?=

SOURCES := pyproject.toml constraints.txt Makefile
INSTALL = PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS)

.PHONY: up test check format bench bench-cpu clean
.DEFAULT_GOAL := up

up: $(VENV)/.engine
	@$(BIN)/penstock up $(ARGS)

test: $(VENV)/.check
	$(BIN)/python -m pytest $(TESTS)

check: $(VENV)/.check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_house_rules.py

format: $(VENV)/.check
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.engine
	$(BIN)/python benchmarks/service.py
	@echo "Against other engines and servers: make bench-cpu (installs them under .bench/; more than an hour)"

# Each alone: benchmarks/engine_cpu.py --help, benchmarks/serving_cpu.py --help, the others likewise.
bench-cpu: $(VENV)/.engine
	$(BIN)/python benchmarks/engine_cpu.py --pip-args="$(PIP_ARGS)"
	$(BIN)/python benchmarks/serving_cpu.py --pip-args="$(PIP_ARGS)"
	$(BIN)/python benchmarks/kv_restore.py
	$(BIN)/python benchmarks/engine_surface.py

clean:
	rm -rf $(VENV) .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Penstock needs Python 3.11 or newer; set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# A marker per set of packages: it is newer than what it was installed from, or it is made again.
$(VENV)/.engine: $(SOURCES) | $(BIN)/python
	@echo "Installing Penstock with its engine into $(VENV) (torch is large; this is done once) ..."
	$(INSTALL) -e '.[engine]'
	@touch $@

$(VENV)/.check: $(VENV)/.engine $(SOURCES)
	@echo "Installing what tests and checks need into $(VENV) ..."
	$(INSTALL) -e '.[all,check]'
	@touch $@
