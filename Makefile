# make            what there is to do
# make demo       a running process moves to another host, and its files follow
# make test       everything that is checked
# make bench      speed beside the peers, into docs/performance.md
.DEFAULT_GOAL := help
SHELL         := /bin/bash
.SHELLFLAGS   := -euo pipefail -c
MAKEFLAGS     += --no-print-directory

# The tools that check this repository, at the version it was checked with.
GOLANGCI_LINT := v2.15.0
GOVULNCHECK   := v1.9.0

BIN     := build/bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)

# What `make test-go` runs, and how long `make fuzz` takes for each package.
PKG      ?= ./...
RUN      ?= .
FUZZTIME ?= 60

SCRIPTS := .ci/run $(shell git ls-files -co --exclude-standard '*.sh' '*.sbatch' 2>/dev/null)

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: build
build: ## build/migratefs, static, as it is shipped
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o build/migratefs ./cmd/migratefs

.PHONY: demo
demo: ## move a running process between two hosts made on this machine (root)
	@tests/demo/demo.sh

.PHONY: test
test: deps lint vuln test-go fuzz ## install what is missing and pass every test there is (root)

.PHONY: deps
deps: ## install the programs that the tests drive: sshd, fuse3, CRIU, mkfs, strace (root)
	@tests/testbed/install.sh

.PHONY: test-go
test-go: ## the Go tests with -race, end to end ones included: PKG=./overlay RUN=TestX
	go run ./tests/run -skips tests/skips.txt -- -race -timeout 20m -run '$(RUN)' $(PKG)

.PHONY: fuzz
fuzz: ## fuzz every package that has a fuzz target, FUZZTIME=60 seconds each
	@tests/fuzz.sh $(FUZZTIME)

# What `make bench` measures, where, how often; ORIGINAL is a build of the C
# migratefs, BASE another one of ours. A run of everything writes the page; a run
# of less does so where DOCS says.
.PHONY: bench
bench: build ## measure beside the peers, into docs/performance.md: ONLY=untar,git MOUNTS=ours-overlay RUNS=3 QUICK=1 (root)
	@tests/testbed/install.sh --bench
	go run ./tests/bench $(if $(ONLY)$(MOUNTS)$(QUICK)$(DOCS),$(if $(DOCS),-docs $(DOCS)),-docs docs) $(if $(ONLY),-only $(ONLY)) $(if $(MOUNTS),-mounts $(MOUNTS)) $(if $(RUNS),-runs $(RUNS)) \
		$(if $(QUICK),-quick) $(if $(DETAIL),-detail) $(if $(COUNTS),-counts=$(COUNTS)) $(if $(BASE),-base $(BASE)) $(if $(ORIGINAL),-original $(ORIGINAL))

.PHONY: lint
lint: $(BIN)/golangci-lint-$(GOLANGCI_LINT) ## gofmt, vet, staticcheck and the import rules; shellcheck, mandoc
	$< run --allow-parallel-runners ./...
	shellcheck $(SCRIPTS)
	mandoc -T lint -W warning packaging/*.8

.PHONY: vuln
vuln: $(BIN)/govulncheck-$(GOVULNCHECK) ## known vulnerabilities, if their database can be reached
	@tests/vuln.sh $<

# go install cannot name its result, and the name is what makes a new version
# of the tool a new file.
$(BIN)/golangci-lint-$(GOLANGCI_LINT):
	GOFLAGS= GOBIN=$(CURDIR)/$(BIN) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT)
	mv $(BIN)/golangci-lint $@

$(BIN)/govulncheck-$(GOVULNCHECK):
	GOFLAGS= GOBIN=$(CURDIR)/$(BIN) go install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK)
	mv $(BIN)/govulncheck $@

.PHONY: clean
clean: ## remove what was built here
	rm -rf build dist
