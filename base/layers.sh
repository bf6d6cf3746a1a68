#!/bin/sh
# Fail when a file includes what its folder may not use, or is too long.
#
# A file may include headers of its own folder and of folders to its left; ops
# is a client and sees base, proto and rpc/client.h alone. A vendor's headers
# may be included only where the second table says, so that replacing a library
# touches those files and no others. tests/ may include anything.
#
# usage: layers.sh [ROOT]
root=${1:-$(dirname "$0")/..}
cd "$root" || exit 2

files=$(find base proto kernels model state scheduler rpc node ops \
    \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' \) -print 2>/dev/null | sort)
[ -n "$files" ] || { echo "layers.sh: no sources in $(pwd)" >&2; exit 2; }

# shellcheck disable=SC2086 # our file names have no blanks
awk '
function vendor(name, header, allowed) {
    n_vendor++
    label[n_vendor] = name; pattern[n_vendor] = header; home[n_vendor] = allowed
}
function refuse(what) {
    print FILENAME ":" FNR ": " what
    bad = 1
}
BEGIN {
    n = split("base proto kernels model state scheduler rpc node", order, " ")
    for (i = 1; i <= n; i++) rank[order[i]] = i

    vendor("grpc", "^grpc/", "^rpc/(server|client)[a-z_]*\\.c$")
    vendor("rocksdb", "^rocksdb/", "^state/store_rocksdb\\.c$")
    vendor("openssl", "^openssl/", "^state/seal\\.c$")
    vendor("jansson", "^jansson\\.h$", "^base/json\\.h$")
    vendor("base/json.h", "^base/json\\.h$", "^(base|model|node|ops)/")
    vendor("pcre2", "^pcre2", "^model/")
    vendor("utf8proc", "^utf8proc", "^model/")
    vendor("xxhash", "^xxh", "^base/digest\\.c$")
    vendor("protobuf-c", "^(protobuf-c|google)/", "^proto/")
    vendor("cuda", "^(cuda|cublas|cusparse|cub/|cooperative_groups|mma\\.h|nv)",
           "^kernels/cuda/")
}
FNR == 801 { refuse("a file has at most 800 lines") }
/^[ \t]*#[ \t]*include/ {
    if (!match($0, /["<][^">]+[">]/)) { refuse("include of a macro"); next }
    quote = substr($0, RSTART, 1)
    header = substr($0, RSTART + 1, RLENGTH - 2)
    split(FILENAME, at, "/")
    own = at[1]
    n = split(header, part, "/")
    top = n > 1 ? part[1] : ""
    # protoc generates these from proto/, under the names of their packages.
    is_generated = header ~ /\.pb-c\.h$/
    if (is_generated) top = "proto"

    if (header ~ /(^|\/)\.\.?\//)
        refuse("includes start at the repository root, not at \"" header "\"")
    if (quote == "\"" && top == "")
        refuse("write \"" own "/" header "\"")
    if (own == "ops") {
        if ((top in rank) && top != "base" && top != "proto" && header != "rpc/client.h")
            refuse("ops may not use " header)
    } else if (((top in rank) && rank[top] > rank[own]) || top == "ops")
        refuse(own " may not use " header)
    for (i = 1; i <= n_vendor && !is_generated; i++)
        if (header ~ pattern[i] && FILENAME !~ home[i])
            refuse(FILENAME " may not use " label[i])
}
END { exit bad }' $files
