# Each target sets up what it needs; the second time costs nothing.
VENV := .venv
BIN := $(VENV)/bin
BACKEND ?=
# The first Python on PATH that the project supports (a version manager's shim may be there and not work).
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)

# What each backend needs beside the base, as backends/registry.py says; `cuda` where there is a GPU of NVIDIA's.
EXTRAS_google := google
EXTRAS_google-threads := google
EXTRAS_whisper = whisper $(if $(shell command -v nvidia-smi),cuda)
EXTRAS = $(EXTRAS_$(or $(BACKEND),$(STT_BACKEND)))

# Tests that compute, and those that want the machine to themselves; the others are `make test`'s second part.
COMPUTING := $(addprefix tests/,audio backends emulator jobs models observe protocols samples security session uploads)
ALONE := $(addprefix tests/,test_hostile.py test_overload.py whisper/test_live.py bench/test_overhead.py)
# In a browser: see `test-web`.
BROWSER := tests/browser

# Where bytecode is not kept, each of the many servers that the tests start compiles the project anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-clients test-web test-android check demo bench clean

run: $(VENV)/run.stamp $(patsubst %,$(VENV)/extra-%.stamp,$(EXTRAS))
	$(BIN)/stt-bridge serve --log-format text $(if $(BACKEND),--backend $(BACKEND))

demo: $(VENV)/run.stamp
	$(BIN)/stt-bridge demo

# Three at a time, since most of them wait; but not those that watch a server's memory, or compute as fast as they can.
test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 3 --dist worksteal $(COMPUTING)
	$(BIN)/python -m pytest -n 3 --dist loadfile $(addprefix --ignore=,$(COMPUTING) $(ALONE) $(BROWSER))
	$(BIN)/python -m pytest $(ALONE)

# The clients that people hold in their hands, each with what it needs beside Python.
test-clients: test-web test-android

# The page and the SDK, in the system's Chromium (or STT_CHROMIUM).
test-web: $(VENV)/web.stamp
	$(BIN)/python -m pytest -n 2 --dist worksteal $(BROWSER)

# The Android library and its sample, with Java 17 and Maven; the first time some 500 MB come from Maven's repository.
test-android: $(VENV)/run.stamp
	STT_PYTHON=$(abspath $(BIN)/python) mvn --batch-mode --no-transfer-progress --quiet --file clients/android/pom.xml verify

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/dev.stamp
	$(BIN)/python -m bench.overhead

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed (with its venv module); none was found on PATH"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/run.stamp

$(VENV)/web.stamp: tests/browser/requirements.txt $(VENV)/dev.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r $<
	@touch $@

$(VENV)/extra-%.stamp: pyproject.toml constraints.txt | $(VENV)/run.stamp
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
