# Two commands, each complete on a machine with python3 and make:
#   make demo   install, train the embedded emoji under the curriculum, write samples
#   make test   install the three backends, then lint, BUILD checks and the tests
# The environment in .venv is made once and then reused.

PYTHON ?= python3
BIN := .venv/bin
BACKENDS := tensorflow jax torch
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test test-all coverage torture lint build-files clean $(addprefix test-,$(BACKENDS))

demo: .venv/demo
	rm -rf demo
	$(BIN)/python apps/train.py --preset=dit_emoji16 --sample_every=600 --workdir=demo
	$(BIN)/python apps/sample.py --workdir=demo --output=demo
	@echo "Look at demo/samples.png."

# Two parts at a time; JOBS=1 runs one after the other. On one backend: make test-jax.
JOBS ?= 2
SUITE = $(BIN)/python tests/run_suite.py --jobs=$(JOBS)

test: lint build-files
	$(SUITE)

# With large grids of parameters and long scenarios, and `one_backend` tests on each backend.
test-all: lint build-files
	$(SUITE) --all

# The lines and branches of keras_cdiff that `make test` runs; COVERAGE=--all for `make test-all`.
coverage: .venv/test
	$(SUITE) --coverage $(COVERAGE)

$(addprefix test-,$(BACKENDS)): test-%: .venv/test
	$(SUITE) $*

# Kills runs at random moments and compares them with one that nothing happened to: about four
# minutes a backend. TORTURE holds arguments of tests/torture.py.
torture: .venv/test
	$(BIN)/python tests/torture.py $(TORTURE)

lint: .venv/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

build-files: .venv/test .venv/buildifier
	.venv/buildifier --mode=check --lint=warn BUILD MODULE.bazel

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/demo: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

.venv/test: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[jax,torch,test]"
	touch $@

.venv/buildifier: tests/fetch_buildifier.py | .venv/test
	$(BIN)/python tests/fetch_buildifier.py $@

clean:
	rm -rf .venv demo
