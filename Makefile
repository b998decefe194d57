# Two commands do all on a bare Debian machine with Python: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: setup demo test nightly check bench docs clean

setup: $(VENV)/.ready  ## environment, Slurm packages (root on Debian), data of the demo
	@$(BIN)/python -m recipes.demo_data

$(VENV)/.ready: pyproject.toml constraints.txt envs/setup.sh
	PYTHON=$(PYTHON) sh envs/setup.sh $(VENV)
	@touch $@

demo: setup  ## the main job on a real Slurm, cut and preempted, until it is done
	@$(BIN)/python -m envs.demo

test: setup  ## the whole suite, by several workers: most tests wait for a Slurm
	$(BIN)/python -m pytest -n $(WORKERS)

nightly: setup  ## every test, also the long ones; 50,000 histories of each kind, 100 stops at random times, every fault of a save
	OUTLAST_HISTORIES=50000 OUTLAST_TEST_STOPS=100 OUTLAST_FAULTS=100000 $(BIN)/python -m pytest -m "nightly or not nightly"

check: setup  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup  ## measurements beside peers, which it installs; BENCH="--quick --only NAME --keep"
	$(BIN)/python -m benchmarks $(BENCH)

docs: setup  ## check the links of the documents
	$(BIN)/python -m pytest tests/test_documents.py

clean:  ## what make has made; runs stay
	-$(BIN)/python -m envs.pocket down
	rm -rf $(VENV) benchmarks/.venv recipes/demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
