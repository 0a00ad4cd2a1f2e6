# Needs make and Python >= 3.11 (PYTHON=python3.12 picks another one). Everything goes into .venv here; nothing else changes.
# Paths stay relative, so that a checkout in a folder with a space in its name works.

PYTHON ?= python3
STAMP := .venv/.setup-stamp
DEV_STAMP := .venv/.dev-stamp
UNFINISHED := .venv/.setup-unfinished
INSTALL := .venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt

# A virtual environment holds absolute paths: in a checkout that was moved or copied it would run the old place's code.
ifneq ($(wildcard $(STAMP)),)
ifneq ($(shell cat $(STAMP)),$(shell pwd -P))
$(STAMP): moved
endif
endif

# The suite starts hundreds of processes: what the first one compiled, the others find, also where the variable is set.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-long lint format bench docs moved

setup: $(STAMP)

# Byte code comes with the first import of what is used; compiling all 16,000 files beforehand takes over a minute.
# The stamp comes last; what an interrupted set-up left behind is thrown away, because a package may be half there.
$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit("edgesmith needs Python 3.11 or newer, and %s is %d.%d; name another: make $(MAKECMDGOALS) PYTHON=python3.12" % ((sys.executable,) + v) if v < (3, 11) else 0)'
	@if [ -e $(UNFINISHED) ]; then find .venv -mindepth 1 -maxdepth 1 ! -name .setup-unfinished -exec rm -rf {} +; fi
	@mkdir -p .venv && touch $(UNFINISHED) && rm -f $(STAMP) $(DEV_STAMP)
	@echo "setting up .venv: about 1 GB of packages, a minute or more"
	@"$(PYTHON)" -m venv .venv
	@$(INSTALL) --no-compile --quiet -e ".[test,examples]"
	@rm -f $(UNFINISHED) && pwd -P > $(STAMP)

$(DEV_STAMP): $(STAMP)
	@touch $(UNFINISHED) && rm -f $(STAMP)
	@$(INSTALL) --no-compile --quiet -e ".[dev]"
	@rm -f $(UNFINISHED) && pwd -P > $(STAMP) && touch $(DEV_STAMP)

# The verdict is the exit code: make itself ends with 2 for every failure and prints the real one ("Error 3": a limit was
# missed; 4: unproven). A script that wants the code calls the command itself.
demo: setup
	.venv/bin/edgesmith compress examples/digits/recipe.toml

# Two passes: what measures time runs by itself, after the rest has used every core. Both run, whatever the first says.
# In their own order: sorted by how many tests they have, as xdist would, the slowest files come last.
test: setup
	@status=0; \
	.venv/bin/python -m pytest -m "not alone and not long" --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder || status=1; \
	.venv/bin/python -m pytest -m "alone and not long" || status=1; \
	exit $$status

# Before a release, beside `make test`.
test-long: setup
	.venv/bin/python -m pytest -m long

lint: $(DEV_STAMP)
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy

format: $(DEV_STAMP)
	.venv/bin/python -m ruff check --fix-only .
	.venv/bin/python -m ruff format .

docs: setup
	.venv/bin/python -m pytest tests/packaging/test_docs.py

# By hand, on a quiet machine. First the ruler: a file against itself must show no difference, twice the work must show it.
# Then the same work done with other toolkits, one script each.
bench: setup
	.venv/bin/python -m pytest -v tests/benches -k latency
	@set -e; for script in benches/peers/*.py; do if [ -e "$$script" ]; then .venv/bin/python "$$script"; fi; done
