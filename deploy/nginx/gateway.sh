#!/bin/sh
# Runs nginx before every replica that the name $SERVICE has an address for. nginx of Debian looks names up when it reads its
# configuration and never again: when there is a new address, it reads it once more. One that has gone stays for half a minute:
# a replica that ended refuses connections, and so does one that has not loaded its model yet, and nginx asks another.
set -eu

service=${SERVICE:-service}
port=${SERVICE_PORT:-8000}
replicas=/tmp/replicas.conf

look() {
    for address in $(getent ahostsv4 "$service" | awk '{ print $1 }' | sort -u); do
        # Left out for a second after a connection that failed.
        echo "server $address:$port max_fails=1 fail_timeout=1s;"
    done
}

until look > "$replicas" && [ -s "$replicas" ]; do
    echo "gateway: $service has no address yet" >&2
    sleep 1
done
echo "gateway: $(tr '\n' ' ' < "$replicas")" >&2
nginx -e /dev/stderr -g 'daemon off;' &
nginx=$!
trap 'kill -QUIT "$nginx"; wait "$nginx"; exit 0' INT TERM QUIT

changed=0
while kill -0 "$nginx" 2> /dev/null; do
    sleep 1 &
    # A signal ends waiting, but not sleeping.
    wait $!
    look > "$replicas.new"
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
        nginx -e /dev/stderr -s reload
    fi
done
wait "$nginx"
