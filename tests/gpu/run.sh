#!/bin/sh
# Check a machine's GPU with everything there is for it, and time it: kernels
# against their oracles, goldens, exactness over random schedules, whole nodes,
# steps of real shapes beside their bounds. A table of all that was tried comes
# last.
#
# usage: run.sh [BUILD [PART...]]
# BUILD is a build folder; what is missing in it is made by cmake where that is
# there. A folder of pack.sh needs the driver alone, and python3 for `node`.
#
# PART, all of them in this order if none is named:
#   kernels   every kernel against its oracle                 check_NAME
#   ops       small operators against ref                     gpu_model ops
#   exact     the same bits over random schedules             gpu_model exact
#   formats   the same and goldens in formats of eight bits
#   goldens   logits, greedy texts, needles                   gpu_model check
#   node      godwitd between CPU and GPU, with too little    tests/gpu/node.py
#             memory, with a GPU that fails
#   memory    compute-sanitizer: accesses (memcheck)
#   race      compute-sanitizer: shared memory (racecheck)
#   time      steps beside their bounds                       gpu_model time
#   swap      sessions carried between device and host
#
# N (1000) random schedules in all over the models of `exact`; SECONDS_MAX (60)
# for each program, or SECONDS_TIME (240) for those that load large models to
# time them, PART_MAX (600) for each part; CONFIGS are the shapes that are timed.
# Where its time ends, `exact` says how far it came.
#
# Exit: 0 all held, 1 something did not (or not in time), 2 no such part, 3 all
# held that could be tried, but not all could. What each proves is in
# docs/PERFORMANCE.md, "On a GPU: what proves what".
set -u
all='kernels ops exact formats goldens node memory race time swap'
build=${1:-build}
[ $# -eq 0 ] || shift
parts=${*:-$all}
for part in $parts; do
    case " $all " in
    *" $part "*) ;;
    *)
        echo "run.sh: no part '$part', there are: $all" >&2
        exit 2
        ;;
    esac
done
cd "$(dirname "$0")/../.." || exit 2
n_all=${N:-1000}
configs=${CONFIGS:-assets/configs/qwen3_5-9b.json
    assets/configs/qwen3_5-35b-a3b-cut.json}
gpu_model=$build/gpu_model
cuda=cuda:$(realpath -m "$build")/libgodwit_cuda.so
scratch=$(mktemp -d) || exit 2
trap 'rm -rf "$scratch"' EXIT
: >"$scratch/table"
n_failed=0
n_untried=0
n_held=0

say() {
    printf '\n== %s\n' "$*"
}

row() { # SECONDS RESULT WHAT
    printf '%-8s %6s s  %-10s %s\n' "$part" "$1" "$2" "$3" >>"$scratch/table"
}

untried() { # WHAT WHY
    echo "$2"
    row - 'not tried' "$1: $2"
    n_untried=$((n_untried + 1))
}

seconds_left() {
    echo $((part_end - $(date +%s)))
}

# Within what is left of the part's time; what it said last is kept in the table.
try() { # NAME COMMAND...
    name=$1
    shift
    start=$(date +%s)
    left=$(seconds_left)
    [ "$left" -lt "$limit" ] || left=$limit
    if [ "$left" -le 0 ]; then
        code=124
        : >"$scratch/said"
    else
        { timeout -k 5 "$left" "$@" 2>&1; echo $? >"$scratch/code"; } |
            tee "$scratch/said"
        code=$(cat "$scratch/code")
    fi
    case $code in
    0) result=held n_held=$((n_held + 1)) ;;
    124 | 137) result='NO TIME' n_failed=$((n_failed + 1)) ;;
    *) result="FAILED $code" n_failed=$((n_failed + 1)) ;;
    esac
    row $(($(date +%s) - start)) "$result" \
        "$name: $(grep . "$scratch/said" | tail -n 1 | cut -c -100)"
}

# A program of the build; false where it is not and cannot be made.
has() { # PROGRAM TARGET
    if [ ! -x "$build/$1" ] && [ -e "$build/CMakeCache.txt" ]; then
        cmake --build "$build" --target "$2" >"$scratch/said" 2>&1 ||
            tail -n 5 "$scratch/said"
    fi
    [ -x "$build/$1" ] && return
    untried "$1" "there is no $build/$1, and nothing to make it with"
    return 1
}

kernels() {
    for file in tests/gpu/check_*.cu; do
        program=$(basename "$file" .cu)
        say "$program"
        ! has "$program" gpu_checks || try "$program" "$build/$program" check
    done
}

ops() {
    say "small operators"
    try ops "$gpu_model" ops "$cuda"
}

