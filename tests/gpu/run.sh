#!/bin/sh
# Check a machine's GPU with everything there is for it, and time it: kernels
# against their oracles, goldens, exactness over random schedules, whole nodes,
# steps of real shapes beside their bounds. A table of all that was tried comes
# last.
#
# usage: run.sh [BUILD [PART...]]
# BUILD is a build folder; what is missing in it is made by cmake where that is
# there. A folder of pack.sh needs the driver alone, and python3 for `node`. One
# that is not there yet is made by cmake, as much of it as this machine has
# libraries for, or by build.sh, which makes what needs no models: kernels, ops,
# rates, torch.
#
# PART, all of them in this order if none is named, longest first:
#   race      compute-sanitizer: shared memory (racecheck)
#   memory    compute-sanitizer: accesses (memcheck)
#   node      godwitd between CPU and GPU, with too little    tests/gpu/node.py
#             memory, with a GPU that fails
#   exact     the same bits over random schedules             gpu_model exact
#   policies  the same under memory policies, those that      gpu_model exact
#             leave nothing out are full; needles that full   gpu_model eval
#             does not find
#   ways      the same bits in the ways of all GPUs           gpu_model exact
#   formats   the same and goldens in formats of eight bits
#   kernels   every kernel against its oracle                 check_NAME
#   ops       small operators against ref                     gpu_ops
#   goldens   logits, greedy texts, needles                   gpu_model check
#   rates     every kernel beside its bound, in one table     check_NAME time,
#                                                             time_NAME
#   torch     attention and products beside PyTorch's         time_torch.py
#   time      steps beside their bounds                       gpu_model time
#   swap      sessions carried between device and host
#
# What measures no time runs JOBS (4) at a time (more gain little: the GPU is
# theirs in turn), but for a full device, which leaves no memory to others.
#
# N (1000) random schedules in all over the models of `exact`; SECONDS_MAX (60)
# for each program, SECONDS_LONG (240) for those that load large models or check
# each access, SECONDS_ALL (900) for everything; CONFIGS are the shapes that are
# timed. Where its time ends, `exact` says how far it came.
#
# Exit: 0 all held, 1 something did not (or not in time), 2 no such part, 3 all
# held that could be tried, but not all could. What each proves is in
# docs/performance/gpu-proofs.md.
set -u
all='race memory node exact policies ways formats kernels ops goldens rates'
all="$all torch time swap"
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
end=$(($(date +%s) + ${SECONDS_ALL:-900}))
gpu_model=$build/gpu_model
cuda=cuda:$(realpath -m "$build")/libgodwit_cuda.so
sanitizer=$(command -v compute-sanitizer ||
    command -v /usr/local/cuda/bin/compute-sanitizer || true)
scratch=$(mktemp -d) || exit 2
trap 'rm -rf "$scratch"' EXIT
mkfifo "$scratch/free" || exit 2 # a line for each program that may start
exec 3<>"$scratch/free"
n_job=${JOBS:-4}
for _ in $(seq "$n_job"); do echo; done >&3
n_row=0
is_alone=false

# A place in the table, in the order in which programs start.
next_row() {
    n_row=$((n_row + 1))
    at=$scratch/$(printf '%03d' "$n_row")
}

row() { # SECONDS RESULT WHAT
    printf '%-8s %6s s  %-10s %s\n' "$part" "$1" "$2" "$3" | tee "$at.row"
}

untried() { # WHAT WHY
    next_row
    row - 'not tried' "$1: $2"
}

run() { # NAME COMMAND...: within what is left of all time
    name=$1
    shift
    start=$(date +%s)
    left=$((end - start))
    [ "$left" -lt "$limit" ] || left=$limit
    : >"$at.said"
    code=124
    if [ "$left" -gt 0 ]; then
        timeout -k 5 "$left" "$@" >"$at.said" 2>&1
        code=$?
    fi
    case $code in
    0) result=held ;;
    3) result='not tried' ;;
    124 | 137) result='NO TIME' ;;
    *) result="FAILED $code" ;;
    esac
    row $(($(date +%s) - start)) "$result" \
        "$name: $(grep . "$at.said" | tail -n 1 | cut -c -160)"
}

# What a program said last is kept in the table; all that it said is shown if it
# did not hold or was alone.
try() { # NAME COMMAND...
    next_row
    if $is_alone; then
        run "$@"
        return
    fi
    read -r _ <&3
    {
        run "$@"
        echo >&3
    } &
}

