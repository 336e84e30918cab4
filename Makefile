# `make demo` and `make test` install what they need in a virtual environment, .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test docs engines simulated-gpu page lint format clean

demo: .venv/installed
	$(BIN)/glmtune demo

test: .venv/installed-test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# The documentation as a site, in build/site; it needs neither torch nor this package.
docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet --site-dir build/site

# Exports on llama.cpp, vLLM and TRL, each in an environment of its own; see CONTRIBUTING.md.
engines: .venv/installed-test
	$(PYTHON) tests/engines/build_environments.py .engines
	GLMTUNE_ENGINES=.engines OMP_NUM_THREADS=1 $(BIN)/python -m pytest -x tests/engines/check_*.py

# Every method, precision and generation on a GPU that is simulated; see CONTRIBUTING.md.
simulated-gpu: .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rA tests/fake_device/check_methods.py

# The web page in a browser once more, in English, in dark colours and without a mouse; see CONTRIBUTING.md.
page: .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rA tests/browser/check_flow.py

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch is installed first and alone, so that the later packages do not replace its build.
.venv/torch: constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	touch $@

.venv/installed: .venv/torch pyproject.toml
	$(PIP) -e .
	touch $@

.venv/installed-test: .venv/torch pyproject.toml
	$(PIP) -e '.[test]'
	touch $@ .venv/installed

.venv-docs/installed: constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		mkdocs mkdocs-material mkdocs-static-i18n jieba
	touch $@

clean:
	rm -rf .venv .venv-docs .engines build dist .pytest_cache .mypy_cache .ruff_cache
