#!/usr/bin/env bash
# fuzz/run.sh SECONDS TARGET...     gives each target made-up inputs for so long
# fuzz/run.sh repeat TARGET HEX     gives a target one input again
set -euo pipefail
cd "$(dirname "$0")/.."

build=${CARGO_TARGET_DIR:-target}/fuzzing
host=$(rustc -vV | sed -n 's/^host: //p')
programs=$build/$host/fuzz
# What cargo-fuzz sets, without the sanitizers, which need a nightly toolchain. For the target alone: build scripts run
# without libFuzzer.
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
  -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"

compile() {
    RUSTFLAGS=$coverage cargo build --profile fuzz --locked -p tcpr-fuzz --features link --target-dir "$build" \
        --target "$host" "${@/#/--bin=}"
}

if [ "$1" = repeat ]; then
    compile "$2"
    input=$(mktemp)
    printf "$(sed 's/../\\x&/g' <<<"$3")" >"$input"
    exec "$programs/$2" "$input"
fi

seconds=$1
shift
compile "$@"
failed=0
for target in "$@"; do
    corpus=$build/corpus/$target found=$build/found/$target
    mkdir -p "$corpus" "$found"
    rm -f "$found"/*
    echo "fuzz: $target for $seconds s"
    # The first directory grows, the other one is only read.
    log=$build/$target.log
    if "$programs/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=8192 -print_final_stats=1 \
        -artifact_prefix="$found/" "$corpus" "fuzz/seeds/$target" >"$log" 2>&1; then
        grep -E "number_of_executed_units|^#.*DONE" "$log"
    else
        grep -v "^#" "$log" | tail -40 >&2
        failed=1
        for input in "$found"/*; do
            [ -e "$input" ] || continue
            echo "fuzz: $target fails. To repeat it:" >&2
            echo "fuzz/run.sh repeat $target $(od -An -v -tx1 "$input" | tr -d ' \n')" >&2
        done
    fi
done
exit "$failed"
