# What a newcomer runs; each target says what it does. `make` alone lists them.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3

.PHONY: help demo test check format soak bench docker-test slurm-test clean

help:
	@echo "make demo         install into .venv and search four backbones on bundled photographs"
	@echo "make test         install the test extras too and run the tests"
	@echo "make check        formatting, lint, types and import contracts"
	@echo "make soak         kill drivers, workers and Ray at random under a search, on SQLite and PostgreSQL"
	@echo "make bench        measure what benchmarks/README.md lists under speed (an hour on two idle cores)"
	@echo "make docker-test  build the image and search in containers while one is killed and one cut off the network"
	@echo "make slurm-test   search for longer than a job lasts, on a Slurm that is started for it"
	@echo "make clean        remove what demo and test made"

demo: $(VENV)/.installed
	@echo "==> vqsearch launch spaces/demo.yaml (a few minutes on two cores)"
	@$(BIN)/vqsearch launch spaces/demo.yaml

test: $(VENV)/.installed-dev
	@echo "==> running the tests that start no Ray, in up to four processes"
	@$(BIN)/pytest -m "not ray" --numprocesses auto --maxprocesses 4 --dist loadgroup
	@echo "==> running those that do, one after the other"
	@$(BIN)/pytest -m ray

check: $(VENV)/.installed-dev
	@echo "==> formatting, lint, types and import contracts"
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

soak: $(VENV)/.installed-dev
	@echo "==> a search under kill -9, on two storages (up to 20 minutes on two cores)"
	@$(BIN)/python benchmarks/crash.py

bench: $(VENV)/.installed-dev
	@$(BIN)/python benchmarks/quantize.py
	@$(BIN)/python benchmarks/actors.py
	@$(BIN)/python benchmarks/scale.py
	@$(BIN)/python benchmarks/dashboard.py

docker-test:
	@echo "==> a search on docker/compose.yaml (ten minutes on two cores, after the build)"
	@$(PYTHON) docker/test.py

slurm-test: $(VENV)/.installed-dev
	@echo "==> a search on a Slurm of two nodes on this machine (about five minutes; apt-get install slurm-wlm munge)"
	@$(BIN)/pytest -rs tests/search/test_slurm.py

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "==> making $(VENV) and installing vqsearch into it (about 6 GB, most of it torch; some minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "no virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "==> installing the test extras"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) vqsearch-output vqsearch.db vqsearch.db-wal vqsearch.db-shm build *.egg-info
