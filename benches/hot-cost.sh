#!/bin/bash
# What a recording costs redis-server: processor time of the leader, with and without it, processor time of the follower,
# and bytes of the trace, all for one GET. Without managers: the trace is a file. Rounds alternate; compare medians.
#
#   benches/hot-cost.sh [CLIENTS [REQUESTS [ROUNDS]]]
#
# Needs redis-server, redis-benchmark and redis-cli (apt-get install redis-server redis-tools), and `make build`.
set -eu
clients=${1:-50} requests=${2:-200000} rounds=${3:-9}
release=$(cd "$(dirname "$0")/../target/release" && pwd)
port=7777
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
for tool in redis-server redis-benchmark redis-cli setarch; do
    command -v "$tool" >"$work/found" || { echo "hot-cost: $tool is missing (apt-get install redis-server redis-tools)" >&2; exit 1; }
done
cd "$work"
redis=(redis-server --port "$port" --save '' --daemonize no)
hot=(TCPR_HOT_FILE="$work/trace" LD_PRELOAD="$release/libtcpr_hot.so")

cpu() { redis-cli -p "$port" info cpu | tr -d '\r' | awk -F: '/^used_cpu_(sys|user):/ {s += $2} END {print s}'; }
each() { awk -v from="$2" -v to="$3" -v n="$requests" -v unit="$4" -v how="$1" 'BEGIN {printf "%-10s %6.1f %s\n", how, (to - from) / n, unit}'; }

measure() { # HOW ENVIRONMENT...
    local how=$1 before
    shift
    setarch -R env "$@" "${redis[@]}" >"$work/log" & server=$!
    for _ in $(seq 100); do
        redis-cli -p "$port" ping >"$work/found" 2>&1 && break
        sleep 0.1
    done
    before=$(cpu)
    redis-benchmark -p "$port" -t get -c "$clients" -n "$requests" -q >"$work/found"
    each "$how" "${before}e6" "$(cpu)e6" "us"
    kill "$server"
    wait "$server" || true
    server=
}

for _ in $(seq "$rounds"); do
    measure without TCPR_HOT_MODE=
    rm -f trace
    measure leader "${hot[@]}" TCPR_HOT_MODE=record
    each trace 0 "$("$release/tcpr" trace trace --from 999999999 | sed -n 's/.*, \([0-9]*\) of [0-9]* bytes.*/\1/p')" "bytes"
    TIMEFORMAT='%U %S'
    { time setarch -R env "${hot[@]}" TCPR_HOT_MODE=follow "${redis[@]}" >log 2>&1; } 2>times || { cat log >&2; exit 1; }
    each follower 0 "$(awk '{print ($1 + $2) "e6"}' times)" "us"
done | tee all
echo "medians, $clients clients:"
for how in without leader follower trace; do
    grep "^$how " all | sort -k2 -n | awk '{line[NR] = $0} END {print line[int((NR + 1) / 2)]}'
done
