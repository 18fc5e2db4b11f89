#!/usr/bin/env bash
# Five nodes over real sockets for SECONDS_LONG; memory, open files and ledger of each every five seconds.
# usage: soak.sh PATH_TO_RUMORMILL OUT.csv SECONDS_LONG [PROBES_A_SECOND]
set -euo pipefail
program=$(realpath "$1") out=$(realpath -m "$2") long=$3 rate=${4:-40}
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"
"$program" init --members 5 --model mlp:16 --probes-per-round 8 --rounds-per-height 4 \
    --rounds 10000000 --out run.toml
pids=()
for at in 0 1 2 3 4; do
    peers=()
    for to in 0 1 2 3 4; do
        [ "$to" = "$at" ] || peers+=(--peer "/ip4/127.0.0.1/tcp/$((47310 + to))")
    done
    "$program" node --run run.toml --data-dir "node-$at" --no-mdns --log warn \
        --listen "/ip4/127.0.0.1/tcp/$((47310 + at))" --probe-rate "$rate" "${peers[@]}" \
        >"node-$at.out" 2>"node-$at.err" &
    pids+=($!)
done
echo "seconds,node,rss_kib,open_files,threads,ledger_bytes,round,certified" >"$out"
begun=$(date +%s)
while now=$(($(date +%s) - begun)); [ "$now" -lt "$long" ]; do
    sleep 5
    for at in 0 1 2 3 4; do
        pid=${pids[$at]}
        rss=$(awk '/^VmRSS/ {print $2}' "/proc/$pid/status")
        threads=$(awk '/^Threads/ {print $2}' "/proc/$pid/status")
        files=$(ls "/proc/$pid/fd" | wc -l)
        ledger=$(stat -c %s "node-$at/ledger.log" 2>/dev/null || echo 0)
        state=$("$program" status --data-dir "node-$at" --json 2>/dev/null || echo '{}')
        round=$(sed -n 's/.*"round":\([0-9]*\).*/\1/p' <<<"$state")
        certified=$(sed -n 's/.*"certified":\([0-9]*\).*/\1/p' <<<"$state")
        echo "$now,$at,$rss,$files,$threads,$ledger,${round:-},${certified:-}" >>"$out"
    done
done
for at in 0 1 2 3 4; do
    "$program" status --data-dir "node-$at" --json | head -c 400
    echo
done
kill -INT "${pids[@]}"
wait "${pids[@]}" || true
cat node-*.err | sort | uniq -c | sort -rn | head -20