models() {
    for model in tests/golden/*/config.json assets/models/godwit-tiny/config.json; do
        [ ! -e "$model" ] || dirname "$model"
    done
}

exact() {
    n_each=$(((n_all + $(models | wc -l) - 1) / $(models | wc -l)))
    say "the same bits over $n_each random schedules for each model"
    for model in $(models); do
        try "$(basename "$model")" "$gpu_model" exact "$cuda" "$model" \
            --schedules "$n_each" --seconds $((limit * 3 / 4))
        sed -n 's/.*: \([0-9]*\) of [0-9]* schedules.*/\1/p' "$scratch/said" \
            >>"$scratch/schedules"
    done
    row - '' "$(awk '{ n += $1 } END { print n + 0 }' "$scratch/schedules" \
        2>/dev/null) schedules in all, $n_all asked for"
}

formats() {
    say "formats of eight bits"
    for model in tests/golden/qwen3_5_text assets/models/godwit-tiny; do
        try "$(basename "$model")" "$gpu_model" exact "$cuda" "$model" \
            --schedules 50 --seconds $((limit / 2)) --weights f8 --kv int8
    done
    for format in '--weight-format f8' '--kv-format int8'; do
        # shellcheck disable=SC2086 # two words
        try "$format" "$gpu_model" check --model assets/models/godwit-tiny \
            --golden tests/golden/godwit-tiny --backend "$cuda" $format
    done
}

goldens() {
    say "goldens"
    for golden in tests/golden/*/golden.safetensors; do
        name=$(basename "$(dirname "$golden")")
        model=tests/golden/$name
        [ -e "$model/config.json" ] || model=assets/models/$name
        [ -e "$model/config.json" ] || continue
        echo "$name:"
        try "$name" "$gpu_model" check --model "$model" \
            --golden "tests/golden/$name" --backend "$cuda"
    done
}

node() {
    say "whole nodes"
    for program in godwitd godwitctl libgodwit_faulty.so; do
        has "$program" all || return 0
    done
    for what in change tight full lost wild; do
        try "$what" python3 -B tests/gpu/node.py "$build" "$what"
    done
}

# Small shapes: a checked access takes a hundred times as long.
sanitize() { # TOOL
    sanitizer=$(command -v compute-sanitizer ||
        command -v /usr/local/cuda/bin/compute-sanitizer || true)
    if [ -z "$sanitizer" ]; then
        untried "$1" "there is no compute-sanitizer here"
        return
    fi
    for words in 'check_linear small' 'check_attend tiny 64' \
        'check_attend tiny 128' 'check_attend tiny 256' 'check_delta check 3' \
        'check_experts small'; do
        program=${words%% *}
        # shellcheck disable=SC2086 # words
        ! has "$program" gpu_checks || try "$words" "$sanitizer" --tool "$1" \
            --error-exitcode 1 "$build/"$words
    done
}

memory() {
    say "memory accesses"
    sanitize memcheck
    [ -z "$sanitizer" ] || try 'one schedule' "$sanitizer" --error-exitcode 1 \
        "$gpu_model" exact "$cuda" tests/golden/qwen3_5_moe_text --schedules 1
}

race() {
    say "hazards in shared memory"
    sanitize racecheck
}

time_steps() {
    say "steps beside their bounds"
    for config in $configs; do
        try "$(basename "$config")" "$gpu_model" time "$cuda" "$config"
    done
    try 'in f8 and int8' "$gpu_model" time "$cuda" \
        assets/configs/qwen3_5-9b.json all f8 int8
}

# A session of 32,768 tokens leaves for pinned memory and comes back: bandwidth,
# and the steps of eight others with and without it.
swap() {
    say "sessions carried between device and host"
    for config in $configs; do
        try "$(basename "$config")" "$gpu_model" time "$cuda" "$config" swap
    done
}

if [ ! -x "$gpu_model" ] || [ ! -e "$build/libgodwit_cuda.so" ]; then
    cmake --preset release -B "$build" -DGODWIT_CUDA=ON >/dev/null &&
        cmake --build "$build" || exit 1
fi
for part in $parts; do
    part_end=$(($(date +%s) + ${PART_MAX:-600}))
    limit=${SECONDS_MAX:-60}
    case $part in
    time | swap) limit=${SECONDS_TIME:-240} ;;
    esac
    case $part in
    time) time_steps ;; # a word of the shell's
    *) "$part" ;;
    esac
done

printf '\n%-8s %8s  %-10s %s\n' part took result what
cat "$scratch/table"
printf '%d held, %d did not, %d could not be tried\n' "$n_held" "$n_failed" \
    "$n_untried"
[ "$n_failed" -eq 0 ] || exit 1
[ "$n_untried" -eq 0 ] || exit 3
