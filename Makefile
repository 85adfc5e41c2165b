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

# In a source tarball version.mk says what git would.
-include version.mk

BIN     := build/bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
DATE    ?= $(shell git log -1 --format=%cs 2>/dev/null)

# The same commit gives the same bytes, wherever it lies and whoever builds it: with
# the same Go, which 'migratefs version' names.
LDFLAGS := -s -w -buildid= -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.date=$(DATE)
GOBUILD := CGO_ENABLED=0 GOAMD64=v1 GOARM64=v8.0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'

# Where make install puts things; SYSCONFIG is /etc/default on Debian.
PREFIX    ?= /usr
BINDIR    ?= $(PREFIX)/bin
SBINDIR   ?= $(PREFIX)/sbin
DATADIR   ?= $(PREFIX)/share
UNITDIR   ?= $(PREFIX)/lib/systemd/system
SYSCONFIG ?= /etc/sysconfig
BINARY    ?= build/migratefs
BUILT     ?= build/migratefs

# What `make test-go` runs, and how long `make fuzz` takes for each package.
PKG      ?= ./...
RUN      ?= .
FUZZTIME ?= 60

SCRIPTS := .ci/run packaging/prerm $(shell git ls-files -co --exclude-standard '*.sh' '*.sbatch' 2>/dev/null)

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: build
build: ## build/migratefs, static, as it is shipped
	$(GOBUILD) -o $(BUILT) ./cmd/migratefs

.PHONY: completions
completions: build ## what bash, zsh and fish complete, into build/completions
	@mkdir -p build/completions
	build/migratefs completion bash >build/completions/migratefs
	build/migratefs completion zsh >build/completions/_migratefs
	build/migratefs completion fish >build/completions/migratefs.fish

.PHONY: install
install: ## put what was built under $(DESTDIR)$(PREFIX): make build completions, then this
	@packaging/install.sh '$(DESTDIR)' '$(BINARY)' '$(BINDIR)' '$(SBINDIR)' '$(DATADIR)' '$(UNITDIR)' '$(SYSCONFIG)'

.PHONY: man
man: ## write what the manual pages, docs/options.md and words.txt take from the program
	go test ./cmd/migratefs -run '^(TestPages|TestWords)$$' -update

.PHONY: picture
picture: ## docs/status.svg: what a terminal shows half way through a drain (root)
	go test ./tests/e2e -count=1 -run '^TestWatch$$' -picture '$(CURDIR)/docs/status.svg'

.PHONY: release
release: ## tarballs, deb and rpm for amd64 and arm64, SBOM and checksums, into dist
	@packaging/release.sh '$(VERSION)' '$(COMMIT)' '$(DATE)'

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
	go run ./tests/run -skips tests/skips.txt -- -race -p $$((2 * $$(nproc))) -timeout 30m -run '$(RUN)' $(PKG)

.PHONY: fuzz
fuzz: ## fuzz every package that has a fuzz target, FUZZTIME=60 seconds each
	@tests/fuzz.sh $(FUZZTIME)

# What `make bench` measures, where, how often; ORIGINAL is a build of the C
# migratefs, BASE another one of ours, SIZES are MiB of what a process is moved with. A run of everything writes the page; a run
# of less does so where DOCS says.
.PHONY: bench
bench: build ## measure beside the peers, into docs/performance.md: ONLY=untar,git MOUNTS=ours-overlay RUNS=3 QUICK=1 (root)
	@tests/testbed/install.sh --bench
	go run ./tests/bench $(if $(ONLY)$(MOUNTS)$(QUICK)$(DOCS),$(if $(DOCS),-docs $(DOCS)),-docs docs) $(if $(ONLY),-only $(ONLY)) $(if $(MOUNTS),-mounts $(MOUNTS)) $(if $(RUNS),-runs $(RUNS)) $(if $(SIZES),-sizes $(SIZES)) \
		$(if $(QUICK),-quick) $(if $(DETAIL),-detail) $(if $(COUNTS),-counts=$(COUNTS)) $(if $(BASE),-base $(BASE)) $(if $(ORIGINAL),-original $(ORIGINAL))

.PHONY: lint
lint: $(BIN)/golangci-lint-$(GOLANGCI_LINT) ## gofmt, vet, staticcheck and the import rules; shellcheck, mandoc
	$< run --allow-parallel-runners ./...
	shellcheck $(SCRIPTS)
	mandoc -T lint -W warning packaging/*.[58]

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
