# The few things people and CI do. Everything is installed from requirements.lock into .venv/.
# A fresh machine needs Python 3.11 to 3.13 and make, nothing else.

PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
JOBS ?= 2
STAMP := .venv/.installed-$(shell cat requirements.lock pyproject.toml | cksum | cut -d' ' -f1)

# How long `make chaos` runs, on which store; SEED repeats a run, without it each is another.
MINUTES ?= 10
STORE ?= mixed
SEED ?=

# How many hostile records `make hostile` sends.
RECORDS ?= 1000000

.DEFAULT_GOAL := help
.PHONY: help install demo up test simulate mutants holes check format bench chaos hostile fuzz lock clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## Set up .venv/ from the lock file

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else \
	    "agents_stream needs Python 3.11 to 3.13, this is %d.%d: try make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv .venv
	@echo "installing from requirements.lock ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	    --only-binary :all: --no-deps -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    --no-build-isolation --editable .
	@rm -f .venv/.installed-*
	@touch $@

demo: install ## Watch recorded conversations run through real Kafka
	@$(BIN)/agents-stream up --demo

up: install ## Run everything on this machine until Ctrl-C
	@$(BIN)/agents-stream up

test: install ## Run all tests, on real Kafka and in a real Chromium where there is one
	$(PYTEST) -n $(JOBS) --dist loadfile

holes: install ## Show what Faust as it comes loses at each of its holes, and what ours does
	$(PYTEST) -q tests/holes

simulate: install ## Look for a counterexample in SEEDS=1000 simulated worlds, from seed FROM=0 on
	$(BIN)/python -m tests.simulation --seeds $(or $(SEEDS),1000) --from $(or $(FROM),0)

mutants: install ## Break the protocol on purpose, one fault at a time, and see each caught
	$(BIN)/python -m tests.simulation.mutate

check: install ## ruff, mypy strict, the tidy test, known vulnerabilities of what we depend on
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -q tests/test_tidy.py
	$(BIN)/python .ci/audit_dependencies.py requirements.lock

format: install ## Format the code
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: install ## Measure latency and lateness, idle cost and start-up (results in bench/results)
	$(BIN)/python -m bench

chaos: install ## Break everything on a real cluster, and prove that nothing broke (MINUTES, SEED, STORE)
	@$(BIN)/python -m tests.chaos --minutes $(MINUTES) --store $(STORE) $(if $(SEED),--seed $(SEED))

hostile: install ## Send a million hostile records through a live worker, and count each (RECORDS, SEED)
	@$(BIN)/python -m tests.hostile --records $(RECORDS) $(if $(SEED),--seed $(SEED))

fuzz: install ## Fuzz what reads records and the reducer, guided by coverage (MINUTES)
	@$(BIN)/python -m tests.hostile.fuzz --minutes $(MINUTES)

lock: install ## Resolve the dependencies anew into requirements.lock
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 \
	    --generate-hashes --no-annotate --no-header --quiet --upgrade -o requirements.lock

clean: ## Remove what the targets made, but no data
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache dist
