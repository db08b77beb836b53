# tcpr: make demo, make test. Both install what they need (as root, on Debian or Ubuntu) and build.
.PHONY: all deps test-deps bench-deps build examples demo lint test soak fuzz bench install install-files clean

CARGO ?= $(shell command -v cargo || echo $(HOME)/.cargo/bin/cargo)
TARGET := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET)/release
EXAMPLES := $(TARGET)/examples
PREFIX ?= /usr/local
CFLAGS := -O2 -Wall -Wextra -Werror
PACKAGES := gcc libc6-dev iproute2 iptables python3
# What only the tests use.
TEST_PACKAGES := memcached redis-server ngircd nftables nginx-light libnginx-mod-stream haproxy socat caddy strace gunicorn vsftpd php-fpm nodejs bird2 gobgpd frr mosquitto beanstalkd stunnel4 openssl pkgconf cmake lighttpd webfs apache2-bin dnsmasq-base unbound inspircd slapd dropbear-bin rsync pgbouncer prosody
# What the benchmarks compare with; they say what is missing.
BENCH_PACKAGES := keepalived criu
# What does not depend on the engine is not run twice.
ENGINELESS := --skip bad_input --skip unhooked --skip hot:: --skip routing:: --skip joined:: --skip options:: --skip strangers:: --skip workers:: --skip ::hot --skip bgp::
# Unit tests of our own crates: quick to build matters more than quick to run. The dependencies are the product's.
UNIT := --release $(foreach p,tcpr tcpr-session tcpr-node tcpr-cli tcpr-lab,--config profile.release.package.$(p).opt-level=0)

all: build

deps:
	@missing=""; for p in $(PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "installing$$missing"; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; } \
	  >/dev/null || { echo "apt-get failed; install by hand:$$missing" >&2; exit 1; }; fi
	@test -x "$(CARGO)" || { echo "no cargo: install a Rust toolchain (https://rustup.rs)" >&2; exit 1; }

test-deps:
	@$(MAKE) --no-print-directory deps PACKAGES="$(PACKAGES) $(TEST_PACKAGES)"

build: deps
	$(CARGO) build --release -p tcpr -p tcpr-hot -p tcpr-cli
	@$(MAKE) --no-print-directory examples

examples: $(addprefix $(EXAMPLES)/,plain_chat_server chat_server echo_server conformance line_server option_server inherit_server passer process_server signal_server event_loop listeners static_line_server raw_server traffic_server holder caller static_caller linked_caller workers splice_server rooms_server linked_process_server linked_signal_server keeper room_chat phases_server roles bgp_speaker wakers between)

$(EXAMPLES)/plain_chat_server $(EXAMPLES)/rooms_server: $(EXAMPLES)/%: examples/%.c examples/common.h
	@mkdir -p $(EXAMPLES)
	$(CC) $(CFLAGS) -Wpedantic -o $@ $<

# Programs of the tests; here for being built alike.
$(EXAMPLES)/static_line_server: tests/c/line_server.c
	@mkdir -p $(EXAMPLES)
	$(CC) $(CFLAGS) -static -pthread -o $@ $<

$(EXAMPLES)/static_caller: tests/c/caller.c
	@mkdir -p $(EXAMPLES)
	$(CC) $(CFLAGS) -static -pthread -o $@ $<

$(EXAMPLES)/linked_caller $(EXAMPLES)/linked_process_server $(EXAMPLES)/linked_signal_server: $(EXAMPLES)/linked_%: tests/c/%.c include/tcpr.h include/tcpr_compat.h
	@mkdir -p $(EXAMPLES)
	$(CC) $(CFLAGS) -D_GNU_SOURCE -Iinclude -include tcpr_compat.h -pthread -o $@ $< -L$(RELEASE) -ltcpr

$(EXAMPLES)/keeper $(EXAMPLES)/roles: $(EXAMPLES)/%: tests/c/%.c include/tcpr.h
	@mkdir -p $(EXAMPLES)
	$(CC) $(CFLAGS) -Wpedantic -pthread -Iinclude -o $@ $< -L$(RELEASE) -ltcpr

