#!/bin/sh
# The layering check must pass a good tree and name each kind of wrong include.
# usage: layers_test.sh LAYERS_SH
set -u
check=$1
tree=$(mktemp -d) || exit 2
trap 'rm -rf "$tree"' EXIT
failed=0

# put FILE INCLUDE: a tree with this one file.
put() {
    rm -rf "${tree:?}"/*
    mkdir -p "$tree/$(dirname "$1")"
    printf '#include %s\n' "$2" >"$tree/$1"
}

expect() { # STATUS FILE INCLUDE
    put "$2" "$3"
    sh "$check" "$tree" >"$tree/out" 2>&1
    got=$?
    if [ "$got" -ne "$1" ]; then
        echo "$2 with $3: exit $got, expected $1"
        failed=1
    fi
}

expect 0 base/a.c '"base/b.h"'
expect 0 node/a.c '"rpc/server.h"'
expect 0 rpc/server.c '<grpc/grpc.h>'
expect 0 rpc/server_calls.c '<grpc/grpc.h>'
expect 0 rpc/client.c '<grpc/grpc.h>'
expect 0 state/store_rocksdb.c '<rocksdb/c.h>'
expect 0 base/json.h '<jansson.h>'
expect 0 model/config.c '"base/json.h"'
expect 0 ops/node.c '"rpc/client.h"'
expect 0 ops/node.c '"base/json.h"'
expect 0 proto/a.c '<protobuf-c/protobuf-c.h>'
expect 0 rpc/convert.c '"godwit/v1/godwit.pb-c.h"'
expect 0 rpc/client.c '"google/rpc/status.pb-c.h"'
expect 0 rpc/health.c '"grpc/health/v1/health.pb-c.h"'
expect 0 ops/a.c '"godwit/v1/godwit.pb-c.h"'
expect 0 kernels/cuda/a.cu '<cuda_runtime.h>'

expect 1 base/a.c '"proto/b.h"'
expect 1 kernels/a.c '"model/b.h"'
expect 1 state/a.h '"rpc/server.h"'
expect 1 rpc/a.c '"node/b.h"'
expect 1 node/a.c '"ops/b.h"'
expect 1 ops/a.c '"state/store.h"'
expect 1 ops/a.c '"rpc/server.h"'
expect 1 rpc/convert.c '<grpc/grpc.h>'
expect 1 scheduler/a.c '<rocksdb/c.h>'
expect 1 state/store.c '<rocksdb/c.h>'
expect 1 model/a.c '<jansson.h>'
expect 1 rpc/a.c '"base/json.h"'
expect 1 state/a.c '<xxhash.h>'
expect 1 base/a.c '<pcre2.h>'
expect 1 rpc/a.c '<utf8proc.h>'
expect 1 rpc/a.c '<protobuf-c/protobuf-c.h>'
expect 1 kernels/cpu/a.c '<cuda_runtime.h>'
expect 1 base/a.c '"godwit/v1/godwit.pb-c.h"'
expect 1 base/a.c '"b.h"'
expect 1 base/a.c '"../model/b.h"'
expect 1 base/a.c 'HEADER'
expect 2 other/a.c '<stdio.h>'

put base/long.c '<stdio.h>'
yes 'int x;' | head -n 799 >>"$tree/base/long.c"
sh "$check" "$tree" || { echo "800 lines were refused"; failed=1; }
echo 'int y;' >>"$tree/base/long.c"
sh "$check" "$tree" >/dev/null && { echo "801 lines were accepted"; failed=1; }
exit $failed
