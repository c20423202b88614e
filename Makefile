# Two commands, each enough on a fresh machine with Python >= 3.11: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint types clean

demo: $(VENV)/.demo
	$(BIN)/python -m grpo_bench -m --config-dir sweeps --config-name demo
	$(BIN)/python -m grpo_bench.table results/demo-arithmetic

test: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; say which with: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.pip: constraints.txt | $(BIN)/python
	$(INSTALL) --upgrade pip
	@touch $@

$(VENV)/.demo: $(VENV)/.pip pyproject.toml
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.pip pyproject.toml
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(INSTALL) --editable '.[all]' --group dev
	@touch $@

clean:
	rm -rf $(VENV) build dist
