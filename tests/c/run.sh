#!/bin/bash
# Tests of libtcpr.so with C and Python programs: plain, linked, preloaded, and preloaded with a manager that
# only listens.
#
# tests/c/run.sh [DIRECTORY]    where libtcpr.so and examples/fake_manager are; target/release by default
set -u

root=$(cd "$(dirname "$0")/../.." && pwd)
built=$(cd "${1:-$root/target/release}" && pwd) || exit 1
library=$built/libtcpr.so
manager=$built/examples/fake_manager
cc=${CC:-gcc}
vip=127.0.0.2
failures=0

fatal() { echo "tests/c/run.sh: $*" >&2; exit 1; }
command -v "$cc" > /dev/null || fatal "no C compiler \"$cc\": install gcc, or name another one in CC"
[ -e "$library" ] || fatal "no $library: run \"cargo build --release\" first"
[ -x "$manager" ] || fatal "no $manager: run \"cargo build --release -p tcpr-node --example fake_manager\" first"

work=$(mktemp -d)
server_id= manager_id=
stop() {
    [ -n "$server_id" ] && kill "$server_id" 2> /dev/null && wait "$server_id" 2> /dev/null
    server_id=
    if [ -n "$manager_id" ]; then
        exec {to_manager}>&-
        wait "$manager_id" 2> /dev/null
    fi
    manager_id=
}
trap 'stop; rm -rf "$work"' EXIT

pass() { echo "ok    $1"; }
fail() { echo "FAIL  $1"; failures=$((failures + 1)); }

flags=(-std=gnu11 -O2 -Wall -Wextra -Werror)
build() { "$cc" "${flags[@]}" -o "$work/$1" "$root/tests/c/$2" "${@:3}" || fatal "$2 does not compile"; }
link=(-I"$root/include" -L"$built" -ltcpr -Wl,-rpath,"$built")
build conformance conformance.c -lpthread
build conformance-linked conformance.c -DLINKED "${link[@]}" -lpthread
build conformance-fortified conformance.c -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 -lpthread
build echo echo.c
build echo-compat echo.c -DCOMPAT "${link[@]}"
build peer peer.c

# A port that nobody uses, below the ephemeral ones.
port=$((20000 + $$ % 10000))

start_manager() {
    mkfifo "$work/to" 2> /dev/null
    "$manager" "test-$$" secret "$vip" "$@" < "$work/to" > "$work/events" 2> "$work/manager-errors" &
    manager_id=$!
    exec {to_manager}> "$work/to"
    for _ in $(seq 200); do
        grep -q ready "$work/events" && return
        sleep 0.05
    done
    fatal "the fake manager does not start: $(cat "$work/manager-errors")"
}
protected() { TCPR_SERVICE="test-$$" TCPR_TOKEN=secret TCPR_LOG=${TCPR_LOG-warn} "$@"; }

# The output of PROGRAM, run in some way, must be that of the C library alone.
expected=
conforms() {
    local name=$1; shift
    "$@" "$vip" "$port" > "$work/output" 2> "$work/errors"
    local status=$?
    if [ "$status" -ne 0 ]; then
        fail "$name: exit status $status"; cat "$work/errors"
    elif [ -s "$work/errors" ]; then
        fail "$name: wrote to standard error"; head "$work/errors"
    elif ! diff "$work/$expected" "$work/output"; then
        fail "$name: results differ from the C library's"
    else
        pass "$name"
    fi
}
baseline() {
    expected=expected-$1
    "$work/$1" "$vip" "$port" > "$work/$expected" || fatal "$1 fails without libtcpr"
}

baseline conformance
conforms "conformance, preloaded, no manager" env LD_PRELOAD="$library" "$work/conformance"
# Linked programs look for a manager when they bind; this one has none, but runs on other ports than ours.
start_manager "$port"
conforms "conformance, preloaded, protected" protected env LD_PRELOAD="$library" "$work/conformance"
conforms "conformance, linked, protected" protected "$work/conformance-linked"
grep -q 'Write {' "$work/events" && pass "conformance was seen" || fail "conformance was not seen"
grep -q 'spoiled' "$work/events" && fail "the ring was spoiled"
stop
start_manager 1
conforms "conformance, linked, another port" protected "$work/conformance-linked"
grep -q 'Write {' "$work/events" && fail "another port was protected" || pass "another port is not protected"
stop
baseline conformance-fortified
start_manager "$port"
conforms "conformance, fortified, protected" protected env LD_PRELOAD="$library" "$work/conformance-fortified"
stop

