#!/usr/bin/env bash
# A base image where no image registry is reached: Debian 12 by debootstrap, with this machine's extra certificates.
#   sudo docker/base.sh [TAG]      then: BASE=mcc-base in .env, and docker compose build
# Needs root, debootstrap, and a Docker engine (DOCKER_HOST).
set -euo pipefail

tag=${1:-mcc-base}
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root"
if compgen -G '/usr/local/share/ca-certificates/*.crt' > /dev/null; then
    cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/"
    chroot "$root" update-ca-certificates
fi
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
tar --directory "$root" --numeric-owner --create . | docker import --change 'CMD ["python3"]' - "$tag"
