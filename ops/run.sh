#!/bin/sh
# Start a node with the small model, let it write a few words as a greeting, and
# serve until Ctrl-C.
#
# GODWIT_LISTEN, GODWIT_MODEL and GODWIT_DATA take the place of the defaults.
set -u
cd "$(dirname "$0")/.." || exit 1

listen=${GODWIT_LISTEN:-127.0.0.1:50051}
model=${GODWIT_MODEL:-assets/models/godwit-tiny}
data=${GODWIT_DATA:-./data}
port=${listen##*:}
case $listen in
0.0.0.0:* | '[::]':*) endpoint=127.0.0.1:$port ;; # all addresses, so this one
*) endpoint=$listen ;;
esac
ctl="build/godwitctl --endpoint $endpoint"
wait_s=120 # a large model is read from a cold disk
pid=

for program in build/godwitd build/godwitctl; do
    [ -x "$program" ] || {
        echo "run: no $program, run 'make build' first" >&2
        exit 1
    }
done
if timeout 10 $ctl node get >/dev/null 2>&1; then
    echo "run: $endpoint is in use: a node already answers there" >&2
    echo "run: stop it, or set GODWIT_LISTEN=127.0.0.1:OTHER_PORT" >&2
    exit 1
fi

is_stopping=0
stop() {
    is_stopping=1
    [ -z "$pid" ] || kill -TERM "$pid" 2>/dev/null
}
trap stop INT TERM

build/godwitd --listen "$listen" --model "$model" --data "$data" </dev/null &
pid=$!

# A trapped signal ends wait() early, so wait until the node itself has ended.
wait_for_end() {
    while :; do
        wait "$pid"
        code=$?
        kill -0 "$pid" 2>/dev/null || return "$code"
    done
}

# Exit 0 says that the node was asked to stop, by a signal that went to it and
# not to this script.
end_if_stopped() {
    wait_for_end
    code=$?
    [ "$code" -ne 0 ] || {
        echo "run: stopped" >&2
        exit 0
    }
}

fail() {
    echo "run: $1" >&2
    kill -TERM "$pid" 2>/dev/null
    wait_for_end
    exit 1
}

deadline=$(($(date +%s) + wait_s))
until timeout 10 $ctl node get >/dev/null 2>&1; do
    [ "$is_stopping" -eq 0 ] || break
    kill -0 "$pid" 2>/dev/null || {
        end_if_stopped
        fail "godwitd ended before it answered, see above; is $listen in use?"
    }
    [ "$(date +%s)" -lt "$deadline" ] ||
        fail "no answer from godwitd at $endpoint within $wait_s s"
    sleep 0.2
done

if [ "$is_stopping" -eq 0 ]; then
    prompt="It was a dark night, and"
    printf '\n%s' "$prompt"
    $ctl generate --session "greeting-$(date +%s)" --prompt "$prompt" \
        --max-tokens 48 || [ "$is_stopping" -eq 1 ] ||
        fail "the node answers, but the greeting failed"
    cat <<END


godwitd serves $model on $endpoint, sessions in $data. In another terminal:

  $ctl generate --session story --prompt "Once upon a time" --max-tokens 100
  $ctl generate --session story --prompt " The next day" --max-tokens 100
  $ctl session list
  $ctl session tokens story
  $ctl node get

Sessions survive a restart. Ctrl-C stops the node.
END
fi

end_if_stopped
[ "$is_stopping" -eq 0 ] || exit "$code"
echo "run: godwitd ended by itself, exit $code" >&2
exit 1
