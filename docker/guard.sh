#!/bin/sh
# Refuses to start a stack whose secrets are those of .env.example, or too short, outside `--profile dev`.
set -u
wrong=
for name in POSTGRES_PASSWORD AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY MLFLOW_ADMIN_PASSWORD \
    MLFLOW_FLASK_SERVER_SECRET_KEY RAY_AUTH_TOKEN; do
    eval "value=\${$name:-}"
    case $value in
        '') wrong="$wrong $name (empty)" ;;
        *change-me*) wrong="$wrong $name (example value)" ;;
        *) [ ${#value} -ge 12 ] || wrong="$wrong $name (shorter than 12 characters)" ;;
    esac
done
[ -n "$wrong" ] || exit 0
# The service `dev` runs under `--profile dev` alone, so its name is known there alone.
tries=0
while [ $tries -lt "${GUARD_TRIES:-10}" ]; do
    if getent hosts dev > /dev/null; then
        echo "profile dev: started with$wrong"
        exit 0
    fi
    tries=$((tries + 1))
    sleep 1
done
echo "refusing to start:$wrong" >&2
echo "fix: set them in .env, for example with: openssl rand -hex 24 (or try the stack with --profile dev)" >&2
exit 1
