# make run    set up an environment, run the default comparison, open its report      (ARGS="--models mamba,gru …")
# make test   set up an environment for development and pass the tests                (ARGS="tests/suite -k store …")

VENV := .venv
PYTHON ?= python3
# The version that the tests pass with. `make run TORCH="torch>=2.11"` takes another.
TORCH ?= torch==2.13.0
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: run test test-gpu lint clean

run: $(VENV)/installed
	$(VENV)/bin/suite run --open $(ARGS)

test: $(VENV)/installed-dev
	tests/ensure_browser.sh
	$(VENV)/bin/python -m pytest $(ARGS)

test-gpu: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest -m gpu $(ARGS)

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

$(VENV)/installed: pyproject.toml | $(VENV)
	$(PIP) install --quiet "$(TORCH)" --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)
	$(PIP) install --quiet "$(TORCH)" --editable ".[dev]"
	touch $@ $(VENV)/installed

$(VENV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "The suite needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 …" >&2; exit 2; }
	$(PYTHON) -m venv $@

clean:
	rm -rf $(VENV) build dist *.egg-info
