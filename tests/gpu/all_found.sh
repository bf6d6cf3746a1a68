#!/bin/sh
# Whether all samples of a `gpu_model eval` find what they are asked for.
#
# usage: all_found.sh GPU_MODEL OPTIONS...
set -u
program=$1
shift
"$program" eval "$@" 2>&1 | awk -F '\t' '
    $9 == "-" {
        n++
        n_bad += $13 != "1.000"
        said = said (n > 1 ? ", " : " ") $7 " " $11 " of " $12 " at " $8
    }
    NF < 2 { other = $0 }
    END {
        print n ? "found" said " tokens" : other
        exit n_bad || !n
    }'
