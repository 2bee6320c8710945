# What a newcomer runs. Everything happens in .venv, which the first command makes.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
PARALLEL := -rs -n logical --maxprocesses 4 --dist loadfile
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart app test test-slow slow conformance test-oldest check docs outputs results clean

quickstart: $(VENV)/demo.done  ## prepares real data, trains a model and evaluates it; REPORT=file.md writes the table there
	PATH="$(CURDIR)/$(RUN):$$PATH" REPORT="$(REPORT)" bash training/runs/quickstart.sh

app: $(VENV)/app.done  ## after the quickstart: opens a page that shows a customer, what MCM expects next, and why
	$(RUN)/mcm app --model runs/quickstart --data data/complete_journey/prepared \
		--events data/complete_journey/raw/events.parquet --profile data/complete_journey/raw/profile.parquet

test: $(VENV)/dev.done  ## all tests that take seconds, in parallel; no GPU
	$(RUN)/python -m pytest -m "not slow" $(PARALLEL)

test-slow: slow test-oldest  ## the tests that take minutes, and those with the oldest versions

slow: $(VENV)/dev.done  ## the tests that take minutes
	$(RUN)/python -m pytest -m slow $(PARALLEL)

conformance: $(VENV)/dev.done  ## transformers' own tests of a model, from its source distribution
	$(RUN)/python -m pytest -m slow tests/conformance

test-oldest:  ## the tests with the oldest versions of the base install's packages, in .venv-oldest; downloads some gigabytes
	test -x $(VENV)-oldest/bin/python || $(PYTHON) -m venv $(VENV)-oldest
	sed -n '/^dependencies/,/^]/ s/^ *"\(.*\)>=\([^,"]*\).*/\1==\2/p' pyproject.toml > $(VENV)-oldest/constraints.txt
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(VENV)-oldest/constraints.txt --editable ".[dev]"
	$(VENV)-oldest/bin/python -m pytest -m "not slow" $(PARALLEL)

check: $(VENV)/dev.done  ## ruff, mypy, the direction of imports, and linters of model folders and of the Dockerfile
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	sed '/\.TRF028]$$/,/^default_enabled/s/= true/= false/; /\.TRF041]$$/,/^default_enabled/s/= true/= false/' \
		$(VENV)/lib/python3*/site-packages/mlinter/rules.toml > $(VENV)/mlinter.toml  # whole licence texts, CODEPATH comments
	$(RUN)/mlinter --no-cache --rules-toml $(VENV)/mlinter.toml --enable-rules TRF003,TRF037 modeling_mcm
	$(RUN)/lint-imports --no-cache
	$(RUN)/hadolint Dockerfile

docs: $(VENV)/dev.done  ## builds a site with the pages and the API in build/site
	sed 's#](docs/#](#g' README.md > docs/index.md && cp CONTRIBUTING.md docs
	$(RUN)/zensical build --strict

outputs: $(VENV)/dev.done  ## writes what the programs in README.md, docs/tutorial.md and examples/shop.ipynb print; ten minutes
	$(RUN)/python tests/helpers/tutorial.py

results: $(VENV)/dev.done  ## runs what docs/results.md lacks, and draws the page; from nothing it takes days
	$(RUN)/python benchmarks/run_results.py $(if $(LOGS),--logs $(LOGS))

clean:  ## removes the environment, the data and the runs
	rm -rf $(VENV) $(VENV)-oldest data runs build dist *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# An extra is installed once, and again when pyproject.toml changes.
$(VENV)/%.done: pyproject.toml | $(VENV)/bin/python
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@
