# Tutelage: the two commands are `make demo` and `make test`; each sets up .venv by itself.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where the CPU build of torch comes from on a machine without a GPU; set TORCH_INDEX= to use your package index alone.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH ?= torch==2.13.0
DEMO ?= demo
LANGUAGE ?= en
JOBS ?= 2

.PHONY: install demo demo-seeds seeds comparison test test-all test-kill test-people test-web label-efficiency test-peers bench bench-check bench-learning bench-engines mutants lint sizes clean

install: $(VENV)/.installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Tutelage needs Python 3.11 or newer; $(PYTHON) is older. Run: make PYTHON=/path/to/python3.11 install"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# torch first: with none installed, a looser requirement would pull the CUDA build onto machines that have no GPU.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV) (a few minutes the first time)"
	@if $(BIN)/python -c 'import torch' 2>/dev/null; then true; \
	elif command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then \
		echo "a GPU is here: the CUDA build of torch"; $(BIN)/python -m pip install --quiet "$(TORCH)"; \
	elif [ "$$(uname -s)" = Linux ] && [ -n "$(TORCH_INDEX)" ]; then \
		echo "no GPU: the CPU build of torch"; $(BIN)/python -m pip install --quiet --retries 1 "$(TORCH)" --extra-index-url "$(TORCH_INDEX)"; \
	else $(BIN)/python -m pip install --quiet "$(TORCH)"; fi || { echo "error: torch could not be installed. Is a package index in reach? Name another one with: make install TORCH_INDEX=URL"; exit 2; }
	@$(BIN)/python -m pip install --quiet -e '.[test]' || { echo "error: a package could not be installed; the lines above say which. Run make install again when the package index is in reach"; exit 2; }
	@touch $@

demo: install
	@$(BIN)/tutelage demo $(DEMO) --lang $(LANGUAGE)

demo-seeds: install
	@$(BIN)/python -m tutelage.pipeline.seeds --folder demo-seeds --seeds $(or $(SEEDS),0 1 2 3 4)

# every algorithm on a small real task, over seeds; ONLY=ppo,a2c and SEEDS="0 1" narrow it; goes on where it was stopped
seeds: install
	@$(BIN)/python -m tutelage.pipeline.algorithms --folder seeds $(if $(ONLY),--only "$(ONLY)") $(if $(SEEDS),--seeds "$(SEEDS)")

comparison: install
	@$(BIN)/python -m tutelage.pipeline.algorithms --folder seeds --compare

# JOBS processes, a file of tests in one of them; tests use one thread each
test: install
	@$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile

test-all: install
	@$(BIN)/python -m pytest

test-kill: install
	@$(BIN)/python tests/kill/storm.py --kills $(or $(N),200)

# simulated people on several workers that are killed, on SQLite and (where it is installed) on PostgreSQL
test-people: install
	@$(BIN)/python tests/people/storm.py --judgements $(or $(N),20000)
	@$(BIN)/python tests/people/storm.py --judgements $(or $(N),20000) --database postgresql

# the web app in a real browser, its server from the installed wheel; fails, and does not skip, where there is no browser
test-web: install
	@$(BIN)/python tests/web/wheel.py

# active choice of what to ask against random, on public records in SHARED
label-efficiency: install
	@$(BIN)/python -m tutelage.pipeline.label_efficiency --data $(or $(SHARED),../shared/data) --folder label-efficiency --page docs/label-efficiency.md

# beside TRL's losses and Stable-Baselines3's A2C
test-peers: install
	@$(BIN)/python -m pip install --quiet -e '.[test,peers]'
	@$(BIN)/python -m pytest -m peers tests/numerics

# the same work by this project and by its peers, each in an environment of its own; ONLY=sft,ppo narrows it; half an hour
bench: install
	@$(BIN)/python benchmarks/bench.py $(if $(ONLY),--only "$(ONLY)") $(if $(ROUNDS),--rounds $(ROUNDS))

# the newest kept ratio of each row beside the one before; fails where one fell
bench-check: install
	@$(BIN)/python benchmarks/bench.py --check

# reward against wall-clock and responses, PPO and GRPO here and in TRL, three seeds; can be stopped and goes on; half an hour
bench-learning: install
	@$(BIN)/python benchmarks/learning.py

# the sampling engines that are here, and servers by their addresses: ENGINES="--address http://localhost:8000/v1\#model"
bench-engines: install
	@$(BIN)/python benchmarks/engines.py $(ENGINES)

mutants: install
	@$(BIN)/python tests/numerics/mutants.py

lint: install
	@$(BIN)/ruff check .

sizes:
	@git ls-files 'src/*.py' | xargs wc -l | sort -rn | head -25

clean:
	rm -rf $(VENV) .bench demo demo-seeds seeds
