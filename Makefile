# `make` lists what one can do. Everything happens in .venv, made on first use.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
RUN    ?= runs/demo
CHECKS ?= 100
# Several threads in each of two workers would wait for one another at every barrier; and the many processes that tests
# start compile our own modules once.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
# Only these files are imported where tests run alone.
ALONE  = $(sort $(shell grep -rl --include='test_*.py' 'mark\.alone' tests))
# Both runs find what one of them has made (tests/support/once_per_run.py).
ONCE   = once=$$(mktemp -d) && trap 'rm -rf "$$once"' EXIT && trap 'exit 1' HUP INT TERM && export SHEARLING_TESTS_ONCE="$$once"

.DEFAULT_GOAL := help
.PHONY: help install demo demo-lonas test test-all smoke fuzz check wheels bench bench-guard format schema clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: $(READY) ## A real model from pretrained to deployed
	$(BIN)/shearling demo --output $(RUN)

demo-lonas: $(READY) ## An encoder with elastic widths, cut to size
	$(BIN)/shearling demo-lonas

install: $(READY) ## Everything into .venv, the kernels compiled

test: $(READY) ## The tests, on real runtimes, ten minutes; no network but the package registry
	$(ONCE) && $(PYTEST) --numprocesses 2 -m "not slow and not alone and not demo" && \
		$(PYTEST) -m "alone and not slow and not demo" $(ALONE)

test-all: $(READY) ## These, and what takes longer: real models, every family, kills and resumes
	$(ONCE) && $(PYTEST) --numprocesses 2 -m "not alone and not demo" && \
		$(PYTEST) -m "alone and not demo" $(ALONE)

smoke: $(READY) ## The demo at a small scale, checked from end to end
	$(PYTEST) -m demo

fuzz: $(READY) ## A million damaged inputs for the C++ under sanitizers; SHEARLING_FUZZ_SEED=N for others
	SHEARLING_FUZZ_CASES=250000 $(PYTEST) --numprocesses 2 tests/shearling/kernel/test_sanitizers.py

check: $(READY) ## Lint, format, types, import contract, spelling, known vulnerabilities
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python packages/audit_lock.py $(AUDIT)

wheels: $(READY) ## Toolchain and prebuilt operators into dist/, each with its bill of materials
	$(BIN)/python packages/build_wheels.py

bench: $(READY) ## Training step against stock PEFT, interleaved
	$(BIN)/python -m benchmarks.training_step --base $(RUN)/base

bench-guard: $(READY) ## The latency guard's false alarms and catches; about an hour
	$(BIN)/python -m benchmarks.latency_guard --model $(RUN)/export/model --checks $(CHECKS) $(GUARD)

format: $(READY) ## Format the code and fix what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: $(READY) ## Write the published schema of recipes, and the page of what there is
	$(BIN)/shearling schema --output recipes/recipe.schema.json
	$(BIN)/shearling members --output docs/members.md

clean: ## Remove caches; runs/ and .venv stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# Compiled by all processors, where pip takes one: what PYTHONDONTWRITEBYTECODE, as containers have it, leaves uncompiled
# costs every command some fifteen seconds. A few modules are of other Pythons, and do not compile.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || (echo "Python 3.11 to 3.13 is needed: make PYTHON=python3.12" && false)
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[cpu,dev]'
	$(BIN)/python -m compileall -q -j 0 "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" > /dev/null 2>&1 || true
	$(BIN)/shearling doctor
	touch $@
