# Two commands for a newcomer: make quickstart, make test. Each one first builds .venv, once.

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
READY := .venv/.ready
DOCS_READY := .venv/.docs-ready
BROWSER_READY := .venv/.browser-ready

# A fresh directory each time, because a run is never written over another. OUT=DIR names your own.
ifndef OUT
OUT := runs/quickstart-$(shell date +%Y%m%d-%H%M%S)
endif

.PHONY: help venv quickstart browser test lint docs bench results pictures screenshot format check clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "Settings: PYTHON=$(PYTHON)  WORKERS=$(WORKERS) (test processes)  OUT=DIR (where quickstart writes)"

venv: $(READY) ## build the virtual environment .venv

# Written last, so an installation that broke off is started again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is missing or older than 3.11; name another one: make PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) cannot build virtual environments; on Debian: apt install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

# What builds the documentation is installed only where it is built.
$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

# What opens pages in a Chromium; without it, or without a Chromium, the tests that do so are skipped.
$(BROWSER_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[browser]'
	@touch $@

browser: $(BROWSER_READY) ## install what the tests of pages in a Chromium need beside it

quickstart: $(READY) ## train and attack three small networks on real digits, in minutes
	$(BIN)/anchor quickstart --out '$(OUT)'

# Each test process keeps torch to one thread (tests/conftest.py), so two of them fill two cores.
test: $(READY) ## run the tests
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

lint: $(READY) ## check style, types and the import contract
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python results/table.py --check
	$(BIN)/python results/figures.py --check

# A page that fetches anything from elsewhere is an error, like every warning.
docs: $(DOCS_READY) ## build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@! grep -rnE --include='*.html' '<(script|link|img|iframe)[^>]+(src|href)="?(https?:)?//' build/site
	@echo "written: build/site/index.html"

bench: $(READY) ## measure what docs/performance.md shows, an hour or two; ONLY=NAME,.. measures those
	$(BIN)/python benchmarks $(if $(ONLY),--only '$(ONLY)')
	$(BIN)/python results/table.py

results: $(READY) ## write tables and figures of the README from the run files in results/
	$(BIN)/python results/table.py
	$(BIN)/python results/figures.py

pictures: $(READY) ## draw what explains concepts in docs/, from real images and the committed runs
	$(BIN)/python results/concepts.py

screenshot: $(BROWSER_READY) ## take the picture of a report that README and docs show, in a Chromium
	$(BIN)/python results/screenshot.py

format: $(READY) ## put the code into the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

check: lint test ## everything that must pass before a commit

clean: ## remove .venv and the caches; runs stay
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
