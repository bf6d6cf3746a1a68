#!/bin/sh
# Overload a node of its own: measure what it can take, send four times that for
# a minute, and judge. A third of the requests may be shed; each has a deadline.
# Every reply that came whole is asked for again on the idle node afterwards and
# must have the same tokens. Prints a table of verdicts; exits 1 if one is bad.
#
# usage: overload.sh [SECONDS]        60 if not given
# GODWIT_BUILD        release build directory
# GODWIT_OVERLOAD_OUT where the rows and the node's log go; a temporary
#                     directory if not given
set -eu
cd "$(dirname "$0")/.."

seconds=${1:-60}
build=${GODWIT_BUILD:-build}
out=${GODWIT_OVERLOAD_OUT:-$(mktemp -d)}
mkdir -p "$out"
mix="--prompt-tokens 32-1024 --reply-tokens 16-64 --tenants 4" # words
factor=4
deadline_ms=5000
rss_slack=64 # MiB that a minute of overload may add to what a full node has

node='' sampler=''
trap '[ -z "$sampler" ] || kill "$sampler" 2>/dev/null || true
      [ -z "$node" ] || kill "$node" 2>/dev/null || true' EXIT

rm -rf "$out/data"
"$build/godwitd" serve --model assets/models/godwit-tiny --data "$out/data" \
    --listen 127.0.0.1:0 --max-running 16 --max-queue 64 \
    --session-memory 256 >"$out/node.log" 2>&1 &
node=$!
port=
for _ in $(seq 300); do
    port=$(sed -n 's/.* serving .* on port \([0-9]*\).*/\1/p' "$out/node.log")
    [ -z "$port" ] || break
    kill -0 "$node" || { cat "$out/node.log" >&2; exit 1; }
    sleep 0.1
done
[ -n "$port" ] || { echo "overload.sh: the node does not serve" >&2; exit 1; }

bench() { # OPTION...
    "$build/godwitctl" --endpoint "127.0.0.1:$port" bench --output tsv "$@"
}

column() { # FILE PRIORITY NAME
    awk -F '\t' -v priority="$2" -v name="$3" '
        NR == 1 { for (i = 1; i <= NF; i++) if ($i == name) at = i }
        $1 == priority { print $at; exit }' "$1"
}

rss() { # KiB
    awk '/^VmRSS:/ { print $2 }' "/proc/$node/status"
}

# As many at a time as there are places: what the node can do at most, in the
# best of three runs, for a disturbed one would make the load too light. Other
# seeds, so that nothing of them is found again later.
capacity=0
for seed in 9000001 9000002 9000003; do
    bench $mix --requests 150 --at-once 16 --seed $seed >"$out/capacity.tsv"
    capacity=$(awk -v a="$capacity" -v b="$(column "$out/capacity.tsv" all ok_per_s)" \
        'BEGIN { print (a > b ? a : b) }')
done
rate=$(awk -v c="$capacity" -v f="$factor" 'BEGIN { print c * f }')
requests=$(awk -v r="$rate" -v s="$seconds" 'BEGIN { printf "%d", r * s + 1 }')
echo "capacity $capacity requests/s; sending $rate/s for $seconds s" >&2

rss_before=$(rss)
while sleep 0.5; do
    echo "$(date +%s.%N) $(rss) $(cut -d" " -f14,15 "/proc/$node/stat")"
done >"$out/rss.txt" 2>/dev/null &
sampler=$!
status=0
bench $mix --requests "$requests" --rate "$rate" --seconds "$seconds" \
    --deadline-ms "$deadline_ms" --sheddable 0.333 --verify \
    --replies "$out/replies.tsv" >"$out/overload.tsv" || status=$?
kill "$sampler" && sampler=
# Of the second half: by then the queue, the places and the caches are full.
rss_most=$(awk 'BEGIN { m = 0 } $2 > m { m = $2 } END { print m }' "$out/rss.txt")
rss_half=$(awk '{ v[NR] = $2 } END { m = 0
    for (i = 1; i <= NR / 4; i++) if (v[i] > m) m = v[i]; print m }' "$out/rss.txt")
is_alive=no
! kill -0 "$node" 2>/dev/null || is_alive=yes

all=$out/overload.tsv
sent=$(column "$all" all sent)
refused=$(column "$all" all refused)
share() { # PRIORITY: of its requests, refused
    awk -v r="$(column "$all" "$1" refused)" -v s="$(column "$all" "$1" sent)" \
        'BEGIN { printf "%.3f", s ? r / s : 0 }'
}
shed_share=$(share -1)
kept_share=$(share 0)

bad=0
verdict() { # CLAIM FIGURES CONDITION
    if awk "BEGIN { exit !($3) }"; then word=yes; else word=NO bad=1; fi
    printf '| %s | %s | %s |\n' "$1" "$2" "$word"
}
printf '| claim | figures | holds |\n|---|---|---|\n'
verdict "load is ${factor}x the capacity" \
    "$sent requests in $seconds s; $capacity/s alone; $(column "$all" all skipped) skipped" \
    "$(column "$all" all skipped) == 0"
verdict 'no crash' "alive: $is_alive; exit of bench: $status" \
    "\"$is_alive\" == \"yes\""
verdict 'nothing failed otherwise' "$(column "$all" all failed) failed" \
    "$(column "$all" all failed) == 0"
verdict 'memory is bounded' \
    "RSS $((rss_before / 1024)) MiB before, $((rss_half / 1024)) in the first quarter, $((rss_most / 1024)) at most" \
    "$rss_most - $rss_half < $rss_slack * 1024"
verdict 'what can be shed is refused first' \
    "$shed_share of priority -1, $kept_share of priority 0" \
    "$shed_share > $kept_share"
verdict 'every refusal says when to come back' \
    "$(column "$all" all retry_info) of $refused" \
    "$(column "$all" all retry_info) == $refused && $refused > 0"
verdict 'who is accepted meets the deadline' \
    "$(column "$all" all late) late of $(column "$all" all ok) + $(column "$all" all late); total p99 $(column "$all" all total_p99_ms) ms of $deadline_ms" \
    "$(column "$all" all late) == 0"
verdict 'replies equal those of the idle node' \
    "$(column "$all" all differing) of $(column "$all" all verified) differ" \
    "$(column "$all" all differing) == 0 && $(column "$all" all verified) == $(column "$all" all ok)"
verdict 'work goes on at the rate of capacity' \
    "$(column "$all" all ok_per_s)/s of $capacity/s" \
    "$(column "$all" all ok_per_s) > 0.5 * $capacity"
echo "rows: $out" >&2
exit $bad
