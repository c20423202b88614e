# Two commands, each enough on a fresh machine with Python >= 3.11: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# C kernels, which are compiled at their first use otherwise; nothing where there is no compiler
KERNELS := $(BIN)/python -P grpo_bench/kernels/build.py

.PHONY: demo test slow ray parity lint types clean

demo: $(VENV)/.demo
	$(BIN)/python -m grpo_bench -m --config-dir sweeps --config-name demo
	$(BIN)/python -m grpo_bench.table results/demo-arithmetic

test: $(VENV)/.dev $(VENV)/.peers
	$(BIN)/python -m pytest

slow: $(VENV)/.dev $(VENV)/.peers
	$(BIN)/python -m pytest -m "slow and not gpu and not network"

# Ray's plugin asks for older packages than the others do, so it has an environment of its own on top of theirs.
ray: $(VENV)/.dev
	$(PYTHON) -m venv $(VENV)/ray
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > $(VENV)/ray/lib/$$(ls $(VENV)/ray/lib)/site-packages/base.pth
	$(VENV)/ray/bin/python -m pip install --quiet --disable-pip-version-check hydra-ray-launcher 'cloudpickle<3'
	$(VENV)/ray/bin/python -m pytest -m "slow or not slow" -k ray tests/test_launch.py

parity: $(VENV)/.dev $(VENV)/.peers
	$(BIN)/python -m pytest tests/parity
	$(BIN)/python tests/parity/table.py into=results/parity

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
	$(KERNELS)
	@touch $@

$(VENV)/.dev: $(VENV)/.pip pyproject.toml
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(INSTALL) --editable '.[all]' --group dev
	$(KERNELS)
	@touch $@

# Systems to compare with, without what they depend on; where they cannot be had their tests are skipped.
$(VENV)/.peers: $(VENV)/.pip tests/parity/requirements.txt
	rm -rf $(VENV)/peers
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/peers \
		--requirement tests/parity/requirements.txt && touch $@ || \
		echo "verl and OpenRLHF could not be installed: their tests are skipped" >&2

clean:
	rm -rf $(VENV) build dist
