# tcpr: make demo, make test. Both install what they need (as root, on Debian or Ubuntu) and build.
.PHONY: all deps build examples demo test soak bench install clean

CARGO ?= $(shell command -v cargo || echo $(HOME)/.cargo/bin/cargo)
TARGET := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET)/release
EXAMPLES := $(TARGET)/examples
PREFIX ?= /usr/local
MINUTES ?= 10
CFLAGS := -O2 -Wall -Wextra -Werror
PACKAGES := gcc libc6-dev iproute2 iptables memcached python3

all: build

deps:
	@missing=""; for p in $(PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "installing$$missing"; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; } \
	  >/dev/null || { echo "apt-get failed; install by hand:$$missing" >&2; exit 1; }; fi
	@test -x "$(CARGO)" || { echo "no cargo: install a Rust toolchain (https://rustup.rs)" >&2; exit 1; }

build: deps
	$(CARGO) build --release -p tcpr -p tcpr-cli
	@$(MAKE) --no-print-directory examples

examples: $(EXAMPLES)/plain_chat_server $(EXAMPLES)/chat_server $(EXAMPLES)/echo_server

$(EXAMPLES)/plain_chat_server: examples/plain_chat_server.c
	@mkdir -p $(EXAMPLES)
	$(CC) $(CFLAGS) -o $@ $<

$(EXAMPLES)/%: examples/%.c include/tcpr.h $(RELEASE)/libtcpr.so
	@mkdir -p $(EXAMPLES)
	$(CC) $(CFLAGS) -Iinclude -o $@ $< -L$(RELEASE) -ltcpr -Wl,-rpath,'$$ORIGIN/../release'

demo: build
	$(RELEASE)/tcpr demo

test: build
	$(CARGO) test --release --workspace

soak: build
	TCPR_SOAK_MINUTES=$(MINUTES) $(CARGO) test --release --test soak -- --ignored --nocapture

bench:
	@echo "make bench: the benchmarks are not built yet (issue 5)" >&2; exit 1

install: build
	install -D -m 755 $(RELEASE)/tcpr $(DESTDIR)$(PREFIX)/bin/tcpr
	install -D -m 755 $(RELEASE)/libtcpr.so $(DESTDIR)$(PREFIX)/lib/libtcpr.so
	install -D -m 644 include/tcpr.h $(DESTDIR)$(PREFIX)/include/tcpr.h
	install -D -m 644 include/tcpr_compat.h $(DESTDIR)$(PREFIX)/include/tcpr_compat.h

clean:
	$(CARGO) clean
