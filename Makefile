# Two commands are all a new user needs: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow bench ui install lint clean

demo: .venv/.core
	$(BIN)/steatosis demo

test: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy steatosis_tf
	@command -v chromium >/dev/null || $(MAKE) --no-print-directory browser
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: .venv/.dev
	$(BIN)/python -m pytest -m slow

# Ratios measured side by side; about five minutes on two idle cores.
bench: .venv/.dev
	$(BIN)/python benchmarks/speed_engines.py
	$(BIN)/python benchmarks/speed_line.py

ui: .venv/.core
	$(BIN)/mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db

install: .venv/.core

# The browser tests skip, and say so, where this cannot be done.
browser:
	-apt-get update -qq && apt-get install -y -qq chromium

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv

.venv/.core: setup.cfg constraints.txt | .venv/bin/python
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e .
	touch $@

.venv/.dev: .venv/.core
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev,dicom,page,fast,sweep,table1]'
	touch $@

clean:
	rm -rf .venv demo runs
