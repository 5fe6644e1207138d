#!/usr/bin/env bash
# Makes stand-ins for the base images where none can be pulled: Debian by debootstrap, and PostgreSQL on it.
#
#   $VQSEARCH_CERTIFICATES   a folder of *.crt files that they are to trust too
#   $DOCKER                  the command (docker)
set -euo pipefail

docker=${DOCKER:-docker}
debian=vqsearch-stand-in/debian:bookworm
postgres=vqsearch-stand-in/postgres:15

[ "$(id -u)" = 0 ] || { echo "stand-in.sh: debootstrap needs root" >&2; exit 2; }
command -v debootstrap > /dev/null || { echo "stand-in.sh: no debootstrap; apt-get install debootstrap" >&2; exit 2; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if ! $docker image inspect $debian > /dev/null 2>&1; then
    debootstrap --variant=minbase --include=ca-certificates bookworm "$work/root" http://deb.debian.org/debian > "$work/log" \
        || { tail -n 20 "$work/log" >&2; exit 1; }
    rm -rf "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/*
    if [ -n "${VQSEARCH_CERTIFICATES:-}" ]; then
        cp "$VQSEARCH_CERTIFICATES"/*.crt "$work/root/usr/local/share/ca-certificates/"
        chroot "$work/root" update-ca-certificates > /dev/null
    fi
    tar --directory "$work/root" --create . | $docker import --change 'CMD ["bash"]' - $debian > /dev/null
fi

if ! $docker image inspect $postgres > /dev/null 2>&1; then
    mkdir "$work/postgres"
    cat > "$work/postgres/Dockerfile" << EOF
FROM $debian
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql-15
ENV PATH=/usr/lib/postgresql/15/bin:\$PATH PGDATA=/var/lib/postgresql/data
RUN install --directory --owner=postgres --mode=700 \$PGDATA && install --directory --owner=postgres /var/run/postgresql
COPY start /usr/local/bin/
USER postgres
ENTRYPOINT ["start"]
CMD ["postgres"]
EOF
    # The part of the official image's behaviour that compose.yaml relies on.
    cat > "$work/postgres/start" << 'EOF'
#!/bin/sh
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --encoding=UTF8 --locale=C.UTF-8 \
        --auth-host=scram-sha-256 --auth-local=trust > /dev/null
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    pg_ctl --silent --wait --options="-c listen_addresses=''" start
    createdb --username="$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl --silent --wait stop
fi
exec "$@" -c listen_addresses='*'
EOF
    chmod +x "$work/postgres/start"
    DOCKER_BUILDKIT=1 $docker build --quiet --network host --tag $postgres "$work/postgres" > /dev/null
fi
echo "$debian"
echo "$postgres"