$(EXAMPLES)/conformance $(EXAMPLES)/line_server $(EXAMPLES)/option_server $(EXAMPLES)/inherit_server $(EXAMPLES)/passer $(EXAMPLES)/process_server $(EXAMPLES)/signal_server $(EXAMPLES)/event_loop $(EXAMPLES)/listeners $(EXAMPLES)/raw_server $(EXAMPLES)/caller $(EXAMPLES)/workers $(EXAMPLES)/splice_server $(EXAMPLES)/wakers $(EXAMPLES)/between: $(EXAMPLES)/%: tests/c/%.c
	@mkdir -p $(EXAMPLES)
	$(CC) $(CFLAGS) -pthread -o $@ $<

$(EXAMPLES)/traffic_server $(EXAMPLES)/holder: $(EXAMPLES)/%: benches/%.c
	@mkdir -p $(EXAMPLES)
	$(CC) $(CFLAGS) -o $@ $<

$(EXAMPLES)/%: examples/%.c examples/common.h include/tcpr.h
	@mkdir -p $(EXAMPLES)
	$(CC) $(CFLAGS) -Wpedantic -Iinclude -o $@ $< -L$(RELEASE) -ltcpr

demo: build
	$(RELEASE)/tcpr demo

# The form of the code, its documentation, and its dependencies. The rules are in rustfmt.toml, Cargo.toml and deny.toml.
lint: deps
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets --features tcpr-fuzz/targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --release --workspace --no-deps --document-private-items
	$(CARGO) test --release --test dependencies

test: test-deps
	@# The pure core shares nothing; the others share the machine.
	$(CARGO) test $(UNIT) -p tcpr-session --lib --bins --tests
	$(CARGO) test $(UNIT) --workspace --exclude tcpr --exclude tcpr-hot --exclude tcpr-session --lib --bins --tests -- --test-threads=1
	@$(MAKE) --no-print-directory build
	$(CARGO) test --release --test header --test install --test abi
	$(CARGO) test --release -p tcpr-hot --test hot -- --test-threads=2
	TCPR_ENGINE=repair $(CARGO) test --release --test e2e -- --test-threads=4
	TCPR_ENGINE=splice $(CARGO) test --release --test e2e -- --test-threads=4 $(ENGINELESS)
	$(RELEASE)/tcpr demo

# End-to-end tests in random order, with each engine and fresh seeds, on a machine that is kept busy.
MINUTES ?= 60
soak: test-deps build
	MINUTES=$(MINUTES) $(CARGO) test --release --test e2e -- --ignored --nocapture --exact soak::soak

# Made-up bytes for what reads bytes from outside: make fuzz FUZZ="link ring" FUZZ_SECONDS=600
FUZZ ?= segment records link heartbeat ring configuration trace
FUZZ_SECONDS ?= 60
fuzz:
	@$(MAKE) --no-print-directory deps PACKAGES="$(PACKAGES) g++"
	PATH="$(dir $(CARGO)):$$PATH" fuzz/run.sh $(FUZZ_SECONDS) $(FUZZ)

bench-deps:
	-@$(MAKE) --no-print-directory deps PACKAGES="$(BENCH_PACKAGES)"

# make bench ARGS="--json --plot plots recovery"
bench: bench-deps build
	$(RELEASE)/tcpr bench $(ARGS)

install: build
	@$(MAKE) --no-print-directory install-files

# What is built already; with what pkg-config and CMake's find_package(tcpr) need to find it.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
LIB := $(DESTDIR)$(PREFIX)/lib
install-files:
	install -D -m 755 $(RELEASE)/tcpr $(DESTDIR)$(PREFIX)/bin/tcpr
	install -D -m 755 $(RELEASE)/libtcpr.so $(LIB)/libtcpr.so
	install -D -m 755 $(RELEASE)/libtcpr_hot.so $(LIB)/libtcpr_hot.so
	install -D -m 644 include/tcpr.h $(DESTDIR)$(PREFIX)/include/tcpr.h
	install -D -m 644 include/tcpr_compat.h $(DESTDIR)$(PREFIX)/include/tcpr_compat.h
	install -D -m 644 packaging/tcpr.pc.in $(LIB)/pkgconfig/tcpr.pc
	install -D -m 644 packaging/tcprConfig.cmake $(LIB)/cmake/tcpr/tcprConfig.cmake
	install -D -m 644 packaging/tcprConfigVersion.cmake.in $(LIB)/cmake/tcpr/tcprConfigVersion.cmake
	sed -i 's|@PREFIX@|$(PREFIX)|; s|@VERSION@|$(VERSION)|' $(LIB)/pkgconfig/tcpr.pc $(LIB)/cmake/tcpr/tcprConfigVersion.cmake

clean:
	$(CARGO) clean
