# One gate: `make test` is what a change must pass. The rest are its parts.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PATH := $(PATH):/usr/sbin:/sbin:$(if $(CARGO_HOME),$(CARGO_HOME),$(HOME)/.cargo)/bin

say = @printf '\n==== %s\n' '$(1)'

.PHONY: help setup fmt lint deny doc fuzz fuzz-changed quick list unit tests bench bench-object bench-tape bench-pause bench-hook bench-fleet soak compat test

help: ## This list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24

setup: ## Install what the tests need (Debian)
	$(call say,setup)
	@tests/setup test

fmt: ## Is the code formatted?
	$(call say,format)
	@cargo fmt --all --check

lint: ## Clippy on everything, warnings are errors
	$(call say,clippy)
	@cargo clippy --workspace --all-targets --locked -- -D warnings

deny: ## Licences, sources, bans and, where their database can be had, advisories of the dependencies
	$(call say,dependencies)
	@cargo deny --log-level error check licenses bans sources
	@tests/advisories

doc: ## The library's documentation, warnings are errors
	$(call say,documentation)
	@RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --document-private-items

fuzz: ## Every fuzz target for ten minutes; `tests/fuzz/run SECONDS TARGET...` for others
	$(call say,fuzzing)
	@tests/fuzz/run 600

fuzz-changed: ## The fuzz targets whose code changed, a minute in all: before a change of a parser lands
	$(call say,fuzzing)
	@tests/fuzz/run --changed

# Tests that take more than some seconds each: every crash point, every byte, every cut.
slow := crashes:: crash_point one_flipped_byte a_cut_archive gnu_tar_and_bsdtar what_was_written_is_read random_images a_broken_medium_gets

quick: fmt ## While working: format, clippy of the libraries, its quick tests
	$(call say,clippy of the libraries)
	@cargo clippy --workspace --lib --locked -- -D warnings
	$(call say,quick tests)
	@cargo test --workspace --lib --locked --quiet -- $(addprefix --skip ,$(slow))

list: ## All tests by name, to compare what ran before a change and after it
	@tests/list

unit: ## The tests beside the code
	$(call say,unit tests)
	@cargo test --workspace --lib --bins --locked

tests: ## All tests: also real images, real tools, real mounts, real guests (as root)
	$(call say,tests)
	@if cargo nextest --version > /dev/null 2>&1; then cargo nextest run --workspace --lib --bins --tests --locked; \
		else cargo test --workspace --tests --locked --no-fail-fast; fi

bench: ## Measure against cp, zstd and qemu-img (as root, about 30 GiB, a quiet machine)
	$(call say,speed)
	@cargo bench --locked --bench speed

bench-object: ## Measure the way into an object store against a plain upload of the same bytes
	$(call say,object store)
	@cargo bench --locked --bench object

bench-tape: ## Measure the way to a tape against that to a file, both in memory
	$(call say,tapes)
	@cargo bench --locked --bench tape

bench-pause: ## Measure how long a guest stands still, beside virsh (as root, a quiet machine)
	$(call say,pauses)
	@cargo bench --locked --bench pause

bench-hook: ## Measure how long libvirt waits for the hook (a quiet machine)
	$(call say,hooks)
	@cargo bench --locked --package virtfold-hooks --bench hook

bench-fleet: ## Measure what grows with the fleet: archives, guests, entries, pieces (FLEET='--size 500' is a minute)
	$(call say,fleet)
	@cargo bench --locked --bench fleet -- $(FLEET)

soak: ## Kill the driver at every entry of its journal, ten times, with everything else that can happen (hours, as root)
	$(call say,soak)
	@tests/soak 10

compat: ## Tests with real guests on Debian 12, its backports and Debian 13, libvirt's daemons apart, too (as root; not in the gate)
	$(call say,other versions)
	@tests/compat

test: ## The gate: setup, fmt, lint, deny, doc and tests, each with its time
	@tests/gate
