# `make` lists the targets. Two do all the set-up: `make up` and `make test`.

SHELL := /bin/bash
.DEFAULT_GOAL := help
KUBECTL ?= kubectl
JSON ?=
DATA ?=
SECONDS ?= 60
TARGETS ?=

.PHONY: help up down test ci lint deps-check advisories build bench bench-store bench-runtime bench-api bench-cluster bench-scheduler bench-knapsack fuzz tools test-tools test-vm

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

up: ## make a cluster here and deploy hello-world on it
	@scripts/up.sh

down: ## stop the cluster and remove everything it made
	@scripts/as-root.sh target/release/llmagentos reset

build: tools ## build the release binary
	cargo build --release --locked -p llmagentos

test: test-tools ## install what the tests need, and run all of them
	@scripts/test.sh

test-vm: tools ## the runtime's tests and a whole cluster on Debian's kernel with cgroup v2 alone, in a QEMU guest
	@scripts/test-in-vm.sh

ci: lint deps-check advisories test ## everything that CI runs

lint: tools ## rustfmt and clippy, warnings denied
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

deps-check: tools ## licences, forbidden crates, and which of our crates may depend on which
	cargo run --quiet --locked -p xtask -- deps-check

advisories: tools ## known vulnerabilities among the dependencies, where the advisory database can be reached
	cargo run --quiet --locked -p xtask -- advisories

bench: bench-store bench-runtime bench-api bench-cluster bench-scheduler ## every benchmark; JSON=FILE also writes one JSON object a line

bench-store: test-tools ## durable writes: the store beside etcd
	@scripts/bench.sh store $(JSON)

bench-runtime: test-tools ## create, start, wait, delete of `true`: the runtime beside runc and crun
	@scripts/bench.sh runtime $(JSON)

bench-api: tools ## durable pod creates through the API
	@scripts/bench.sh api $(JSON)

bench-cluster: test-tools ## start, restart, idle cost, pod start of a whole cluster
	@scripts/bench.sh cluster $(JSON)

bench-scheduler: tools ## decisions a second, and create to bound, by the workloads of scheduler_perf
	@scripts/bench.sh scheduler $(JSON)

bench-knapsack: tools ## the solver on DATA=FOLDER of public instances and on generated ones
	@scripts/bench.sh knapsack "$(JSON)" "$(DATA)"

fuzz: ## every fuzz target for SECONDS each; TARGETS="layer tar" runs only these
	@scripts/install.sh build fuzz
	@scripts/fuzz.sh $(SECONDS) $(TARGETS)

tools:
	@scripts/install.sh build

test-tools:
	@scripts/install.sh build kubectl test
