# Everything a newcomer needs: `make demo` and `make test` set up what they need themselves.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= out

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else \
		"$(PYTHON) is Python " + sys.version.split()[0] + ", and 3.11 to 3.13 will do: give PYTHON=python3.13, say")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0 -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[reference,genai,openvino,data,dev]' -c constraints.txt
	@touch $@

demo: $(VENV)/.ready  ## Optimize the embedded real model (SmolLM2-135M) to int4, prove it, and let it talk
	rm -rf $(OUT)/smollm2-int4
	$(BIN)/onnx-gpt optimize sample:smollm2 -o $(OUT)/smollm2-int4 --quantize int4 --table-bits 8
	$(BIN)/onnx-gpt run $(OUT)/smollm2-int4 --chat --prompt "Why is the sky blue?" --max-new-tokens 96 --repetition-penalty 1.1

test: $(VENV)/.ready  ## Run the whole test suite
	$(BIN)/python -m pytest

check: $(VENV)/.ready  ## Lint, format check and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready  ## Format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.ready  ## Measure against the peers (builds their environments; half an hour)
	$(BIN)/python -m benchmarks

clean:  ## Remove the environment and outputs
	rm -rf $(VENV) $(OUT)