# A program of the build; false where it is not and cannot be made.
has() { # PROGRAM TARGET
    if [ ! -x "$build/$1" ] && [ -e "$build/CMakeCache.txt" ]; then
        cmake --build "$build" --target "$2" >"$scratch/made" 2>&1 ||
            tail -n 5 "$scratch/made"
    fi
    [ -x "$build/$1" ] && return
    untried "$1" "there is no $build/$1, and nothing to make it with"
    return 1
}

kernels() {
    for file in tests/gpu/check_*.cu; do
        program=$(basename "$file" .cu)
        ! has "$program" gpu_checks || try "$program" "$build/$program" check
    done
}

ops() {
    ! has gpu_ops all || try ops "$build/gpu_ops" "$cuda"
}

models() {
    for model in tests/golden/*/config.json assets/models/godwit-tiny/config.json; do
        [ ! -e "$model" ] || dirname "$model"
    done
}

exact() {
    n_each=$(((n_all + $(models | wc -l) - 1) / $(models | wc -l)))
    first=0 # each model has schedules of its own
    for model in $(models); do
        try "$(basename "$model")" "$gpu_model" exact "$cuda" "$model" \
            --schedules "$n_each" --seconds $((limit * 3 / 4)) --first "$first"
        first=$((first + n_each))
    done
}

n_schedule() {
    sed -n 's/^exact .*: \([0-9]*\) of [0-9]* schedules.*/\1/p' \
        "$scratch"/*.row | awk '{ n += $1 } END { print n + 0 }'
}

policies() {
    n_each=$(((n_all + $(models | wc -l) - 1) / $(models | wc -l)))
    first=0
    for model in $(models); do
        try "$(basename "$model")" "$gpu_model" exact "$cuda" "$model" \
            --schedules "$n_each" --seconds $((limit * 3 / 4)) \
            --first "$first" --policy any
        first=$((first + n_each))
    done
    try needles tests/gpu/all_found.sh "$gpu_model" --backend "$cuda" \
        --model assets/models/godwit-tiny --policy infllm --samples 5 \
        --tasks needle,needle_multikey --lengths 131072
}

# Beside the library that goes the way of other GPUs than Hopper.
ways() {
    has libgodwit_cuda_sm80.so godwit_cuda_sm80 || return 0
    for model in $(models); do
        try "$(basename "$model")" tests/gpu/same_bits.sh "$gpu_model" \
            "$model" "$cuda" "${cuda%.so}_sm80.so"
    done
}

