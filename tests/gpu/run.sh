#!/bin/sh
# Check a machine's GPU with everything there is for it, and time it: kernels
# against their oracles, goldens, exactness over random schedules, steps of real
# shapes beside their bounds. Prints tables; exits with 1 if a check failed.
#
# usage: run.sh [BUILD [PART...]]
# BUILD is a build folder with gpu_model, libgodwit_cuda.so and cuda/*.o; it is
# made by cmake where it is missing. A built folder needs the driver alone. The
# kernels' own checks, check_NAME there, are compiled here where they are
# missing, if nvcc is there.
# PART: kernels, ops, exact, formats, goldens, memory, time, swap; all of them if none is named.
# N is the number of random schedules for each model (100), SECONDS_MAX the
# limit for each program (300), CONFIGS the shapes that are timed.
set -eu
cd "$(dirname "$0")/../.."
build=${1:-build}
[ $# -eq 0 ] || shift
parts=${*:-kernels ops exact formats goldens memory time swap}
n=${N:-100}
limit=${SECONDS_MAX:-300}
configs=${CONFIGS:-assets/configs/qwen3_5-9b.json
    assets/configs/qwen3_5-35b-a3b-cut.json}
failed=

say() {
    printf '\n== %s\n' "$*"
}

try() { # COMMAND...
    timeout "$limit" "$@" || failed="$failed
  $*"
}

if [ ! -x "$build/gpu_model" ] || [ ! -e "$build/libgodwit_cuda.so" ]; then
    cmake --preset release -B "$build" -DGODWIT_CUDA=ON >/dev/null
    cmake --build "$build" --target gpu_model godwit_cuda
fi
gpu_model=$build/gpu_model
cuda=cuda:$(realpath "$build")/libgodwit_cuda.so
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)

# The kernels' checks bring a device of their own, and want a few of the others.
compile() { # FILE PROGRAM
    rm -f "$build/cuda/check.a"
    for object in "$build"/cuda/*.o; do
        case $object in
        */device.o | */step.o) ;;
        *) ar qc "$build/cuda/check.a" "$object" ;;
        esac
    done
    "$nvcc" -std=c++17 -O3 -fmad=false -I. \
        -gencode=arch=compute_90a,code=sm_90a -o "$2" "$1" \
        "$build/cuda/check.a" "$build/libkernels.a" "$build/libbase.a" \
        -ljansson -lxxhash -ldl
}

# Every kernel against its oracle.
kernels() {
    for file in tests/gpu/check_*.cu; do
        program=$build/$(basename "$file" .cu)
        say "$file"
        if [ ! -x "$program" ] && [ ! -x "$nvcc" ]; then
            echo "no nvcc here, and no $program"
        elif [ -x "$program" ] || compile "$file" "$program"; then
            try "$program" check
        else
            failed="$failed
  compiling $file"
        fi
    done
}

ops() {
    say "small operators"
    try "$gpu_model" ops "$cuda"
}

exact() {
    say "the same bits over $n random schedules for each model"
    for model in tests/golden/*/config.json assets/models/*/config.json; do
        [ -e "$model" ] || continue
        try "$gpu_model" exact "$cuda" "$(dirname "$model")" "$n" 1
    done
}

formats() {
    say "formats of eight bits"
    try "$gpu_model" exact "$cuda" tests/golden/qwen3_5_text "$n" 1 f8 int8
    try "$gpu_model" exact "$cuda" assets/models/godwit-tiny 10 1 f8 int8
    for format in "--weight-format f8" "--kv-format int8"; do
        # shellcheck disable=SC2086 # two words
        try "$gpu_model" check --model assets/models/godwit-tiny \
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
        try "$gpu_model" check --model "$model" --golden "tests/golden/$name" \
            --backend "$cuda"
    done
}

memory() {
    say "memory errors"
    sanitizer=$(command -v compute-sanitizer || true)
    if [ -n "$sanitizer" ]; then
        try "$sanitizer" --error-exitcode 1 "$gpu_model" exact "$cuda" \
            tests/golden/qwen3_5_moe_text 1 1
    else
        echo "no compute-sanitizer here"
    fi
}

time_steps() {
    say "steps beside their bounds"
    for config in $configs; do
        try "$gpu_model" time "$cuda" "$config"
    done
    try "$gpu_model" time "$cuda" assets/configs/qwen3_5-9b.json all f8 int8
}

# A session of 32,768 tokens leaves for pinned memory and comes back: bandwidth,
# and the steps of eight others with and without it.
swap() {
    say "sessions carried between device and host"
    for config in $configs; do
        try "$gpu_model" time "$cuda" "$config" swap
    done
}

for part in $parts; do
    case $part in
    kernels | ops | exact | formats | goldens | memory | swap) "$part" ;;
    time) time_steps ;;
    *)
        echo "run.sh: no part '$part'" >&2
        exit 2
        ;;
    esac
done

if [ -n "$failed" ]; then
    printf '\nFAILED:%s\n' "$failed"
    exit 1
fi
printf '\nall checks held\n'
