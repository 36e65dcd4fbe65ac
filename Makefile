# Two commands for a fresh machine with Python 3.10+: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

WORKERS ?= 2

.PHONY: demo test test-slow test-formats fuzz lint bench clean

demo: $(VENV)/.demo
	$(BIN)/lrexport demo

# Compiled first: the tests start dozens of processes. pytest compiles the tests, which takes ten seconds, and keeps them.
test: $(VENV)/.test lint
	$(BIN)/python -m compileall -q lrexport
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -m "not slow" --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.test
	$(BIN)/pytest -m slow

# Runtimes that have environments of their own.
FORMATS := mnn litert executorch
test-formats: $(VENV)/.test $(FORMATS:%=$(VENV)-%/.ready) $(VENV)-web/.ready
	LREXPORT_TEST_MNN=$(abspath $(VENV)-mnn/bin/python) \
	LREXPORT_TEST_LITERT=$(abspath $(VENV)-litert/bin/python) \
	LREXPORT_TEST_EXECUTORCH=$(abspath $(VENV)-executorch/bin/python) \
	LREXPORT_TEST_ONNXRUNTIME_WEB=$(abspath $(VENV)-web/node_modules/onnxruntime-web) \
	  $(BIN)/pytest tests/measure/test_other_runtimes.py tests/measure/targets/test_real_browser.py \
	    tests/workflow/test_int8_in_runtimes.py::test_mnn_files_in_int8_agree tests/test_ship.py::test_browser

# Toolchains that convert from torch get the torch that writes their programs.
$(VENV)-mnn/.ready: NEEDS = 'MNN>=3.4' numpy
OUR_TORCH = $$($(BIN)/python -c 'import torch; print("torch==" + torch.__version__.partition("+")[0])')
$(VENV)-litert/.ready: NEEDS = 'litert-torch>=0.10' 'ai-edge-litert>=2.3' numpy $(OUR_TORCH)
$(VENV)-executorch/.ready: NEEDS = 'executorch>=1.0' numpy $(OUR_TORCH)

$(VENV)-%/.ready: pyproject.toml $(VENV)/.test
	test -x $(VENV)-$*/bin/python || $(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install --quiet $(NEEDS)
	touch $@

$(VENV)-web/.ready:
	npm install --silent --no-save --no-package-lock --ignore-scripts --prefix $(VENV)-web onnxruntime-web@1.30.0
	touch $@

# make fuzz SECONDS=600 READER=onnx SEED=1; make fuzz REPLAY=.fuzz/failures/onnx/HASH
fuzz: $(VENV)/.test
	$(BIN)/python -m tests.fuzz $(if $(SECONDS),--seconds $(SECONDS)) $(if $(READER),--reader $(READER)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(REPLAY),--replay $(REPLAY))

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/.test
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/step_time.py

clean:
	rm -rf $(VENV) $(FORMATS:%=$(VENV)-%) $(VENV)-web lrexport-demo

# constraints.txt pins the tested versions; a changed pin or dependency updates the environment.
$(VENV)/.%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@
