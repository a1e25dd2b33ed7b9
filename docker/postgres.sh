#!/bin/sh
# PostgreSQL with one role and the databases of MLflow: runs, and users.
set -eu
: "${POSTGRES_PASSWORD:?}"
bin=/usr/lib/postgresql/15/bin
if [ ! -s /data/PG_VERSION ]; then
    secret=$(mktemp)
    printf '%s' "$POSTGRES_PASSWORD" > "$secret"
    "$bin/initdb" --pgdata=/data --username=mlflow --pwfile="$secret" --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8
    rm "$secret"
    echo 'host all all all scram-sha-256' >> /data/pg_hba.conf
    for database in mlflow mlflow_auth; do
        echo "CREATE DATABASE $database;" | "$bin/postgres" --single -D /data postgres > /dev/null
    done
fi
exec "$bin/postgres" -D /data -c listen_addresses='*' -c unix_socket_directories=/tmp
