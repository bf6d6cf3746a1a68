#!/bin/sh
# Everything that judges the source without running it: layout, layers, shell
# syntax, clang-tidy. With --fix, lay out the files in place and stop there.
#
# usage: lint.sh [--fix]
# GODWIT_BUILD names the release build directory, GODWIT_JOBS the processes.
set -eu
cd "$(dirname "$0")/.."

build=${GODWIT_BUILD:-build}
jobs=${GODWIT_JOBS:-$(nproc)}
folders="base proto kernels model state scheduler rpc node ops"
failed=

step() { # NAME COMMAND...
    name=$1
    shift
    start=$(date +%s)
    if "$@"; then
        echo "lint: $name: ok ($(($(date +%s) - start)) s)"
    else
        echo "lint: $name: FAILED ($(($(date +%s) - start)) s)" >&2
        failed="$failed $name"
    fi
}

sources() {
    find $folders tests \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' \) \
        ! -name '*.pb-c.[ch]' 2>/dev/null | sort
}

layout() {
    sources | xargs -r -n 20 -P "$jobs" clang-format --dry-run -Werror
}

shell_syntax() {
    bad=0
    for file in $(find $folders tests -name '*.sh' | sort); do
        sh -n "$file" || bad=1
    done
    bash -n .ci/run || bad=1
    return $bad
}

python_syntax() {
    find ops tests -name '*.py' | sort | xargs -r /usr/bin/python3 -c '
import ast, sys
for path in sys.argv[1:]:
    ast.parse(open(path, encoding="utf-8").read(), path)'
}

# Headers generated from proto/ must be there before a file can be parsed.
configure() {
    cmake --preset release -B "$build" >/dev/null || return 1
    if cmake --build "$build" --target help | grep -q '^proto:'; then
        cmake --build "$build" --target proto >"$build/lint-proto.log" || {
            cat "$build/lint-proto.log" >&2
            return 1
        }
    fi
}

# Our files that the build compiles, by way of its compile commands, each once:
# of a file with two, clang-tidy 14 reads both and takes the second's va_list
# for one that was not begun. The commands are gcc's: clang is told to let pass
# what it does not know. By __SCE__ a file that is compiled for an instruction set
# gets clang's intrinsics of that set alone: to take every check through the rest,
# all of AVX-512, was most of the time of a kernel.
tidy() {
    mkdir -p "$build/lint"
    /usr/bin/python3 - "$build" $folders <<'END' >"$build/lint-files" || return 1
import json, os, sys
root, build, folders = os.getcwd(), sys.argv[1], set(sys.argv[2:])
entries = {}
for entry in json.load(open(os.path.join(build, "compile_commands.json"))):
    path = os.path.relpath(os.path.join(entry["directory"], entry["file"]), root)
    if path.split(os.sep)[0] in folders and not path.endswith(".pb-c.c"):
        if " -mavx" in entry["command"]:
            entry["command"] += " -D__SCE__"
        entries.setdefault(path, entry)
with open(os.path.join(build, "lint", "compile_commands.json"), "w") as file:
    json.dump(list(entries.values()), file)
# The longest files first, so that the cores end at about the same time.
print("\n".join(sorted(entries, key=os.path.getsize, reverse=True)))
END
    xargs -r -n 1 -P "$jobs" clang-tidy -p "$build/lint" --quiet \
        --extra-arg=-Wno-unknown-warning-option \
        --extra-arg=-Wno-ignored-optimization-argument \
        --extra-arg=-Wno-unused-command-line-argument \
        <"$build/lint-files" >"$build/lint-tidy.log" 2>"$build/lint-tidy.err" ||
        {
            cat "$build/lint-tidy.log" >&2
            grep -v -e 'warnings generated' -e 'Suppressed ' \
                "$build/lint-tidy.err" >&2
            return 1
        }
}

if [ "${1-}" = --fix ]; then
    sources | xargs -r clang-format -i
    exit 0
elif [ $# -gt 0 ]; then
    echo "usage: lint.sh [--fix]" >&2
    exit 2
fi

step clang-format layout
step layers sh base/layers.sh
step shell shell_syntax
step python python_syntax
step configure configure
case "$failed" in
*configure*) ;;
*) step clang-tidy tidy ;;
esac

if [ -n "$failed" ]; then
    echo "lint: FAILED:$failed" >&2
    exit 1
fi
echo "lint: ok"
