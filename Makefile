# make demo: the environment, the installation, and the main job on a real trained network.
# make test: the environment, the installation, and every check that CI makes.
# Needs only Python >= 3.11 and make. `make PYTHON=python3.12 demo` chooses another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

DEMO_OUT ?= runs/demo
DEMO_TRIALS ?= 64
PYTEST_FLAGS ?= -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-qwix lint types check core wheel clean

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

demo: $(VENV)/.demo
	$(BIN)/haq search --space mnist_resnet18 --target tpu-v4 --target a100 --target mobile \
		--trials $(DEMO_TRIALS) --max-drop 2 --seed 0 --out $(DEMO_OUT)
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
	rm -rf $(VENV) $(QWIX) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
