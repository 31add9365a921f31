# make demo | test | lint | properties | clean. Needs Python 3.11 or newer and nothing else:
# everything is installed into $(VENV), once, and again when the requirements change.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST_ARGS ?=
WORKERS ?= 2

.PHONY: help demo test lint properties clean

help:
	@echo "make demo   I2VAE on ml100k_genres: prepares, trains, prints the table"
	@echo "make test   the tests (WORKERS=2 at a time, PYTEST_ARGS=... for more of pytest's options)"
	@echo "make lint   ruff and mypy"
	@echo "make properties  writes properties/ from the classes that declare settings"
	@echo "make clean  removes the environment and everything that can be made again"

demo: $(INSTALLED)
	$(BIN)/python run_recbole_cdr.py --model=I2VAE --dataset=ml100k_genres

test: $(INSTALLED)
	$(BIN)/python -m pytest -q -m "not slow" -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

properties: $(INSTALLED)
	$(BIN)/python -m recbole_cdr_ext.settings.write

# torch comes first and alone, in its exact version, so that a build for this machine is taken where pip finds one.
$(INSTALLED): setup.cfg setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11, or missing: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache cache log log_tensorboard
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