formats() {
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
    for golden in tests/golden/*/golden.safetensors; do
        name=$(basename "$(dirname "$golden")")
        model=tests/golden/$name
        [ -e "$model/config.json" ] || model=assets/models/$name
        [ -e "$model/config.json" ] || continue
        try "$name" "$gpu_model" check --model "$model" \
            --golden "tests/golden/$name" --backend "$cuda"
    done
}

serves=false

node() {
    for program in godwitd godwitctl libgodwit_faulty.so; do
        has "$program" all || return 0
    done
    serves=true
    for what in change tight policy lost excerpt capped wild; do
        try "$what" python3 -B tests/gpu/node.py "$build" "$what"
    done
}

node_alone() {
    $serves || return 0
    for what in full scratch; do
        try "$what" python3 -B tests/gpu/node.py "$build" "$what"
    done
}

# Small shapes: a checked access takes a thousand times as long.
sanitize() { # WHAT COMMAND...: the command has a check behind it
    what=$1
    shift
    if [ -z "$sanitizer" ]; then
        untried "$what" "there is no compute-sanitizer here"
        return 1
    fi
    for words in 'check_attend least 64' 'check_attend least 128' \
        'check_attend least 256' 'check_attend_places least 64' \
        'check_attend_places least 96' 'check_attend_places least 128' \
        'check_attend_places least 256' 'check_delta check 5' \
        'check_linear small' 'check_experts small' 'check_mass small' \
        'check_view least'; do
        program=${words%% *}
        # shellcheck disable=SC2086 # words
        ! has "$program" gpu_checks || try "$words" "$@" "$build/"$words
    done
}

# Whole models under policies: prompts with so many lists that they go a way of
# their own, look-ups by keys, by bounds and of all keys; delta and experts.
schedules() { # COMMAND...
    has gpu_model all || return 0
    while read -r model policy; do
        try "$model under ${policy%%:*}" "$@" "$gpu_model" exact "$cuda" \
            "tests/golden/$model" --schedules 1 --policy "$policy" </dev/null
    done <<'END'
llama infllm:sink=0:window=64:pick=64:step=1:keys=rank:index=keys
llama quest:sink=64:window=0:pick=64:step=2:keys=far
llama snapkv:sink=0:window=0:pick=64:end=130
qwen3_5_moe_text any
END
}

memory() {
    sanitize memcheck "$sanitizer" --error-exitcode 1 || return 0
    schedules "$sanitizer" --error-exitcode 1
}

# Products take most of the time, and have checks of their own.
race() {
    sanitize racecheck python3 -B tests/gpu/race.py || return 0
    schedules python3 -B tests/gpu/race.py --without product
}

rates() {
    for words in 'check_attend time' 'check_attend_places time' \
        'check_view time' 'check_mass time' 'check_experts time' time_delta \
        time_linear; do
        program=${words%% *}
        # shellcheck disable=SC2086 # words
        ! has "$program" gpu_checks || try "$program" "$build/"$words
        grep -s ' |.*|.* %$' "$at.said" >>"$scratch/rates"
    done
}

torch() {
    ! has libgodwit_beside.so gpu_checks ||
        try 'beside PyTorch' python3 -B tests/gpu/time_torch.py "$build"
}

time_steps() {
    for config in $configs; do
        try "$(basename "$config")" "$gpu_model" time "$cuda" "$config"
    done
    try 'in f8 and int8' "$gpu_model" time "$cuda" \
        assets/configs/qwen3_5-9b.json all f8 int8
}

# A session of 32,768 tokens leaves for pinned memory and comes back: bandwidth,
# and the steps of eight others with and without it.
swap() {
    for config in $configs; do
        try "$(basename "$config")" "$gpu_model" time "$cuda" "$config" swap
    done
}

configure() { # OPTIONS...
    cmake --preset release -B "$build" -DGODWIT_CUDA=ON "$@" \
        >"$scratch/made" 2>&1
}

if [ ! -e "$build/libgodwit_cuda.so" ]; then
    if configure || configure '-DGODWIT_LAYERS=base;kernels;model'; then
        cmake --build "$build" || exit 1
    else
        tail -n 5 "$scratch/made"
        rm -rf "$build/CMakeCache.txt" "$build/CMakeFiles"
        tests/gpu/build.sh "$build" || exit 1
    fi
fi

try_part() {
    case $part in
    exact | policies | ways | formats | goldens | time | swap)
        has gpu_model all || return 0
        ;;
    esac
    limit=${SECONDS_MAX:-60}
    case $part in
    race | memory | policies | torch | time | swap)
        limit=${SECONDS_LONG:-240}
        ;;
    esac
    case $part in
    time) time_steps ;; # a word of the shell's
    *) "$part" ;;
    esac
}

for part in $parts; do
    case $part in
    rates | torch | time | swap) ;;
    *) try_part ;;
    esac
done
wait
is_alone=true
for part in $parts; do
    case $part in
    node) node_alone ;;
    rates | torch | time | swap) try_part ;;
    esac
done

for said in "$scratch"/*.said; do
    [ -e "$said" ] || continue
    grep -Eq '^(torch|time|swap|[a-z]+ .* s  (FAILED|NO TIME))' \
        "${said%said}row" ||
        continue
    printf '\n== %s\n' "$(cut -d: -f1 "${said%said}row")"
    tail -n 80 "$said"
done
if [ -e "$scratch/rates" ]; then
    printf '\n%-78s | %9s | %9s | %s\n' rates 'bound, us' us share
    cat "$scratch/rates"
fi
printf '\n%-8s %8s  %-10s %s\n' part took result what
cat "$scratch"/*.row
case " $parts " in
*' exact '*) echo "exact: $(n_schedule) schedules in all, $n_all asked for" ;;
esac
awk '{ n[$4]++ } END {
    printf "%d held, %d did not, %d could not be tried\n", n["held"],
        n["FAILED"] + n["NO"], n["not"]
    exit n["FAILED"] + n["NO"] ? 1 : n["not"] ? 3 : 0
}' "$scratch"/*.row
