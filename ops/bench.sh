#!/bin/sh
# Measure all shapes of docs/PERFORMANCE.md on this machine, one after the
# other, and print the tables in Markdown. The machine should do nothing else.
#
# usage: bench.sh [tiny|0.8b|2b|4b|moe]...
# GODWIT_BUILD     release build directory
# GODWIT_BENCH_OUT where the rows go as TSV; a temporary directory if not given
# GODWIT_BENCH_ARGS further options of `godwitd bench`, "--seconds 5"
set -eu
cd "$(dirname "$0")/.."

bench=${GODWIT_BUILD:-build}/godwitd
out=${GODWIT_BENCH_OUT:-$(mktemp -d)}
mkdir -p "$out"

# Rows of one file as a table; first the machine, then the measured bounds.
table() { # NAME
    awk -F '\t' 'NR == 2 { printf "%s, backend %s, %s threads, %s\n\n", $2, $3, $5, $4 }' \
        "$out/$1.tsv"
    sed -n 's/^godwitd bench: \(.* GFLOP\/s\|reads of .*\|no .*\|.*do not fit.*\)$/- \1/p' \
        "$out/$1.err" | sort -u
    awk -F '\t' '
        NR == 1 {
            print "\n| what | context | batch | tokens/s | bound | by | share " \
                "| products | delta | attention | rest | products of bound " \
                "| TTFT p50, p99 ms | token p50, p99 ms |"
            print "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
        }
        NR > 1 {
            printf "| %s | %s | %s | %s | %s | %s | %.0f %% |", $7, $8, $9,
                $10, $11, $12, 100 * $13
            for (i = 14; i <= 18; i++)
                printf $i == "-" ? " |" : " %.0f %% |", 100 * $i
            printf $19 == "-" ? " |" : " %s, %s |", $19, $20
            printf $21 == "-" ? " |\n" : " %s, %s |\n", $21, $22
        }
        END { print "" }' "$out/$1.tsv"
}

measure() { # NAME OPTION...
    name=$1
    shift
    # Unquoted: options are words.
    if ! "$bench" bench "$@" ${GODWIT_BENCH_ARGS-} >"$out/$name.tsv" 2>"$out/$name.err"; then
        cat "$out/$name.err" >&2
        exit 1
    fi
    table "$name"
}

shape() { # NAME MODEL-OPTION FILE OPTION...
    name=$1 option=$2 file=$3
    shift 3
    for format in bf16 w8 w8a8; do
        printf '## %s, %s\n\n' "$name" "$format"
        measure "$name-$format" "$option" "$file" --weight-format $format "$@"
    done
}

for model in ${*:-tiny 0.8b 2b 4b moe}; do
    case $model in
    tiny)
        shape godwit-tiny --model assets/models/godwit-tiny --seconds 10 \
            --contexts 512,4096,32768,131072 --batches 1,2,4,8,16,32
        ;;
    0.8b)
        shape 0.8B --synthetic assets/configs/qwen3_5-0.8b.json \
            --contexts 512,4096,32768,131072 --batches 1,8,32 --sessions 1,8
        ;;
    2b)
        shape 2B --synthetic assets/configs/qwen3_5-2b.json \
            --contexts 512,4096,32768 --batches 1,8,32 --parts prefill,decode
        ;;
    4b)
        shape 4B --synthetic assets/configs/qwen3_5-4b.json \
            --contexts 512,4096,32768 --batches 1,8 --parts prefill,decode
        ;;
    moe)
        shape 35B-A3B-cut --synthetic assets/configs/qwen3_5-35b-a3b-cut.json \
            --contexts 512,4096 --batches 1,8 --parts prefill,decode
        ;;
    *)
        echo "bench.sh: no model '$model', there are: tiny 0.8b 2b 4b moe" >&2
        exit 2
        ;;
    esac
done
echo "rows: $out" >&2
