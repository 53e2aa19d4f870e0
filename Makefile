# make demo | make test | make check | make fuzz | make bench | make proofs [ID=tesla] | make wheel | make clean
#
# Everything happens in the virtual environment $(VENV), made on first use. To work in one that already exists
# (with a CPU build of torch, say), pass VENV=/path/to/it: a torch in it that is new enough is kept.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.distillrs-installed
BUILT := $(VENV)/.distillrs-built
RUST_SOURCES := $(shell find rust cuda -type f \( -name '*.rs' -o -name '*.toml' -o -name '*.cu' -o -name '*.cuh' \) -not -path '*/target/*') Cargo.toml Cargo.lock

.PHONY: help demo test check rust-test python-test fuzz bench proofs wheel wheel-check clean require install build

help:
	@sed -n 's/^# make/make/p' Makefile

require:
	@command -v $(PYTHON) >/dev/null || { echo "missing: Python >= 3.11 ($(PYTHON) is not on the PATH; pass PYTHON=...)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "missing: Python >= 3.11 ($(PYTHON) is $$($(PYTHON) -V); pass PYTHON=...)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "missing: Python's venv module (Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@command -v cargo >/dev/null || { echo "missing: a Rust toolchain (cargo is not on the PATH; see rustup.rs)"; exit 1; }

$(INSTALLED): pyproject.toml constraints.txt tools/install.py | require
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) tools/install.py
	@touch $@

$(BUILT): $(INSTALLED) $(RUST_SOURCES)
	VIRTUAL_ENV=$(abspath $(VENV)) $(PY) -m maturin develop --release --skip-install
	@touch $@

install: $(INSTALLED)

build: $(BUILT)

demo: build
	$(PY) -m distillrs condense --data digits --per-class 1 --method tesla --out out/demo

check: build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	$(PY) -m ruff format --check python tests benchmarks tools examples
	$(PY) -m ruff check python tests benchmarks tools examples
	$(PY) -m mypy
	$(PY) -m mypy.stubtest distillrs._core --allowlist tests/stubtest-allowlist.txt

rust-test:
	cargo test --workspace --locked --release --quiet

python-test: build
	$(PY) -m pytest -m "not slow and not gpu"

test: check rust-test python-test

# What a run finds beside the committed corpus stays under rust/fuzz/target.
FUZZ_SECONDS ?= 10
fuzz:
	@if ! cargo fuzz --version >/dev/null 2>&1 || ! cargo +nightly --version >/dev/null 2>&1; then \
		echo "cargo-fuzz or the nightly toolchain is not there: the corpus is replayed by \`make rust-test\` alone"; exit 0; fi; \
	for target in $$(ls rust/fuzz/fuzz_targets | sed 's/\.rs$$//'); do \
		mkdir -p rust/fuzz/target/corpus/$$target; \
		cargo +nightly fuzz run --fuzz-dir rust/fuzz $$target rust/fuzz/target/corpus/$$target rust/fuzz/corpus/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=65536 -verbosity=0 -print_final_stats=1 || exit 1; \
	done

bench: build
	$(PY) benchmarks/run.py

# Finished proofs are kept under .proofs/, so an interrupted run goes on where it stopped.
proofs: build
	$(PY) tools/proofs.py $(if $(ID),--id $(ID))

wheel: $(INSTALLED)
	$(PY) -m maturin build --profile wheel --locked --out dist

wheel-check: wheel
	$(PY) tools/check_wheel.py dist

clean:
	rm -rf target dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis $(BUILT)
