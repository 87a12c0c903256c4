# make all: five notebooks into figures/$(PROFILE). Whether a notebook runs again is decided by content
# (layerswap/run/notebooks.py), not by file times; this file knows only the order.
PROFILE   ?= lab
PYTHON    ?= python3
PY        := .venv/bin/python
NOTEBOOKS := 01_experts 02_swap 03_transition 04_top_bottom 05_mgsm
RUN        = $(PY) -m layerswap.run run --profile $(PROFILE)
READY     := .venv/.ready

.PHONY: all cost plan check test lab notebooks base lock clean help $(NOTEBOOKS)
.DEFAULT_GOAL := help

all: $(NOTEBOOKS)  ## run what changed of the five notebooks into figures/$(PROFILE) (PROFILE=lab), and FINDINGS.md
	@$(PY) -m layerswap.run report
02_swap 03_transition 04_top_bottom 05_mgsm: 01_experts
$(NOTEBOOKS): $(READY)
	@$(RUN) $@

cost: $(READY)  ## what `make all` of a profile would load, train, merge and evaluate, and its cost (runs nothing)
	@$(PY) -m layerswap.run cost --profile $(PROFILE)

plan:
	$(error `make plan` is called `make cost` now: make cost PROFILE=$(PROFILE))

check: $(READY)  ## lint, format, types, direction of imports, fast tests: under a minute, for every commit
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@.venv/bin/lint-imports --no-logo
	@$(PY) -m pytest -q -m fast tests

# One process a core with one thread each: two processes of two threads each take several times as long.
test: export OMP_NUM_THREADS = 1
test: $(READY)  ## everything: lint, all unit tests, notebook guards, nbval
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pytest -q -n logical --dist worksteal tests
	$(PY) -m pytest -q -n logical --dist loadfile --nbval --nbval-current-env notebooks

lab: $(READY)  ## open the notebooks in JupyterLab
	$(PY) -m jupyterlab notebooks

notebooks: $(READY)  ## execute the notebooks in place with their ci defaults and clean them
	$(PY) -m layerswap.run refresh

base: $(READY)  ## train the lab's base checkpoint anew (remove layerswap/lab/data/base first)
	$(PY) -m layerswap.lab.pretrain

lock: $(READY)  ## write requirements.lock from what .venv holds
	$(PY) -m pip freeze --exclude-editable | sed 's/^\(torch==[0-9.]*\)+cpu/\1/' > requirements.lock

clean:  ## remove .venv and build; figures stay
	rm -rf .venv build

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

# The stamp is written last, so an install that was cut off is done again, and one after a change of the lock too.
$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "layerswap: %s is Python %d.%d, expected 3.11 or newer; try make PYTHON=python3.11" % (sys.executable, v[0], v[1]))'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "layerswap: $(PYTHON) lacks venv or ensurepip (Debian: apt install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -c 'import shutil, sys; free = shutil.disk_usage(".").free / 2**30; sys.exit(free < 4 and "layerswap: %.1f GB free here, the environment needs 4 GB" % free)'
	@echo "installing the pinned packages into .venv"
	@$(PYTHON) -m venv --clear .venv
	@$(PY) -m pip install -q --disable-pip-version-check -r requirements.lock
	@$(PY) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
