# Each target does its own set-up in .venv; `make reproduce` and `make test` are the two that matter.
PYTHON ?= $(shell for v in 3.12 3.13 3.11; do p=$$(command -v python$$v) && $$p -c '' 2>/dev/null && echo $$p && break; done || true)
ifeq ($(strip $(PYTHON)),)
PYTHON := python3
endif
BIN := .venv/bin
DATA_DIR ?=
PRESET ?= quick

.PHONY: reproduce test fuzz kills lab docs clean

reproduce: .venv/run
	$(BIN)/medgan-nb reproduce all --preset $(PRESET) $(if $(DATA_DIR),--data-dir "$(DATA_DIR)")

test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadgroup tests

# The campaigns of tests/fuzz and tests/test_kills.py at any length: make fuzz N=10000 SEED=1, make kills N=1000
fuzz: .venv/dev
	OMP_NUM_THREADS=1 MEDGAN_FUZZ=$(or $(N),10000) MEDGAN_SEED=$(or $(SEED),0) $(BIN)/python -m pytest -q tests/fuzz

kills: .venv/dev
	OMP_NUM_THREADS=1 MEDGAN_KILLS=$(or $(N),300) MEDGAN_SEED=$(or $(SEED),0) $(BIN)/python -m pytest -q -n auto tests/test_kills.py

lab: .venv/run
	$(BIN)/jupyter lab papers/index.ipynb

docs: .venv/docs
	OMP_NUM_THREADS=1 $(BIN)/python docs/build.py

clean:
	rm -rf .venv build *.egg-info _proc _docs .pytest_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v[:2] <= (3, 13) else \
	  f"Python {v[0]}.{v[1]} found at {sys.executable}; medgan_nb needs 3.11 to 3.13. Name one: make PYTHON=/path/to/python3.12")'
	$(PYTHON) -m venv .venv

.venv/run: .venv/bin/python settings.ini setup.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/dev: .venv/bin/python settings.ini setup.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,docs]'
	@sh tests/chromium.sh || true
	@touch $@ .venv/run

.venv/docs: .venv/bin/python settings.ini setup.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@ .venv/run
