#!/bin/sh
# Make the kernels, their checks and their times with nothing but the CUDA
# toolkit and a C compiler: no CMake, no library. What the node links is not
# needed; whole models (gpu_model) are not made.
#
# usage: build.sh FOLDER      then: run.sh FOLDER [kernels ops rates torch ...]
# NVCC, CC and JOBS (all cores) are the compilers and how many run at once.
set -eu
[ $# -eq 1 ] || {
    echo 'usage: build.sh FOLDER' >&2
    exit 2
}
mkdir -p "$1"
to=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
n_job=${JOBS:-$(nproc)}
commands=$to/commands
mkdir -p "$to/object"

# Which kernels are of one way alone, and for which GPUs the ways are: as CMake
# has it.
set_of() { # NAME, in layer.cmake
    tr '\n' ' ' <kernels/layer.cmake | sed "s/.* set($1 \\([^)]*\\)).*/\\1/"
}
sm90=$(set_of SM90)
sm80=$(set_of SM80)
compile="$nvcc -std=c++17 -O3 -fmad=false -lineinfo"
compile="$compile -Xcompiler=-fPIC,-fvisibility=hidden -I$PWD"

all_at_once() { # commands, a line each
    xargs -P "$n_job" -I{} sh -c '{}' <"$commands"
}

for file in kernels/cuda/*.cu; do
    stem=$(basename "$file" .cu)
    case " $(set_of SM90_ALONE) / $(set_of SM80_ALONE) " in
    *" $stem "*/*) ways=$sm90 ;;
    */*" $stem "*) ways=$sm80 ;;
    *) ways="$sm90 $sm80" ;;
    esac
    echo "$compile $ways -c $file -o $to/object/$stem.o"
done >"$commands"
for file in base/*.c kernels/*.c kernels/ref/*.c kernels/apart/*.c \
    tests/gpu/gpu_ops.c; do
    case $file in
    base/digest.c | base/json.c | base/settings.c) continue ;; # need libraries
    esac
    echo "${CC:-cc} -std=c11 -D_GNU_SOURCE -O2 -ffp-contract=off" \
        "-fno-math-errno -I. -c $file -o $to/object/$(echo "$file" | tr / _).o"
done >>"$commands"
all_at_once

cd "$to/object"
rm -f ../host.a ../check.a
ar qc ../host.a base_*.o kernels_*.o
# Checks bring a device of their own.
find . -name '*.o' ! -name '*.c.o' ! -name device.o ! -name step.o \
    -exec ar qc ../check.a {} +
find . -name '*.o' ! -name '*.c.o' \
    -exec "$nvcc" -shared -Xlinker=-z,defs -o ../libgodwit_cuda.so {} +
"${CC:-cc}" -o ../gpu_ops tests_gpu_gpu_ops.c.o ../host.a -lm -ldl -lpthread
cd - >/dev/null

for file in tests/gpu/check_*.cu tests/gpu/time_*.cu; do
    stem=$(basename "$file" .cu)
    ways="$sm90 $sm80"
    [ "$stem" != check_mma ] || ways=$sm90
    echo "$compile $ways -o $to/$stem $file $to/check.a $to/host.a -ldl"
done >"$commands"
echo "$compile $sm90 $sm80 -shared -Xlinker=-z,defs" \
    "-o $to/libgodwit_beside.so tests/gpu/beside.cu $to/check.a" >>"$commands"
all_at_once
