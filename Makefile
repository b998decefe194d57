# Two commands do all on a bare Debian machine with Python: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: setup demo case case-full test nightly check coverage wheel bench docs clean

setup: $(VENV)/.ready  ## environment, Slurm packages (root on Debian), data of the demo
	@$(BIN)/python -m recipes.demo_data

$(VENV)/.ready: pyproject.toml constraints.txt envs/setup.sh
	PYTHON=$(PYTHON) sh envs/setup.sh $(VENV)
	@touch $@

demo: setup  ## the main job on a real Slurm, cut and preempted, until it is done
	@$(BIN)/python -m envs.demo

case: setup  ## the regulator's case: full fine-tuning against LoRA, from data to the page docs/case-regulator.md
	@$(BIN)/python -m recipes.regulator.case

case-full: setup  ## the same with rates from the development set and three seeds; resumable over days
	@$(BIN)/python -m recipes.regulator.case --full

test: setup  ## the whole suite, by several workers: most tests wait for a Slurm
	$(BIN)/python -m pytest -n $(WORKERS)

nightly: setup  ## every test, also the long ones; 50,000 histories of each kind, 100 stops at random times, every fault of a save
	OUTLAST_HISTORIES=50000 OUTLAST_TEST_STOPS=100 OUTLAST_FAULTS=100000 OUTLAST_FLIPS=1000 $(BIN)/python -m pytest -m "nightly or not nightly"

check: setup  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

coverage: setup  ## the suite and the demo again, slower: which branches of the part without torch no test takes
	$(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt coverage
	rm -f .coverage .coverage.*
	$(BIN)/python -m coverage run -m pytest -n $(WORKERS)
	$(BIN)/python -m coverage run -m pytest -m nightly tests/test_demo.py
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report

wheel:  ## dist/*.whl, which gives `outlast` in an empty environment; TAG=v1.2.3 has to be its version
	@[ -z "$(TAG)" ] || grep -qx 'version = "$(TAG:v%=%)"' pyproject.toml || { echo "$(TAG): not pyproject's version"; exit 1; }
	$(PYTHON) -m venv --clear build/empty
	build/empty/bin/python -m pip --disable-pip-version-check wheel -q --no-deps -w dist .
	build/empty/bin/python -m pip --disable-pip-version-check install -q --no-deps dist/*.whl
	build/empty/bin/outlast --help >build/help && $(PYTHON) launch.py --help | cmp - build/help

bench: setup  ## measurements beside peers, which it installs; BENCH="--quick --only NAME --keep"
	$(BIN)/python -m benchmarks $(BENCH)

docs: setup  ## the documents as a site, in site/; links and generated pages are checked
	$(BIN)/python -m pytest tests/test_documents.py
	$(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt mkdocs-material
	$(BIN)/mkdocs build --strict

clean:  ## what make has made; runs stay
	-$(BIN)/python -m envs.pocket down
	rm -rf $(VENV) site benchmarks/.venv recipes/demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
