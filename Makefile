# Strata. Every target works alone on a fresh Debian or Ubuntu machine with Go and root.

GO ?= go
BIN := bin/strata
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
FUZZTIME ?= 20s
NIGHTLY ?= 10m
TORTURE ?= 1h
FUZZDIR ?= $(HOME)/.cache/strata/fuzz
SHARD ?= 1/1
export GOFLAGS := -buildvcs=false

# What a machine needs to build and run steps; what only the tests need besides.
PACKAGES := runc ca-certificates git iproute2 nftables busybox-static
DEMO_PACKAGES := $(PACKAGES) mmdebstrap curl
TEST_PACKAGES := $(DEMO_PACKAGES) docker-registry docker.io containerd podman skopeo umoci openssh-client zstd xz-utils bzip2 attr gnupg e2fsprogs xfsprogs btrfs-progs gcc libc6-dev
CONFORMANCE_PACKAGES := $(PACKAGES) docker-registry curl openssh-client gnupg e2fsprogs fuse3 containernetworking-plugins iptables

.PHONY: build clients demo test torture lint fuzz fuzz-nightly bench conformance conformance-subset clean

build: $(BIN)

# Static: an image's loader must never run in a process of this program.
$(BIN): FORCE
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o $(BIN) ./cmd/strata

FORCE:

# clients builds buildctl and buildx, with which the tests of api/buildkit build too when they are there.
clients:
	@GO="$(GO)" scripts/clients

# demo builds real applications from their Dockerfiles, runs the images and shows that they answer.
demo:
	@scripts/packages $(DEMO_PACKAGES)
	@$(MAKE) --no-print-directory build
	@examples/demo/run $(BIN)

# test installs what the tests need and runs them all, those that need root included; -race where no root is needed. Results
# are not taken from the cache: the end-to-end tests build the program themselves, which the cache does not see. What the tests
# leave on the machine (mounts, control groups, links, processes) is an error.
test: clients
	@scripts/packages $(TEST_PACKAGES)
	@mkdir -p bin && scripts/left >bin/left
	$(GO) test -count=1 -timeout 20m ./...
	@scripts/left check bin/left
	$(GO) test -race -short -timeout 10m ./diag ./graph ./image ./event ./session ./solve ./dockerfile/... ./registry ./cmd/strata/progress

# torture compares warm builds with cold ones after random edits, prunes, kills and imports of caches, and after kills, power cuts
# and errors of disks (ext4, xfs, btrfs) and registries in the middle of builds. TORTURE is how long each of these
# goes on (2h), or the number of rounds. A round that fails prints its seed and the least that shows the difference.
torture:
	@scripts/packages $(TEST_PACKAGES)
	TORTURE=$(TORTURE) $(GO) test -count=1 -timeout 0 -v -run '^TestTorture' ./internal/e2e

lint:
	@test -z "$$(gofmt -l $$(git ls-files '*.go') | tee -a /dev/stderr)"
	$(GO) vet ./...
	cd tools && $(GO) tool -n staticcheck >/dev/null
	$$(cd tools && $(GO) tool -n staticcheck) ./...
	@test -z "$$($$(cd tools && $(GO) tool -n gofumpt) -l $$(git ls-files '*.go') | tee -a /dev/stderr)"

# fuzz runs every fuzz target for FUZZTIME; fuzz-nightly takes ten minutes for each, goes on with the inputs that FUZZDIR has from
# earlier nights, and runs the part SHARD (i/n) of the targets, so that several machines can share a night.
fuzz:
	@GO="$(GO)" FUZZTIME=$(FUZZTIME) scripts/fuzz

fuzz-nightly:
	@GO="$(GO)" FUZZTIME=$(NIGHTLY) FUZZDIR=$(FUZZDIR) SHARD=$(SHARD) scripts/fuzz

# bench times Strata and the builders that this machine has, and writes docs/benchmarks.md.
bench: build
	$(GO) run ./bench -strata $(BIN) $(BENCHFLAGS)

# conformance runs BuildKit's own integration tests against Strata in buildkitd's place, offline, and writes
# conformance/results.txt; conformance-subset runs sixty of them and refuses one that passes there and fails now.
conformance: build
	@scripts/packages $(CONFORMANCE_PACKAGES)
	cd conformance && $(GO) run . -daemon ../$(BIN) -results results.txt $(CONFORMANCEFLAGS)

conformance-subset: build
	@scripts/packages $(CONFORMANCE_PACKAGES)
	cd conformance && $(GO) run . -daemon ../$(BIN) -subset -check results.txt $(CONFORMANCEFLAGS)

clean:
	rm -rf bin
