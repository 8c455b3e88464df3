# make demo   see emergent misalignment happen, and see it prevented (about two minutes on two cores)
# make test   the tests                       make check  format, lint, types, layers of imports
# make bench  ratios against named peers      make test-slow  minutes rather than seconds
# make test-inspect  our probes and logs under Inspect, in an environment of its own
# make test-integrations   quantised models by bitsandbytes, our plugin inside axolotl, and wandb offline
# make test-lowest   the tests with the lowest versions that pyproject.toml declares, in an environment of its own
# make docs   the documentation as a website in build/docs (warnings are errors), and its tutorials executed
# make notebooks   runs docs/notebooks and stores what they print
# make defenses-page  docs/defenses.md, from the defenses' docstrings (make check and make docs do it first)
# make soak   crash tests of an hour: hundreds of kills and thousands of flipped bytes; writes docs/reliability.md
# Each sets up what it needs in .venv; nothing else on the machine is touched.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# The versions tested together, on Python 3.11; they install on 3.12 and 3.13 too. CONSTRAINTS= takes the newest instead.
CONSTRAINTS ?= constraints/cpu-py311.txt
INSTALLED := $(VENV)/.installed
# An extra package index for PyTorch's CPU builds; see the README.
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-slow soak test-tools test-model test-inspect test-integrations test-lowest check docs notebooks \
	defenses-page diagrams bench bench-full clean

demo: $(INSTALLED)
	$(BIN)/staytrue demo --out runs/demo

# One thread a worker: two processes with one thread each do more than one with two, and never wait for each other.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not docs" -q -n logical --maxprocesses 4 --dist worksteal

test-slow: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -q -n logical --maxprocesses 4 --dist worksteal

soak: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak.py

# What only some tests need: a browser that opens the report page. Debian and Ubuntu; as root or through sudo.
test-tools:
	command -v chromium >/dev/null || { SUDO=$$(test $$(id -u) = 0 || echo sudo); \
		$$SUDO apt-get update -qq && $$SUDO apt-get install -qq -y --no-install-recommends chromium >/dev/null; }

# What only some tests need: a real chat model in the user's cache, 93 MB to download and 540 MB to keep.
test-model: $(INSTALLED)
	$(BIN)/staytrue fetch smollm2

# Inspect and what it pulls in contradict our own pins, so it lives in an environment of its own.
test-inspect:
	@test -x .venv-inspect/bin/python || $(PYTHON) -m venv .venv-inspect
	@.venv-inspect/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r constraints/inspect-py311.txt
	PYTHONPATH=src .venv-inspect/bin/python -m pytest -q -p no:cacheprovider tests/evals/inspect/test_export.py

# bitsandbytes stands beside our own packages, not among them, because peft imports it wherever it is installed.
# axolotl contradicts our pins. Without TORCH_INDEX its PyTorch comes with the GPU libraries, some gigabytes.
test-integrations: $(INSTALLED)
	@test -d build/quantize || $(PIP) --no-deps --target build/quantize bitsandbytes==0.50.2
	@test -x .venv-axolotl/bin/python || $(PYTHON) -m venv .venv-axolotl
	@.venv-axolotl/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r constraints/axolotl-py311.txt
	OMP_NUM_THREADS=1 PYTHONPATH=src $(BIN)/python -m pytest -q -p no:cacheprovider tests/integrations/test_axolotl.py
	OMP_NUM_THREADS=1 PYTHONPATH=src:build/quantize $(BIN)/python -m pytest -q -p no:cacheprovider tests/integrations/test_quantized.py
	@test -d build/wandb || $(PIP) --target build/wandb wandb==0.31.0
	OMP_NUM_THREADS=1 PYTHONPATH=src:build/wandb $(BIN)/python -m pytest -q -p no:cacheprovider tests/runs/test_trackers.py

# Without TORCH_INDEX this old PyTorch comes with its GPU libraries, some gigabytes.
test-lowest:
	@test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	@.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints/lowest.txt -e ".[dev]"
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -m "not slow" -q -n logical --maxprocesses 4 --dist worksteal -p no:cacheprovider

defenses-page: $(INSTALLED)
	$(BIN)/staytrue defenses --markdown > docs/defenses.md

docs: defenses-page
	$(BIN)/python -m sphinx -E -W --keep-going -q -b html docs build/docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m docs -q -n logical --maxprocesses 4 tests/test_docs.py
	@echo "Open build/docs/index.html"

notebooks: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python docs/notebooks/execute.py

# The pages' mermaid diagrams as SVG, for the website; only after a diagram was edited. Needs npm and Chromium.
diagrams: $(INSTALLED)
	$(BIN)/python docs/diagrams/render.py mermaid@11

check: defenses-page
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks all --shape M1

bench-full: $(INSTALLED)
	$(BIN)/python -m benchmarks all --shape M1 --rounds 7 --json runs/bench/M1.json
	$(BIN)/python -m benchmarks all --shape M2 --rounds 3 --json runs/bench/M2.json
	$(BIN)/python -m benchmarks step --shape smollm2 --compare sft,trl-sft,kl,all --rounds 5 --json runs/bench/smollm2.json
	$(BIN)/python -m benchmarks demo --json runs/bench/demo.json

# torch comes first and pinned: a later open range could replace a CPU build by several gigabytes of another.
$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "staytrue needs Python 3.11 or later; say which: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 2; }
	@echo "Setting up $(VENV) (once; a few minutes, most of it PyTorch) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@$(PIP) -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) runs/demo build