# An echo: what the manager hears of it.
says() {
    local name=$1 pattern=$2 events
    for _ in $(seq 100); do
        events=$(tr '\n' ' ' < "$work/events")
        [[ $events =~ $pattern ]] && { pass "$name"; return; }
        sleep 0.05
    done
    fail "$name: the manager heard something else:"
    cat "$work/events"
}
wait_for_port() {
    for _ in $(seq 400); do
        "$work/peer" "$vip" "$port" 2> /dev/null && return
        kill -0 "$server_id" 2> /dev/null || break
        sleep 0.05
    done
    fail "the server does not listen"; cat "$work/server-errors"
}
echoes() {
    local name=$1; shift
    start_manager "$port"
    protected "$@" 2> "$work/server-errors" &
    server_id=$!
    wait_for_port
    "$work/peer" "$vip" "$port" one two || fail "$name: no echo"
    local attach='Attach \{ handle: ([0-9]+), origin: Accepted \} 127.0.0.2:[0-9]+'
    local read='Read \{ thread: [0-9]+, handle: [0-9]+, n: 3 \}'
    local write='Write \{ thread: [0-9]+, handle: [0-9]+, taken: 3, short: false \}'
    local pause='Wait \{ thread: [0-9]+, zero_timeout: (true|false) \}'
    says "$name: attach, read, write, wait, close" \
        "$attach.*$read.*$write \"one\".*$pause.*$read.*$write \"two\".*$pause.*Close \{ thread: [0-9]+, handle: [0-9]+, abort: false \}"
    [ -s "$work/server-errors" ] && { fail "$name: complaints"; cat "$work/server-errors"; }
    stop
}
preload=(env LD_PRELOAD="$library")
echoes "blocking C server" "${preload[@]}" "$work/echo" "$vip" "$port" blocking
echoes "epoll C server" "${preload[@]}" "$work/echo" "$vip" "$port" epoll
echoes "wildcard C server" "${preload[@]}" "$work/echo" 0.0.0.0 "$port" epoll
echoes "C server built with tcpr_compat.h" "$work/echo-compat" "$vip" "$port" epoll
if command -v python3 > /dev/null; then
    echoes "threaded Python server" "${preload[@]}" python3 "$root/tests/c/echo.py" "$vip" "$port" thread
    echoes "asyncio Python server" "${preload[@]}" python3 "$root/tests/c/echo.py" "$vip" "$port" asyncio
fi

# Recovered sessions: connections to another port, handed over as this one's.
recovers() {
    local name=$1 inject=$((port + 1)); shift
    start_manager "$port" "$inject"
    protected "${preload[@]}" "$@" 2> "$work/server-errors" &
    server_id=$!
    wait_for_port
    local peers=()
    for i in 1 2 3; do
        "$work/peer" "$vip" "$inject" "recovered-$i" more & peers+=($!)
    done
    for id in "${peers[@]}"; do
        wait "$id" || fail "$name: a recovered session does not echo"
    done
    says "$name: all attached" "Recovered.*Recovered.*Recovered"
    "$work/peer" "$vip" "$port" afterwards || fail "$name: no new sessions afterwards"
    [ -s "$work/server-errors" ] && { fail "$name: complaints"; cat "$work/server-errors"; }
    stop
}
recovers "recovery, epoll" "$work/echo" "$vip" "$port" epoll
# One after the other: each is served to its end before the next is accepted.
recovers "recovery, blocking" "$work/echo" "$vip" "$port" blocking

# What was sent before the failover is not sent again.
start_manager "$port" $((port + 1)) 4
protected "${preload[@]}" "$work/echo" "$vip" "$port" epoll 2> "$work/server-errors" &
server_id=$!
wait_for_port
"$work/peer" "$vip" $((port + 1)) 2> /dev/null abcdefgh &
peer_id=$!
says "absorbed output" 'Absorbed \{ thread: [0-9]+, handle: [0-9]+, n: 4 \}.*taken: 4, short: false \} "efgh"'
kill "$peer_id" 2> /dev/null; wait "$peer_id" 2> /dev/null
stop

# No manager at all: a clear failure, in time.
TCPR_SERVICE=nobody TCPR_TOKEN=x LD_PRELOAD=$library "$work/echo" "$vip" "$port" blocking 2> "$work/errors"
[ "$?" -eq 1 ] && grep -q 'bind: Transport endpoint is not connected' "$work/errors" \
    && pass "without its manager a bind fails" || { fail "bind without a manager"; cat "$work/errors"; }

if [ "$failures" -gt 0 ]; then
    echo "$failures failed"
    exit 1
fi
echo "all passed"
