#!/bin/sh
# Whether two libraries give the same bits of a model whose sessions, under
# policies of all kinds, are fed whole: their logits and what they leave behind
# (gpu_model exact).
#
# usage: same_bits.sh GPU_MODEL MODEL BACKEND BACKEND
set -u
program=$1
model=$2
shift 2
before=
for backend; do
    bits=$("$program" exact "$backend" "$model" --schedules 33 \
        --policy any |
        sed -n 's/.*: bits //p')
    echo "$backend: bits ${bits:-none}"
    [ -n "$bits" ] && [ "${before:-$bits}" = "$bits" ] || exit 1
    before=$bits
done
