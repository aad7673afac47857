# make demo: one photograph in, an identity file and pictures out.   make test: linters, types, tests.
# Both make the environment .venv first, once; needs Python 3.11 or later and a package index, nothing else.
#
# On Linux the default index gives torch with its GPU libraries (gigabytes). Without a GPU, PyTorch's index of CPU
# builds, given to pip as PIP_EXTRA_INDEX_URL, is smaller.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: install demo test clean
.DELETE_ON_ERROR:

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "got Python %d.%d, expected 3.11 or later: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/hdb demo

test: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

clean:
	rm -rf .venv demo .pytest_cache .mypy_cache .ruff_cache
