#!/bin/sh
# Install what a Debian 12 machine lacks for building and testing, with apt-get.
# Asks for nothing, says what it installs, and leaves a complete machine alone.
#
# usage: install-deps.sh [--build-only]
set -eu

build="gcc libc6-dev make cmake ninja-build pkg-config
    libgrpc-dev libprotobuf-c-dev protobuf-c-compiler protobuf-compiler
    librocksdb-dev libssl-dev libjansson-dev libxxhash-dev libutf8proc-dev libpcre2-dev"
# The tests' independent client is Python, with the interpreter that sees
# Debian's grpcio: /usr/bin/python3.
check="protobuf-compiler-grpc libcriterion-dev python3 python3-grpcio
    python3-protobuf python3-cryptography clang-format clang-tidy openssl ca-certificates"

case "${1-}" in
--build-only) wanted=$build ;;
'') wanted="$build $check" ;;
*)
    echo "usage: install-deps.sh [--build-only]" >&2
    exit 2
    ;;
esac

if ! command -v dpkg-query >/dev/null 2>&1; then
    echo "install-deps: not a Debian machine; needed are the likes of:" $wanted >&2
    exit 0
fi

missing=
for package in $wanted; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    case $state in
    installed*) ;; # printed once for each architecture
    *) missing="$missing $package" ;;
    esac
done
if [ -z "$missing" ]; then
    echo "install-deps: all packages are there"
    exit 0
fi

if [ "$(id -u)" -eq 0 ]; then
    as_root=
elif command -v sudo >/dev/null 2>&1; then
    as_root=sudo
else
    echo "install-deps: missing packages:$missing" >&2
    echo "install-deps: run this as root, or install sudo" >&2
    exit 1
fi

echo "install-deps: installing$missing"
$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update </dev/null
# shellcheck disable=SC2086 # a list of words
$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 \
    install --no-install-recommends $missing </dev/null
echo "install-deps: done"
