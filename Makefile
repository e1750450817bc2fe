# The commands of the house. What is longer than a line lives in .ci/, for people and CI alike.

# Where .ci/deps puts Rust on a machine that has none, or too old a one.
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help demo test lint peers bench deps clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' Makefile

demo: ## Measure this machine's disk, a pfsd on one, and how long a replica lags, and write a report
	@.ci/deps build
	@.ci/deps demo || echo 'What needs them is left out.' >&2
	@.ci/demo
	@echo 'The report: $(CURDIR)/onedisk-demo.html'

test: ## Run everything that proves it works, and check that nothing is left behind
	@.ci/deps build
	@.ci/deps test || echo 'The tests that need them are skipped.' >&2
	@.ci/test

lint: ## Check format, clippy, documentation, dependencies and the minimum Rust version
	@.ci/deps build
	@.ci/lint

peers: ## Compare with dd, fio, nbdkit, QEMU and the original PolarFS, into peers.json (PEERS="--size 2G --rounds 3")
	@.ci/deps build
	cargo build --release --workspace --bins
	@cargo run --quiet --release --package tests --example peers -- $(PEERS)

bench: ## Run the criterion benches of the parts that cost
	@.ci/deps build
	cargo bench --workspace

deps: ## Install what building and testing need and this machine lacks
	@.ci/deps build test

clean: ## Remove what was built
	cargo clean
