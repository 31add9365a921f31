# make demo | test | lint | docs | help. Needs Python 3.11 or newer and nothing else:
# everything is installed into $(VENV), once, and again when the requirements change.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST_ARGS ?=
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

.PHONY: help demo test slow coverage lint docs properties hooks clean

help:
	@echo "make demo        I2VAE on ml100k_genres: prepares, trains, prints the table"
	@echo "make test        the tests (WORKERS=2 at a time, PYTEST_ARGS=... for more of pytest's options)"
	@echo "make slow        the tests that take more than ten seconds each"
	@echo "make coverage    the tests again, and which lines they never reach"
	@echo "make lint        ruff, mypy, and who may import whom"
	@echo "make docs        the site of the documentation, in site/"
	@echo "make properties  the property files, from the classes that declare settings"
	@echo "make hooks       has git run the quick checks before each commit"
	@echo "make clean       removes the environment and everything that can be made again"

demo: $(INSTALLED)
	$(BIN)/python run_recbole_cdr.py --model=I2VAE --dataset=ml100k_genres

test: $(INSTALLED)
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

slow: $(INSTALLED)
	$(PYTEST) -m slow $(PYTEST_ARGS)

coverage: $(INSTALLED)
	$(PYTEST) -m "not slow" --cov=recbole_cdr_ext --cov-report=term:skip-covered $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

properties: $(INSTALLED)
	$(BIN)/python -m recbole_cdr_ext.settings.property_files

hooks: $(INSTALLED)
	$(BIN)/pre-commit install

# torch comes first and alone, in its exact version, so that a build for this machine is taken where pip finds one.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11, or missing: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info .coverage cache log log_tensorboard
	rm -rf .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
