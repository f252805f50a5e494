#!/bin/sh
# Runs nginx before every replica that the name $SERVICE has an address for. nginx of Debian looks names up when it reads its
# configuration and never again, and asks nobody by itself whether he works: both are done here, once a second, and nginx reads
# its configuration once more when there is a new address, or a replica that was silent twice, or answers again. An address that
# has gone stays for half a minute: a replica that ended refuses connections, and so does one that has not loaded its model yet,
# and nginx asks another.
set -eu

service=${SERVICE:-service}
port=${SERVICE_PORT:-8000}
configuration=${NGINX_CONFIGURATION:-/etc/nginx/nginx.conf}
replicas=/tmp/replicas.conf
silences=$(mktemp -d)

look() {
    for address in $(getent ahostsv4 "$service" | awk '{ print $1 }' | sort -u); do
        silent=''
        [ "$(cat "$silences/$address" 2> /dev/null || echo 0)" -lt 2 ] || silent=' down'
        # Left out for a second after a connection that failed.
        echo "server $address:$port max_fails=1 fail_timeout=1s$silent;"
    done > "$1"
    # Where nobody answers it is not known whose fault it is, and nginx shall go on trying.
    grep -qv ' down;$' "$1" || sed -i 's/ down;$/;/' "$1"
}

# One that is stopped, or has no CPU, takes connections and answers none: /livez answers within milliseconds under any load.
ask() {
    if curl --fail --silent --max-time 1 --output /dev/null "http://$1:$port/livez"; then
        rm -f "$silences/$1"
    else
        echo $(($(cat "$silences/$1" 2> /dev/null || echo 0) + 1)) > "$silences/$1"
    fi
}

until look "$replicas" && [ -s "$replicas" ]; do
    echo "gateway: $service has no address yet" >&2
    sleep 1
done
echo "gateway: $(tr '\n' ' ' < "$replicas")" >&2
nginx -e /dev/stderr -c "$configuration" -g 'daemon off;' &
nginx=$!
trap 'kill -QUIT "$nginx"; wait "$nginx"; exit 0' INT TERM QUIT

changed=0
while kill -0 "$nginx" 2> /dev/null; do
    sleep 1 &
    waiting=$!
    for address in $(sed -n 's/^server \([0-9.]*\):.*/\1/p' "$replicas"); do
        ask "$address" &
        waiting="$waiting $!"
    done
    # A signal ends waiting, but not sleeping.
    # shellcheck disable=SC2086
    wait $waiting || true
    look "$replicas.new"
    if [ ! -s "$replicas.new" ] || cmp -s "$replicas" "$replicas.new"; then
        # No address at all is a name server that is away.
        changed=0
        continue
    fi
    changed=$((changed + 1))
    # Reading it again ends clients' idle connections: at once only for a line that is new; somebody else may get an old address.
    if grep -qvxFf "$replicas" "$replicas.new" || [ "$changed" -ge 30 ]; then
        changed=0
        mv "$replicas.new" "$replicas"
        echo "gateway: $(tr '\n' ' ' < "$replicas")" >&2
        nginx -e /dev/stderr -c "$configuration" -s reload
    fi
done
wait "$nginx"
