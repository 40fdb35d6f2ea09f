PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: tms test lint types bench docs clean

# torch first and pinned: a CPU build of that very version may be kept on the machine, and a range would
# fetch gigabytes of CUDA packages in its stead.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) torch==2.13.0
	$(INSTALL) --editable .[test]
	touch $@

tms: .venv/installed
	$(BIN)/python -m toolkit.sae_fit --target tms

test: .venv/installed lint types
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

bench: .venv/installed
	$(INSTALL) --editable .[bench]
	$(BIN)/python -m benchmarks

# The API reference, to be opened at site/index.html; docs/ holds what differs from pdoc's own templates.
docs: .venv/installed
	rm -rf site
	$(BIN)/pdoc --docformat google --template-directory docs --output-directory site toolkit controls experiments

clean:
	rm -rf .venv runs site .mypy_cache .pytest_cache .ruff_cache .coverage
