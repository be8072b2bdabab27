# Two commands, each complete on a machine with python3 and make:
#   make demo   install, train the embedded emoji under the curriculum, write samples
#   make test   install the three backends, then lint, BUILD checks and all tests
# The environment in .venv is made once and then reused.

PYTHON ?= python3
BIN := .venv/bin
BACKENDS := tensorflow jax torch
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test torture lint build-files clean $(addprefix test-,$(BACKENDS))

demo: .venv/demo
	rm -rf demo
	$(BIN)/python apps/train.py --preset=dit_emoji16 --sample_every=600 --workdir=demo
	$(BIN)/python apps/sample.py --workdir=demo --output=demo
	@echo "Look at demo/samples.png."

# Two processes at a time, slowest backend first; JOBS=1 runs one after the other.
JOBS ?= 2
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

test: lint build-files
	$(MAKE) --jobs=$(JOBS) $(SYNC) --no-print-directory test-jax test-tensorflow test-torch test-backend-free

# Kills runs at random moments and compares them with one that nothing happened to: about four
# minutes a backend. TORTURE holds arguments of tests/torture.py.
torture: .venv/test
	$(BIN)/python tests/torture.py $(TORTURE)

lint: .venv/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

build-files: .venv/test .venv/buildifier
	.venv/buildifier --mode=check --lint=warn BUILD MODULE.bazel

# JAX compiles each new model anew, also one that differs by name alone; this cache notices.
test-jax: export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.venv/jax-cache
test-jax: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
test-jax: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES ?= -1

# Most of the time of these tests goes into compiling what runs once: XLA's passes run as always,
# LLVM's optimization does not, which takes a third off. TensorFlow's tests compile with it.
test-jax: export XLA_FLAGS ?= --xla_backend_optimization_level=0

# Tests that need no particular backend run once, the others once a backend.
test-backend-free: .venv/test
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -q -m backend_free

$(addprefix test-,$(BACKENDS)): test-%: .venv/test
	KERAS_BACKEND=$* $(BIN)/python -m pytest -q -m "not backend_free"

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
