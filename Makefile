# make quickstart | test | benchmark | gpu-check | gpu-wheels | minkowski | export | loader | geo | lint | audit | docs | env        VENV=/another/place  PYTHON=/path/to/python3.11
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || echo python3)
SETUP = PYTHON="$(PYTHON)" requirements/install.sh "$(VENV)"

.PHONY: env quickstart test benchmark gpu-check gpu-wheels minkowski export loader geo lint audit docs
env:
	@$(SETUP)

quickstart: env
	@"$(VENV)/bin/python" tools/quickstart.py

test: env
	@"$(VENV)/bin/python" -m pytest -n 2 --dist loadfile

# Tables of speed and memory compared with the peers in benchmarks/speed.md; takes well over half an hour.
benchmark: minkowski loader
	@"$(VENV)/bin/python" benchmarks/speed.py

# Whether the kernels are right on a GPU, and what they cost, in at most 8 minutes.
gpu-check: env
	@"$(VENV)/bin/python" benchmarks/gpu_check.py
	@"$(VENV)/bin/python" benchmarks/gpu_check.py --report work_dirs/gpu_check.jsonl --out benchmarks/gpu.md

# What the GPU check needs on a bare machine with Python 3.12, torch, triton, timm and numpy; 55 MiB.
gpu-wheels:
	@"$(PYTHON)" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
	    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
	    -r requirements/gpu_wheels.txt -d work_dirs/gpu_wheels
	@du -sh work_dirs/gpu_wheels

minkowski export loader geo:
	@$(SETUP) $@

lint: env
	@"$(VENV)/bin/python" -m ruff check --quiet
	@"$(VENV)/bin/python" -m ruff format --check --quiet
	@"$(VENV)/bin/python" -m mypy --no-error-summary
	@"$(VENV)/bin/python" -m codespell_lib $$(git ls-files)

# Known vulnerabilities of the locked packages; needs the network and is not part of the tests.
audit: env
	@"$(PYTHON)" -m venv "$(VENV)/audit" && "$(VENV)/audit/bin/pip" install -q pip-audit
	@"$(VENV)/audit/bin/pip-audit" --no-deps --disable-pip -r requirements/lock.txt

# The site in work_dirs/site; its tools are in a separate environment and do not need the main one.
docs:
	@"$(PYTHON)" -m venv "$(VENV)-docs"
	@"$(VENV)-docs/bin/python" -m pip install -q --disable-pip-version-check --no-deps -r requirements/docs.txt
	@NO_MKDOCS_2_WARNING=1 "$(VENV)-docs/bin/mkdocs" build --quiet --strict
	@echo "work_dirs/site/index.html"
