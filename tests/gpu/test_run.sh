#!/bin/sh
# run.sh without a GPU: programs that only pretend. What it tries, within which
# limits, what its table and its exit say.
set -u
here=$(cd "$(dirname "$0")" && pwd)
fake=$(mktemp -d) || exit 1
trap 'rm -rf "$fake"' EXIT
n_bad=0

cat >"$fake/gpu_model" <<'FAKE'
#!/bin/sh
echo "$1" >>"${FAKE_LOG:-/dev/null}"
if [ -n "${FAKE_MEETS:-}" ]; then # ends when both are there
    : >"$FAKE_MEETS.$1"
    until [ -e "$FAKE_MEETS.ops" ] && [ -e "$FAKE_MEETS.check" ]; do :; done
fi
case " $* " in
*" ${FAKE_HANGS:-nothing} "*) exec sleep 60 ;;
*" ${FAKE_FAILS:-nothing} "*) echo "it differs"; exit 1 ;;
*" exact "*) echo "model: 7 of $5 schedules, 1 steps: 0 differ" ;;
*) echo "said $1" ;;
esac
FAKE
cat >"$fake/gpu_ops" <<'FAKE'
#!/bin/sh
exec "${0%/*}/gpu_model" ops "$@"
FAKE
chmod +x "$fake/gpu_model" "$fake/gpu_ops"
: >"$fake/libgodwit_cuda.so"

# EXIT [PART...]: run.sh ends so; what it printed is in $out.
expect() {
    wanted=$1
    shift
    PATH=$path SECONDS_MAX=${SECONDS_MAX:-20} "$here/run.sh" "$fake" "$@" \
        >"$fake/out" 2>&1
    code=$?
    [ "$code" -eq "$wanted" ] && return
    echo "run.sh $*: exit $code instead of $wanted"
    cat "$fake/out"
    n_bad=$((n_bad + 1))
}

says() { # WORDS, a pattern
    grep -q -- "$1" "$fake/out" && return
    echo "no line '$1' in:"
    cat "$fake/out"
    n_bad=$((n_bad + 1))
}

path=$PATH
expect 2 ops nothing
says "no part 'nothing', there are: race memory node"
! grep -q 'said ops' "$fake/out" || n_bad=$((n_bad + 1)) # nothing ran before

expect 0 ops goldens exact swap
says '^ops  .*  held       ops: said ops$'
says '^goldens .* held  *qwen3_5_text: said check$'
says "^exact: $((7 * $(find "$here/../golden" "$here/../../assets/models/godwit-tiny" \
    -name config.json | wc -l))) schedules in all, 1000 asked for$"
says '^swap  .*  held  *qwen3_5-9b.json: said time$'
says ' 0 did not, 0 could not be tried$'

FAKE_FAILS=ops expect 1 ops goldens
says '^ops  .*  FAILED 1   ops: it differs$'
says '^goldens .* held ' # what comes behind is tried all the same
says ' 1 did not, 0 could not be tried$'

SECONDS_MAX=1 FAKE_HANGS=ops expect 1 ops
says '^ops  .*  NO TIME '

SECONDS_ALL=0 expect 1 ops
says '^ops  .*  NO TIME '

FAKE_MEETS=$fake/met JOBS=2 SECONDS_MAX=10 expect 0 ops goldens
rm "$fake"/met.*
FAKE_MEETS=$fake/met JOBS=1 SECONDS_MAX=1 expect 1 ops goldens
says '^ops  .*  NO TIME '

expect 3 kernels # neither there nor can they be made
says '^kernels .*  not tried  check_linear: there is no '
n_check=$(find "$here" -name 'check_*.cu' | wc -l)
says "^0 held, 0 did not, $n_check could not be tried\$"

mkdir "$fake/bin" # a machine without compute-sanitizer, and one with it
for program in sh sed grep tail cut cat tee timeout date mktemp realpath rm \
    dirname basename awk wc mkdir mkfifo nproc seq sleep; do
    ln -s "$(command -v $program)" "$fake/bin/$program"
done
if [ ! -x /usr/local/cuda/bin/compute-sanitizer ]; then
    path=$fake/bin
    expect 3 race
    says '^race  .*  not tried  racecheck: there is no compute-sanitizer here$'
fi
for check in linear attend attend_places delta experts mass view; do
    printf '#!/bin/sh\necho "checked $*"\n' >"$fake/check_$check"
    chmod +x "$fake/check_$check"
