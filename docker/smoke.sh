#!/usr/bin/env bash
# Brings the stack up, runs a sweep on it from outside, kills a worker in the middle, checks MLflow and S3, tears down.
#   docker/smoke.sh [--keep]        --keep: leave the stack running afterwards
# Environment: MCC (the mcc command, default .venv/bin/mcc), BASE, BUILD_NETWORK and PIP_EXTRA_INDEX_URL for the build,
# PROJECT (compose project, default mcc-smoke), MLFLOW_PORT, RAY_DASHBOARD_PORT.
# Exit codes: 0 all seen, 1 something was wrong, 69 no Docker engine or no compose here.
set -euo pipefail
cd "$(dirname "$0")/.."

keep=${1:-}
mcc=${MCC:-.venv/bin/mcc}
export MLFLOW_PORT=${MLFLOW_PORT:-15000} RAY_DASHBOARD_PORT=${RAY_DASHBOARD_PORT:-18265} WORKER_CPUS=1
export DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1
began=$SECONDS
say() { printf '%5d s  %s\n' $((SECONDS - began)) "$*"; }
fail() { say "FAILED: $*"; exit 1; }

if ! docker info > /dev/null 2>&1; then
    say "no Docker engine answers (DOCKER_HOST=${DOCKER_HOST:-default}); start dockerd, or ask for access to its socket"
    exit 69
fi
if docker compose version > /dev/null 2>&1; then compose=(docker compose); else compose=(docker-compose); fi
if ! "${compose[@]}" version > /dev/null 2>&1; then
    say "no docker compose here: install the compose plugin, or docker-compose 1.29"
    exit 69
fi

work=$(mktemp -d)
compose+=(--project-name "${PROJECT:-mcc-smoke}")
example=("${compose[@]}" --env-file .env.example)
compose+=(--env-file "$work/env")
secret() { head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
for name in POSTGRES_PASSWORD AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY MLFLOW_ADMIN_PASSWORD \
    MLFLOW_FLASK_SERVER_SECRET_KEY RAY_AUTH_TOKEN; do
    value=$(secret)
    printf '%s=%s\n' "$name" "$value"
done > "$work/env"
value_of() { sed -n "s/^$1=//p" "$work/env"; }

finish() {
    code=$?
    if [ $code -ne 0 ]; then
        "${compose[@]}" ps --all || "${compose[@]}" ps
        "${compose[@]}" logs --tail 40
    fi
    if [ "$keep" = --keep ]; then
        say "left running; its secrets: $work/env"
    else
        "${compose[@]}" down --volumes --timeout 20 > /dev/null 2>&1 || true
        rm -rf "$work"
        say "torn down"
    fi
    exit $code
}
trap finish EXIT

"${compose[@]}" config > /dev/null
say "config is clean ($("${compose[@]}" version --short))"

"${compose[@]}" build > "$work/build.log" 2>&1 || { tail -30 "$work/build.log"; fail "the build"; }
say "images built"
docker images --format '{{.Repository}} {{.Size}}' | grep -E '^mcc(-s3|-mlflow|-postgres)? ' | sort | sed 's/^/         /'

# The example's secrets are refused.
if "${example[@]}" run --rm guard > "$work/guard" 2>&1; then fail "the guard let .env.example pass"; fi
grep -q 'refusing to start' "$work/guard" || fail "the guard said: $(cat "$work/guard")"
say "the values of .env.example are refused"

"${compose[@]}" up --detach --scale ray-worker=2 > "$work/up.log" 2>&1 || { tail -20 "$work/up.log"; fail "up"; }
containers() { "${compose[@]}" ps --quiet "$@"; }
healthy() { [ "$(docker inspect --format '{{.State.Health.Status}}' "$1")" = healthy ]; }
for service in postgres s3 mlflow ray-head ray-worker; do
    for container in $(containers $service); do
        for _ in $(seq 90); do healthy "$container" && break; sleep 2; done
        healthy "$container" || fail "$service is not healthy"
    done
done
say "all services are healthy, two workers"

inside() { "${compose[@]}" exec -T ray-head "$@"; }
RAY_AUTH_TOKEN=$(value_of RAY_AUTH_TOKEN)
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token MCC_STORAGE=s3://mcc/mcc MCC_HOME=$work/home
"$mcc" sweep submit sweeps/mask_ablation.yaml --on "http://127.0.0.1:$RAY_DASHBOARD_PORT" \
    --set train.iterations=60 --set train.eval_every=20 --set loss.seg_start=20 --set cam.positiveness_aux_until=40 \
    > "$work/sweep.log" 2>&1 &
job=$!
for _ in $(seq 120); do
    inside mcc sweep status --json 2> /dev/null | grep -q '"running"' && break
    kill -0 $job 2> /dev/null || { cat "$work/sweep.log"; fail "the job ended early"; }
    sleep 3
done
say "the sweep runs"
for _ in $(seq 60); do
    inside mcc sweep status --json 2> /dev/null | grep -q '"finished"' && break
    sleep 3
done
victim=$(containers ray-worker | head -1)
docker kill --signal KILL "$victim" > /dev/null
say "one of the two workers killed"

wait $job || { tail -30 "$work/sweep.log"; fail "the sweep"; }
say "the sweep ended: $(grep -E 'trials done' "$work/sweep.log" | tail -1)"
PASSWORD=$(value_of MLFLOW_ADMIN_PASSWORD) python3 docker/smoke_mlflow.py "http://127.0.0.1:$MLFLOW_PORT" \
    || fail "what MLflow has"
inside python3 - < docker/smoke_s3.py || fail "what S3 has"
say "MLflow and S3 have it all"
