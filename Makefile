# `make demo` and `make test` need only python3, pip and make: they make a virtual environment the first time.
# VENV=folder uses another one, EDITABLE= installs a copy in place of a link to the source, and
# PIP_FLAGS=... goes to pip (a machine that must not fetch CUDA builds of torch names its CPU index there), and
# TEST_JOBS=n runs the tests in n processes, of one thread each: their tensors are small, and more threads only spin.

PYTHON    ?= python3
VENV      ?= .venv
EDITABLE  ?= -e
PIP_FLAGS ?=
DEMO_ARGS ?=
TEST_ARGS ?=
TEST_JOBS ?= 2

BIN     := $(VENV)/bin
SOURCES := kernels nets solvers training

.PHONY: help demo test lint bench results setup clean

help:
	@echo 'make demo   sample 8x8 digits with every core solver; tables and pictures in out/demo'
	@echo 'make test   run the tests          (TEST_ARGS="-k heun" to choose)'
	@echo 'make lint   ruff, and mypy --strict over the package'
	@echo 'make bench  time plans, kernels and bridges against their peers, as ratios'
	@echo 'make results  run the examples again: docs/results, some 45 minutes on one core'
	@echo 'make setup  install all that developing needs in $(VENV)'
	@echo 'make clean  remove what the other targets made, except $(VENV)'

demo: $(VENV)/installed-demo
	$(BIN)/python -m halfbridge demo --out out/demo $(DEMO_ARGS)

test: $(VENV)/installed-test
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile $(TEST_ARGS)

# mypy does not follow setuptools' editable finder, so it reads a tree of links shaped like the installed package.
lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typed && mkdir -p build/typed/halfbridge
	ln -s $(CURDIR)/package/* $(addprefix $(CURDIR)/,$(SOURCES)) build/typed/halfbridge/
	MYPYPATH=build/typed $(BIN)/python -m mypy -p halfbridge

bench: $(VENV)/installed-test
	$(BIN)/python -m benchmarks.plan
	$(BIN)/python -m benchmarks.normal
	$(BIN)/python -m benchmarks.kernels
	$(BIN)/python -m benchmarks.bridge

# One thread each, whatever else runs: with the same number of threads the numbers are the same.
results: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python examples/half_moons.py
	OMP_NUM_THREADS=1 $(BIN)/python examples/digits.py
	OMP_NUM_THREADS=1 $(BIN)/python examples/gaussian_bridge.py
	OMP_NUM_THREADS=1 $(BIN)/python examples/plane_bridges.py
	OMP_NUM_THREADS=1 $(BIN)/python examples/digits_bridge.py

setup: $(VENV)/installed-dev

clean:
	rm -rf build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -f $(BIN)/python; echo "make: no $(VENV): install Python's venv module (Debian: python3-venv)"; exit 1; }

# One stamp per set of extras; a larger set stamps the smaller ones that it contains (dev > test > demo).
PINNED = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
INPUTS = setup.py pyproject.toml constraints.txt

$(VENV)/installed-demo: $(INPUTS) | $(BIN)/python
	$(PINNED) $(EDITABLE) '.[demo,fast]'
	@touch $(VENV)/installed-demo

$(VENV)/installed-test: $(INPUTS) | $(BIN)/python
	$(PINNED) $(EDITABLE) '.[test]'
	@touch $(VENV)/installed-demo $(VENV)/installed-test

$(VENV)/installed-dev: $(INPUTS) | $(BIN)/python
	$(PINNED) $(EDITABLE) '.[dev]'
	@touch $(VENV)/installed-demo $(VENV)/installed-test $(VENV)/installed-dev
