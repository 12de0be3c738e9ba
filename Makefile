# make demo: the environment, the installation, and the main job on a real trained network.
# make test: the environment, the installation, and every check that CI makes.
# make test-nvidia: an environment with Model Optimizer and torchao, and the tests that run exported files in them.
# Needs only Python >= 3.11 and make. `make PYTHON=python3.12 demo` chooses another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

DEMO_OUT ?= runs/demo
DEMO_TRIALS ?= 64
PYTEST_FLAGS ?= -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-litert test-nvidia test-qwix lint types check core wheel clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

# Stamps: each step runs again only when what it depends on has changed.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "haq needs Python >= 3.11, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --upgrade "pip>=25.1"
	@touch $@

$(VENV)/.torch: $(VENV)/.created constraints.txt
	$(PIP) $$(grep '^torch==' constraints.txt)
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[mnist]'
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[all]' --group test
	@touch $@ $(VENV)/.demo

# Without racing, every candidate of the demo is measured in full.
demo: $(VENV)/.demo
	$(BIN)/haq search --space mnist_resnet18 --target tpu-v4 --target a100 --target mobile \
		--trials $(DEMO_TRIALS) --max-drop 2 --no-racing --seed 0 --out $(DEMO_OUT)
	$(BIN)/haq front $(DEMO_OUT)

test: lint types check

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

# One thread each, and sleeping ones: two test processes with two spinning threads each would fight over two cores.
check: $(VENV)/.test
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest $(PYTEST_FLAGS)

# make core: the tests of the core, which load no torch.
CORE := accuracy candidate constraints cost cost_table errors fit float_glue front history layering legalize lookup \
	measurements pareto precision profile reasons rundir scaling sensitivity size space spec trust validation work workload
core: $(VENV)/.test
	$(BIN)/pytest $(CORE:%=tests/test_%.py)

# Their dependencies are no part of `all`, so they have an environment of their own.
NVIDIA := .venv-nvidia
$(NVIDIA)/.test: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(NVIDIA)
	$(NVIDIA)/bin/python -m pip --disable-pip-version-check install --quiet --upgrade "pip>=25.1"
	$(NVIDIA)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt $$(grep '^torch==' constraints.txt)
	$(NVIDIA)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt \
		--editable '.[mnist,reviews,nvidia,torchao]' pytest hypothesis
	@touch $@

test-nvidia: $(NVIDIA)/.test
	OMP_NUM_THREADS=1 $(NVIDIA)/bin/pytest tests/test_export_nvidia.py tests/test_export_nvidia_runs.py

# make test-litert: the tests of the LiteRT exporter, in an environment of their own (2.5 GB with torch).
# Its dependencies, jax and transformers among them, hold pydantic and typing_extensions back; warnings are theirs.
LITERT := .venv-litert
$(LITERT)/.installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(LITERT)
	$(LITERT)/bin/python -m pip --disable-pip-version-check install --quiet --upgrade "pip>=25.1"
	$(LITERT)/bin/python -m pip install --quiet $$(grep '^torch==' constraints.txt)
	$(LITERT)/bin/python -m pip install --quiet --editable '.[mnist,solar,litert]' "pytest>=8"
	@touch $@

test-litert: $(LITERT)/.installed
	PYTHONPATH=tests OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE \
		$(LITERT)/bin/python -m pytest -o addopts=-q -o filterwarnings=default -p no:anyio tests/litert

# make test-qwix: exported rules run in JAX on the CPU, in an environment of its own (1.6 GB with torch). Warnings are JAX's.
QWIX := .venv-qwix
$(QWIX)/.installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(QWIX)
	$(QWIX)/bin/python -m pip --disable-pip-version-check install --quiet --upgrade "pip>=25.1"
	$(QWIX)/bin/python -m pip install --quiet $$(grep '^torch==' constraints.txt)
	$(QWIX)/bin/python -m pip install --quiet --editable '.[mnist,bert,tpu]' "pytest>=8"
	@touch $@

test-qwix: $(QWIX)/.installed
	PYTHONPATH=tests JAX_PLATFORMS=cpu OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE \
		$(QWIX)/bin/python -m pytest -o addopts=-q -o filterwarnings=default tests/qwix

wheel: $(VENV)/.test
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf $(VENV) $(LITERT) $(NVIDIA) $(QWIX) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
