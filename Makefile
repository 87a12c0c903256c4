# make all: the notebooks into figures/$(PROFILE). Whether a notebook runs again is decided by content
# (layerswap/run/notebooks.py), not by file times; this file knows only the order.
PROFILE   ?= lab
PYTHON    ?= python3
# Sections are named NN_name and have an entry "layerswap" in their metadata; other notebooks are somebody's drafts.
NOTEBOOKS := $(shell grep -lE '"layerswap": *\{' notebooks/*.ipynb | sed -nE 's|^notebooks/([0-9]{2}_[A-Za-z0-9_]+)\.ipynb$$|\1|p')
ON_REQUEST := $(patsubst notebooks/%.ipynb,%,$(shell grep -lE '"on_request": *true' notebooks/*.ipynb))
RUN       := -m layerswap.run
# Notebooks at once: of the lab two, with a thread each, as two threads on so small a model are no faster than one.
JOBS      ?= $(if $(filter ci lab%,$(PROFILE)),2,1)
MAKEFLAGS += -j$(JOBS)
# An active conda environment in which layerswap is installed (environment.yml) is used as it is; else .venv is made.
CONDA     := $(if $(CONDA_PREFIX),$(shell ls -d "$$CONDA_PREFIX"/lib/python3.*/site-packages/layerswap-*.dist-info 2>/dev/null))
PY        := $(if $(CONDA),"$$CONDA_PREFIX"/bin/python,.venv/bin/python)
READY     := $(if $(CONDA),conda,.venv/.ready)
MOVED     := $(shell test ! -e .venv/.ready || test "$$(cat .venv/.ready)" = "$$(pwd -P)" || echo moved)
# What Python and its kernels import is this checkout, wherever an editable install points.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
export PROFILE GIGABYTES
# As layerswap/__init__.py says; here too, for what imports torch first.
export GOMP_SPINCOUNT ?= 10000

.PHONY: all report cost plan check test browser-test lab notebooks base lock clean help conda moved $(NOTEBOOKS)
.DEFAULT_GOAL := help

all: $(filter-out $(ON_REQUEST),$(NOTEBOOKS))  ## run what changed of the notebooks into figures/$(PROFILE) (PROFILE=lab), and write its findings and report
	@$(PY) $(RUN) findings --profile "$$PROFILE"
	@$(PY) $(RUN) report --profile "$$PROFILE"
$(filter-out 01_experts,$(NOTEBOOKS)): 01_experts
$(NOTEBOOKS): $(READY)
	@$(PY) $(RUN) run --profile "$$PROFILE" $@

report: $(READY)  ## the notebooks that were run and the findings as pages: build/$(PROFILE)/report/index.html
	@$(PY) $(RUN) report --profile "$$PROFILE"

cost: $(READY)  ## what `make all` of a profile would load, train, merge and evaluate, and its cost (runs nothing)
	@$(PY) $(RUN) cost --profile "$$PROFILE"

plan:
	$(error `make plan` is called `make cost` now: make cost PROFILE=$(PROFILE))

check: $(READY)  ## lint, format, types, direction of imports, fast tests: under a minute, for every commit
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -c 'import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_logo=True))'
	@$(PY) -m pytest -q -m fast -n logical --dist worksteal tests

# One process a core with one thread each: two processes of two threads each take several times as long.
check test: export OMP_NUM_THREADS = 1
test: $(READY)  ## everything: lint, all unit tests, notebook guards, nbval
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pytest -q -n logical --dist worksteal tests
	$(PY) -m pytest -q --nbval --nbval-current-env notebooks/01_experts.ipynb
	$(PY) -m pytest -q -n logical --dist loadfile --nbval --nbval-current-env \
		$(patsubst %,notebooks/%.ipynb,$(filter-out 01_experts,$(NOTEBOOKS)))

browser-test: $(READY)  ## the report and the explorer in a real browser (docs/report.md: how to install Chromium)
	@$(PY) -m pip install -q --disable-pip-version-check -r requirements-browser.lock
	@$(PY) $(RUN) run --profile ci
	@$(PY) $(RUN) report --profile ci
	$(PY) -m pytest -q -rsP tests/test_pages_in_browser.py

# Its settings: Markdown is shown rendered, and nobody is asked about news (layerswap/run/templates/jupyterlab).
lab: $(READY)  ## open JupyterLab, on a page that links notebooks, results and reports
	@test "$$(id -u)" != 0 || echo "layerswap: JupyterLab runs as root here, and so does all that is run in it" >&2
	@$(PY) $(RUN) start
	$(PY) -m jupyterlab --LabApp.app_settings_dir=layerswap/run/templates/jupyterlab \
		"--LabApp.default_url=/lab/tree/build/start.md?file-browser-path=/" $(if $(filter 0,$(shell id -u)),--allow-root)

notebooks: $(READY)  ## execute the notebooks in place with their defaults and clean them
	$(PY) $(RUN) refresh

base: $(READY)  ## train the lab's base anew (remove layerswap/lab/data/base first); SEED=1: another, to build/lab-base-1
	$(PY) -m layerswap.lab.pretrain $(if $(SEED),--seed "$(SEED)")

lock: $(READY)  ## write requirements.lock from what the environment holds
	$(PY) -m pip freeze --exclude-editable | sed 's/^\(torch==[0-9.]*\)+cpu/\1/' > requirements.lock

clean:  ## remove .venv and build (trained experts, kept answers); figures stay
	rm -rf .venv build

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

.venv/.ready: requirements.lock $(MOVED)
	@"$(PYTHON)" environment.py
conda:
	@$(PY) environment.py check
