#!/bin/sh
# All tests, on three builds: memory errors (ASan and UBSan), races (TSan), and
# last the release build with everything. Ends at the first stage that fails;
# the last lines are ctest's summary.
#
# usage: test.sh
# GODWIT_BUILD names the release build directory, the others are named after it;
# GODWIT_JOBS is the number of tests and compilers that run at a time.
set -eu
cd "$(dirname "$0")/.."

jobs=${GODWIT_JOBS:-$(nproc)}
dir=${GODWIT_BUILD:-build}
# For tests that set nothing of their own (tests/tests.cmake does for its own).
export ASAN_OPTIONS=detect_leaks=1
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1

stage() { # NAME COMMAND...
    name=$1
    shift
    start=$(date +%s)
    echo "test: stage $name"
    "$@" || {
        echo "test: FAILED in stage: $name" >&2
        exit 1
    }
    echo "test: $name: ok ($(($(date +%s) - start)) s)" >&2
}

# Configure and build quietly; the output is shown when it fails.
build() { # PRESET DIRECTORY [TARGET]
    mkdir -p "$2"
    {
        cmake --preset "$1" -B "$2" &&
            cmake --build "$2" -j "$jobs" --target "${3:-all}"
    } >"$2/build.log" 2>&1 || {
        tail -n 60 "$2/build.log" >&2
        return 1
    }
}

check() { # DIRECTORY CTEST-ARGUMENT...
    directory=$1
    shift
    ctest --test-dir "$directory" --output-on-failure --no-tests=error \
        -j "$jobs" "$@"
}

stage asan-build build asan "$dir-asan" units
stage asan-tests check "$dir-asan" -L 'unit|fuzz' -LE long
stage tsan-build build tsan "$dir-tsan" races
stage tsan-tests check "$dir-tsan" -L race
stage release-build build release "$dir"
echo "test: stage release-tests"
check "$dir" || {
    echo "test: FAILED in stage: release-tests" >&2
    exit 1
}