done
cat >"$fake/bin/compute-sanitizer" <<'FAKE'
#!/bin/sh
tool=$2
while [ "${1#-}" != "$1" ]; do shift; [ -x "$1" ] || shift; done
"$@" || exit
[ "$tool" = racecheck ] || exit 0
echo "===== Error: Race reported between Write access at void ${FAKE_PAIR:-weigh}<(int)256>(const few_item &)+0x3c0 in a.cu:300"
echo "=====     and Read access at void add_sums<(int)64>(x)+0x10 in a.cu:350 [12 hazards]"
echo "===== "
echo "===== RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)"
FAKE
chmod +x "$fake/bin/compute-sanitizer"
path=$fake/bin
ln -s /usr/bin/python3 "$fake/bin/python3"
expect 0 memory race
says '^memory .*  held       check_attend least 256: checked least 256$'
says '^race  .*  held       check_delta check 5: 1 pairs of accesses, 1 of them '
says '^memory .*  held       llama under quest: model: 7 of'
says '^race  .*  held       qwen3_5_moe_text under any: 1 pairs of accesses'
FAKE_PAIR=elsewhere expect 1 race
says '^race  .*  FAILED 1   check_delta check 5: '
says '^Read add_sums and Write elsewhere: 12 hazards$'
rm "$fake/bin/python3"

# Rates of all programs in one table, whoever of them fails.
for program in check_attend check_attend_places check_view check_mass \
    check_experts time_delta time_linear; do
    cat >"$fake/$program" <<'FAKE'
#!/bin/sh
echo "copy: 3000 GB/s"
[ "${0##*/}" != check_mass ] || exit 1
echo "${0##*/}${1:+ }$1 of 4 rows |       1.0 |       2.0 |  50 %"
FAKE
    chmod +x "$fake/$program"
done
expect 1 rates
says '^rates .*  held       check_view: check_view time of 4 rows'
says '^rates .*  FAILED 1   check_mass: copy'
says '^check_experts time of 4 rows | *1.0 | *2.0 |  50 %$'
says '^time_linear of 4 rows | *1.0 | *2.0 |  50 %$'
if [ "$(grep -c '^[ct].* of 4 rows |' "$fake/out")" -ne 6 ]; then
    echo "not six rates in the table:" && cat "$fake/out"
    n_bad=$((n_bad + 1))
fi

# Beside PyTorch, where that is: exit 3 of a program, too, is "not tried".
expect 3 torch
says '^torch .*  not tried  libgodwit_beside.so: there is no '
printf '#!/bin/sh\n' >"$fake/libgodwit_beside.so"
chmod +x "$fake/libgodwit_beside.so"
printf '#!/bin/sh\necho "no PyTorch"\nexit 3\n' >"$fake/bin/python3"
chmod +x "$fake/bin/python3"
expect 3 torch
says '^torch .*  not tried  beside PyTorch: no PyTorch$'
says '^0 held, 0 did not, 1 could not be tried$'
printf '#!/bin/sh\necho "$*"\n' >"$fake/bin/python3"
expect 0 torch
says "^torch .*  held       beside PyTorch: .*time_torch.py $fake\$"

# What needs no models is tried where there is no gpu_model.
mv "$fake/gpu_model" "$fake/elsewhere"
printf '#!/bin/sh\necho "said ops"\n' >"$fake/gpu_ops"
expect 3 ops goldens exact
says '^ops .*  held       ops: said ops$'
says '^goldens .*  not tried  gpu_model: there is no '
says '^1 held, 0 did not, 2 could not be tried$'
mv "$fake/elsewhere" "$fake/gpu_model"

# A full device comes behind all that runs beside others, before what is timed.
for program in godwitd godwitctl libgodwit_faulty.so; do
    ln -s gpu_model "$fake/$program"
done
cat >"$fake/bin/python3" <<'FAKE'
#!/bin/sh
echo "$4" >>"$FAKE_LOG"
FAKE
chmod +x "$fake/bin/python3"
FAKE_LOG=$fake/log expect 0 node time ops goldens
says '^node .*  held  *wild: '
if [ "$(tail -n 4 "$fake/log" | tr '\n' ' ')" != 'scratch time time time ' ] ||
    [ "$(grep -c full "$fake/log")" -ne 1 ]; then
    echo "in another order:" && cat "$fake/log"
    n_bad=$((n_bad + 1))
fi

exit $((n_bad > 0))
