# make demo   a small true comparison on three benchmarks (N and LENGTH are those of RULER's samples)
# make test   every test        make lint   style and types        make bench   needs a GPU
# Each sets up its own virtual environment in $(VENV) first; a second run reuses it.

VENV ?= .venv
EXTRAS ?= dev
N ?= 5
LENGTH ?= 2k
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint bench clean
demo: $(STAMP)
	$(BIN)/macbench demo --samples $(N) --length $(LENGTH)

# Not `python -m pytest`: that puts this folder, and so `kernels/`, on the import path.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 $(ARGS)

# mypy does not know package-dir mappings, so it is shown the package as it is installed.
VIEW := $(VENV)/view
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf $(VIEW) && mkdir -p $(VIEW)/macbench
	@ln -s $(addprefix $(CURDIR)/,$(wildcard macbench/*) kernels conf experiments plots) $(VIEW)/macbench
	MYPYPATH=$(VIEW) $(BIN)/mypy -p macbench

bench: $(STAMP)
	@nvidia-smi -L >/dev/null 2>&1 || { echo "make bench times kernels on an NVIDIA GPU and none was\
	 found here; make demo and make test need none."; exit 1; }
	$(PIP) install -q -e '.[gpu]'
	$(BIN)/pytest -q -m gpu
	for preset in hit_curve long tables breakdown speedup_grid; do \
	  $(BIN)/macbench bench attention preset=$$preset out=results/bench || exit 1; done
	for kernel in "prefix_rows --quick" received kmeans lists; do \
	  $(BIN)/python -m macbench.experiments.kernel_times.$$kernel > "results/bench/$${kernel% *}.txt" || exit 1; done
	$(BIN)/macbench bench decode preset=llama batch=1 out=results/bench
	for figure in hit_curve speedup_grid breakdown latency_tables; do \
	  $(BIN)/macbench plot $$figure --from results/bench || exit 1; done

# The pinned versions where no GPU is found, and Triton, whose interpreter runs the kernels' tests;
# else, or where one of them cannot be had, any version that pyproject.toml allows. With a GPU, a
# torch that the machine already has is used.
$(STAMP): pyproject.toml setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "macbench needs Python 3.11 or newer and found none; install\
	 it, or name one: make PYTHON=/path/to/python"; exit 1; }
	@echo "setting up $(VENV) with $(PYTHON); the first time takes some minutes"
	@if nvidia-smi -L >/dev/null 2>&1; then \
	  $(PYTHON) -m venv --system-site-packages $(VENV) && $(PIP) install -q -e '.[$(EXTRAS)]'; \
	else \
	  $(PYTHON) -m venv $(VENV) && { $(PIP) install -q -c constraints.txt -e '.[$(EXTRAS),interpreter]' || { \
	    echo "a version of constraints.txt cannot be had here; taking what pyproject.toml allows"; \
	    $(PIP) install -q -e '.[$(EXTRAS)]'; }; }; \
	fi
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
