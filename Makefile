# Maneki: build, try, test. `make help` lists what there is.

SHELL      := /bin/bash
VERSION    ?= $(shell cat VERSION)
COMMIT     ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
GOOS       ?= linux
GOARCH     ?= $(shell go env GOARCH)
PREFIX     ?= /usr/local
BIN        := bin/maneki
SHIM       := cni/install/shim/maneki-cni-$(GOARCH)
LDFLAGS    := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)

export GOTOOLCHAIN := local
export GOFLAGS     := -buildvcs=false
export CGO_ENABLED := 0
export GOOS GOARCH

# Debian packages that the tests use as peers and as independent readers.
TEST_PACKAGES := etcd-server etcd-client bird2 frr containernetworking-plugins nftables \
                 iproute2 iputils-ping tcpdump procps curl openssl time docker.io busybox-static docker-compose net-tools ethtool \
                 iptables clang-19 user-mode-linux

# Pure packages: no root, no namespaces, no servers.
FAST := ./selector/... ./api/... ./convert/... ./exit/... ./config/... ./autodetect/... ./desired/... ./reconcile/... ./calc/... \
        ./datastore ./datastore/memory/... ./ipam/... ./resource/... ./test/house/...

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: $(BIN) ## the maneki binary, with the CNI shim embedded

# The shim is built first: it is part of the binary.
$(SHIM): FORCE
	@mkdir -p $(@D)
	@go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $@ ./cmd/maneki-cni

$(BIN): $(SHIM) FORCE
	go build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/maneki

.PHONY: FORCE
FORCE:

.PHONY: cross
cross: ## linux/amd64 and linux/arm64, static
	@for arch in amd64 arm64; do \
	  $(MAKE) --no-print-directory GOARCH=$$arch cni/install/shim/maneki-cni-$$arch && \
	  GOARCH=$$arch go build -trimpath -ldflags '$(LDFLAGS)' -o bin/maneki-linux-$$arch ./cmd/maneki || exit 1; \
	done; ls -l bin

.PHONY: image
image: build ## the Docker image maneki/node:VERSION
	docker build -t maneki/node:$(VERSION) .

.PHONY: demo
demo: build ## three hosts, one routed network, on this machine (needs root)
	$(BIN) lab demo

.PHONY: test-deps
test-deps:
	@missing=; for p in $(TEST_PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  echo "installing:$$missing"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

.PHONY: test
test: test-deps build ## everything (root, Debian); installs what it needs
	bash test/run

.PHONY: test-fast
test-fast: ## pure packages only, under two minutes
	go test $(FAST)

.PHONY: docs
docs: $(SHIM) ## the reference pages, from the code
	go run ./cmd/maneki-docs

.PHONY: bench
bench: test-deps build ## measurements with the peers in the same run; results under bench/results
	bash bench/run

.PHONY: lint
lint: $(SHIM) ## gofumpt, vet, staticcheck
	@out=$$(go run mvdan.cc/gofumpt@v0.12.0 -l $$(git ls-files '*.go')); test -z "$$out" || { echo "not formatted by gofumpt:"; echo "$$out"; exit 1; }
	go vet ./...
	go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

.PHONY: install
install: build ## into PREFIX/bin, also as the kubectl plugin kubectl-maneki
	install -D -m 0755 $(BIN) $(DESTDIR)$(PREFIX)/bin/maneki
	ln -sf maneki $(DESTDIR)$(PREFIX)/bin/kubectl-maneki

.PHONY: clean
clean: ## what building left
	rm -rf bin $(dir $(SHIM))maneki-cni-*
