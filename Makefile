# Two commands do everything, set-up included: `make demo` and `make test`.
# They need Python 3.11, 3.12 or 3.13 with venv and its headers, and a C++ compiler; PYTHON=... chooses the interpreter.

VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py

.DEFAULT_GOAL := help
.PHONY: help demo horovod test test-all coverage lint bench bench-fits reproduce docs clean

help:
	@echo "make demo     train one network in five ways; writes runs/quickstart/report.html"
	@echo "make horovod  build Horovod for the TensorFlow in $(VENV); once, then from the cache"
	@echo "make test     run the tests, but those that are slow by nature; ONLY=nqm runs those of one package"
	@echo "make test-all run all tests"
	@echo "make coverage run all tests, slower, and demand that they reach 95% of lines and branches"
	@echo "make lint     check style, docstrings and types"
	@echo "make bench    time everything against others, and what distributing costs"
	@echo "make bench-fits time what callbacks add to fits of a minute, and planning with a budget (hours)"
	@echo "make reproduce measure published figures again (half an hour) and rewrite docs/reproductions.md"
	@echo "make docs     rebuild the tables of docs/ from benchmarks/results/, and the site in build/site"

# The system's own Python first: a distribution optimises it by profile, which tracing TensorFlow's graphs feels (a
# tenth of the tests' time); one that was built from source by hand seldom is.
USABLE := import os, sys, venv, ensurepip; from sysconfig import get_path; \
	sys.exit(not ((3, 11) <= sys.version_info < (3, 14) and os.path.exists(get_path("include") + "/Python.h")))

$(BIN)/python:
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
		for candidate in /usr/bin/python3 python3.12 python3.11 python3.13 python3; do \
			if "$$candidate" -c '$(USABLE)' >/dev/null 2>&1; then \
				python="$$candidate"; break; \
			fi; \
		done; \
	fi; \
	if [ -z "$$python" ]; then \
		echo "tfopt needs Python 3.11, 3.12 or 3.13 with the venv module and its headers; none was found. Set PYTHON=/path/to/python."; exit 1; \
	fi; \
	echo "Creating $(VENV) with $$python"; \
	"$$python" -m venv $(VENV)

# $(call install,extras): stamped, so that it runs again only when the requirements change.
$(VENV)/installed-%: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	@touch $@

demo: $(VENV)/installed-plot
	$(BIN)/python examples/quickstart.py

# Needed by the tests of tfopt.distributed.
BUILDER := $(wildcard tfopt/distributed/build_horovod/*.py)

$(VENV)/built-horovod: $(BUILDER) | $(VENV)/installed-test
	$(BIN)/python -m tfopt.distributed.build_horovod
	@touch $@

horovod: $(VENV)/built-horovod

# A file is one worker's, since its fixtures are made once. Without reordering, files start in the order of the folders
# below: xdist would start those with few tests last, which take longest.
PYTEST := $(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

# In six runs, one after the other: TensorFlow keeps what `fit` has compiled, and workers would grow through all of them.
# XLA keeps most: a part of what uses it runs beside files that leave little. In the last run, the one file that takes
# long comes first.
FIRST := tests/callbacks tests/bregman/test_trainer.py
SECOND := tests/curvature
THIRD := $(filter-out $(FIRST),$(wildcard tests/bregman/test_*.py))
FOURTH := tests/optimizers tests/models
FIFTH := tests/nqm tests/planning
OTHERS := tests/distributed tests/examples tests
OTHERS += $(addprefix --ignore=,tests/callbacks $(SECOND) tests/bregman $(FOURTH) $(FIFTH))
RUNS := $(if $(ONLY),"tests/$(ONLY)","$(FIRST)" "$(SECOND)" "$(THIRD)" "$(FOURTH)" "$(FIFTH)" "$(OTHERS)")

define run_tests
@failed=0; \
for run in $(RUNS); do \
	echo '$(PYTEST) $(1)' $$run; $(PYTEST) $(1) $$run || failed=1; \
done; \
exit $$failed
endef

test: $(VENV)/installed-test $(VENV)/built-horovod
	$(call run_tests,-m "not slow_by_nature")

test-all: $(VENV)/installed-test $(VENV)/built-horovod
	$(call run_tests,)

# Tracing costs about a third of the time, in the ranks too: not a part of `make test`.
coverage: $(VENV)/installed-test $(VENV)/built-horovod
	$(PYTEST) --cov --cov-report= --cov-fail-under=0 $(FIRST) $(SECOND) $(THIRD) $(FOURTH)
	$(PYTEST) --cov --cov-append --cov-report=term $(OTHERS)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed-bench $(VENV)/built-horovod
	$(BIN)/python benchmarks/optimizers.py
	$(BIN)/horovodrun -np 2 $(BIN)/python benchmarks/distributed.py
	$(BIN)/python benchmarks/curvature.py
	$(BIN)/python benchmarks/callbacks.py
	$(BIN)/python benchmarks/measuring.py --sections first products job
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/nqm.py
	$(BIN)/python benchmarks/bregman.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/horovodrun -np 2 $(BIN)/python benchmarks/scaling.py
	HOROVOD_CYCLE_TIME=0.1 $(BIN)/horovodrun -np 2 $(BIN)/python benchmarks/scaling.py --messages
	$(BIN)/python benchmarks/faults.py
	$(BIN)/python benchmarks/tables.py

bench-fits: $(VENV)/installed-bench
	$(BIN)/python benchmarks/measuring.py --sections callbacks planning
	$(BIN)/python benchmarks/tables.py

reproduce: $(VENV)/installed-plot
	$(BIN)/python examples/reproduce/run_all.py
	$(BIN)/python examples/reproduce/page.py

docs: $(VENV)/installed-docs
	$(BIN)/python benchmarks/tables.py
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m sphinx --fail-on-warning --keep-going -q -b html docs build/site
	@echo "Written: build/site/index.html"

clean:
	rm -rf $(VENV) build dist runs *.egg-info
