# Every target makes the environment it needs. `make demo` and `make test` are all the set-up there is.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TEST_PROCESSES ?= 2
BEGAN := $(shell date +%s)
# Modules are compiled when they are first imported, and kept: else every command would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow coverage lint lint-fast lint-slow docs rooms reference env clean

env: $(VENV)/.ready

# One call of pip each, so that versions are resolved once; most modules are never imported, so it compiles none. The
# stamp is written last, so that an interrupted installation starts over.
define install
	@command -v $(PYTHON) > /dev/null || { echo "no $(PYTHON): on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mcc needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '$(1)'
endef

$(VENV)/.ready: pyproject.toml constraints.txt
	$(call install,.)
	touch $@

$(VENV)/.ready-dev: pyproject.toml constraints.txt
	$(call install,.[dev])
	touch $(VENV)/.ready $@

# The command itself says how long data, trials and report took.
demo: $(VENV)/.ready
	@echo "install: $$(($$(date +%s) - $(BEGAN))) s"
	$(BIN)/mcc sweep submit sweeps/mask_ablation.yaml
	@echo "in all: $$(($$(date +%s) - $(BEGAN))) s; pictures and curves: $(BIN)/mcc ui"

lint: lint-fast lint-slow

lint-fast: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-slow: $(VENV)/.ready-dev
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/codespell mcc_core orchestrator tests docs benchmarks sweeps docker README.md CONTRIBUTING.md CHANGELOG.md

# Types are checked beside the tests, which wait now and then. What the check says comes at the end; either may fail.
# The floor of the coverage is in pyproject.toml.
test: lint-fast
	@log=$$(mktemp); $(MAKE) --no-print-directory lint-slow > $$log 2>&1 & lint=$$!; \
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --no-loadscope-reorder --cov --cov-report=; tests=$$?; \
	wait $$lint; linted=$$?; cat $$log; rm -f $$log; \
	test $$tests = 0 && test $$linted = 0

test-slow: $(VENV)/.ready-dev
	$(BIN)/python -m pytest --slow -m "slow or before_slow or hypothesis"

# File by file, of the last `make test`.
coverage: $(VENV)/.ready-dev
	$(BIN)/coverage report

docs: $(VENV)/.ready-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

rooms: $(VENV)/.ready-dev
	$(BIN)/python docs/rooms.py

reference: $(VENV)/.ready-dev
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .coverage .mypy_cache .ruff_cache .hypothesis
