# Everything a person does with this repository. Each target sets up what it needs first: .venv is made with the
# newest fitting Python found, from the hashes in requirements.lock, and is left alone until the lock changes.
PYTHONS := python3.13 python3.12 python3.11 python3 python
BIN := .venv/bin
CODE := streams featurestore learners infra tests $(wildcard benchmarks)
UV_HTTP_TIMEOUT ?= 120
export UV_HTTP_TIMEOUT

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/ready ## watch a model learn from a live stream, meet drift and be replaced by a better one (two minutes)
	@$(BIN)/driftline demo $(ARGS)

test: .venv/ready ## run every test; what needs a server that is not installed is skipped with the reason
	@$(BIN)/python -m pytest -n 2 $(ARGS)

lint: .venv/ready ## check format, style and types
	@$(BIN)/ruff format --check --quiet . || { echo "Some files are not formatted. fix: make format"; exit 1; }
	@$(BIN)/ruff check .
	@$(BIN)/mypy $(CODE)

format: .venv/ready ## put the files into the one format
	@$(BIN)/ruff check --fix-only --quiet . ; $(BIN)/ruff format .

bench: .venv/ready ## run every benchmark in its quick form
	@set -e; found=no; for script in benchmarks/*.py; do \
		test -f "$$script" || continue; \
		found=yes; echo "== $$script --quick"; $(BIN)/python "$$script" --quick; \
	done; \
	test "$$found" = yes || echo "No benchmarks yet: each script put into benchmarks/ is run here with --quick."

lock: .venv/ready ## resolve pyproject.toml again into requirements.lock (ARGS=--upgrade moves versions)
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --group dev pyproject.toml --generate-hashes \
		--no-emit-index-url --custom-compile-command "make lock" --output-file requirements.lock $(ARGS)
	@echo "requirements.lock is up to date with pyproject.toml"

clean: ## remove what runs leave here: .driftline (stream, models, archive, key), reports, caches; .venv stays
	@rm -rf .driftline report.html summary.json build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +
	@echo "Removed run data, reports and caches. The packages are in .venv: rm -r .venv gives back 7 GB."

# A python on PATH may be too old or a version manager's stub that does not run, so each is tried.
.venv/ready: requirements.lock pyproject.toml infra/bootstrap.py
	@for python in $(PYTHONS); do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
			exec $$python -m infra.bootstrap; \
		fi; \
	done; \
	echo "Driftline needs Python 3.11 or newer; found here: $$(python3 -V 2>&1 || echo none)." >&2; \
	echo "  fix: install it (apt-get install python3 python3-venv on Debian 12 or newer), then run make again" >&2; \
	exit 1
