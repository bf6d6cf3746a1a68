#!/bin/sh
# Check a machine's GPU with everything there is for it, and time it: kernels
# against their oracles, goldens, exactness over random schedules, steps of real
# shapes beside their bounds. Prints tables; exits with 1 if a check failed.
#
# usage: run.sh [BUILD]
# BUILD is a build folder with gpu_model, libgodwit_cuda.so and cuda/*.o; it is
# made by cmake where it is missing. A built folder needs the driver alone, but
# for the kernels' own checks, which are compiled here if nvcc is there.
# N is the number of random schedules for each model (100), SECONDS_MAX the
# limit for each program (300).
set -eu
cd "$(dirname "$0")/../.."
build=${1:-build}
n=${N:-100}
limit=${SECONDS_MAX:-300}
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

# Every kernel against its oracle. Their checks bring a device of their own.
kernels() {
    objects=
    for object in "$build"/cuda/*.o; do
        case $object in
        */device.o | */step.o) ;;
        *) objects="$objects $object" ;;
        esac
    done
    for file in tests/gpu/check_*.cu; do
        program=$build/$(basename "$file" .cu)
        say "$file"
        # shellcheck disable=SC2086 # a list of words
        if "$nvcc" -std=c++17 -O3 -fmad=false -I. \
            -gencode=arch=compute_90a,code=sm_90a -o "$program" "$file" \
            $objects "$build/libkernels.a" "$build/libbase.a" -ljansson \
            -lxxhash -ldl; then
            try "$program" check
        else
            failed="$failed
  compiling $file"
        fi
    done
}
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
if [ -x "$nvcc" ]; then
    kernels
fi

say "small operators"
try "$gpu_model" ops cuda

say "the same bits over $n random schedules for each model"
for model in tests/golden/*/config.json assets/models/*/config.json; do
    try "$gpu_model" exact cuda "$(dirname "$model")" "$n" 1
done

say "weights in FP8"
try "$gpu_model" exact cuda tests/golden/qwen3_5_text "$n" 1 f8
try "$gpu_model" check --model assets/models/godwit-tiny \
    --golden tests/golden/godwit-tiny --backend cuda --weight-format f8

say "goldens"
for golden in tests/golden/*/golden.safetensors; do
    name=$(basename "$(dirname "$golden")")
    model=tests/golden/$name
    [ -e "$model/config.json" ] || model=assets/models/$name
    echo "$name:"
    try "$gpu_model" check --model "$model" --golden "tests/golden/$name" \
        --backend cuda
done

say "memory errors"
sanitizer=$(command -v compute-sanitizer || true)
if [ -n "$sanitizer" ]; then
    try "$sanitizer" --error-exitcode 1 "$gpu_model" exact cuda \
        tests/golden/qwen3_5_moe_text 1 1
else
    echo "no compute-sanitizer here"
fi

say "steps beside their bounds"
for config in assets/configs/qwen3_5-9b.json \
    assets/configs/qwen3_5-35b-a3b-cut.json; do
    try "$gpu_model" time cuda "$config"
done
try "$gpu_model" time cuda assets/configs/qwen3_5-9b.json f8

if [ -n "$failed" ]; then
    printf '\nFAILED:%s\n' "$failed"
    exit 1
fi
printf '\nall checks held\n'
