#!/bin/sh
# Put what run.sh needs of a build into a folder that runs where only a driver
# is installed: the programs, and the shared libraries of the node that another
# distribution lacks (not those of C and C++).
#
# usage: pack.sh BUILD FOLDER      then, there: tests/gpu/run.sh FOLDER
set -eu
build=$1
to=$2
cmake --build "$build" --target all gpu_checks godwit_cuda_sm80
mkdir -p "$to/lib"
for program in godwitd godwitctl gpu_model gpu_ops check_attend \
    check_attend_places check_delta check_experts check_linear check_mass \
    check_mma check_view time_delta time_linear; do
    strip -o "$to/$program" "$build/$program"
done
for library in libgodwit_cuda.so libgodwit_cuda_sm80.so libgodwit_faulty.so \
    libgodwit_beside.so; do
    strip -o "$to/$library" "$build/$library"
done
for program in godwitd godwitctl; do
    ldd "$build/$program"
done | awk '$3 ~ /^\// && $1 !~ /^(libc|libm|libpthread|libdl|librt|libstdc\+\+|libgcc_s)\.so/ { print $3 }' |
    sort -u | xargs -I{} cp -L {} "$to/lib"
du -sh "$to"
