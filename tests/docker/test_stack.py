"""What can be said of the stack without a Docker engine; `docker/smoke.sh` runs it for real."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
ONCE = {"guard", "bucket", "dev"}
SECRETS = {
    "POSTGRES_PASSWORD",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "MLFLOW_ADMIN_PASSWORD",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "RAY_AUTH_TOKEN",
}


def example() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def guard(**values: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "GUARD_TRIES": "1"} | values
    return subprocess.run(["sh", str(ROOT / "docker/guard.sh")], env=environ, capture_output=True, text=True)


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_restarts_or_runs_once_and_cannot_gain_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["security_opt"] == ["no-new-privileges:true"]
    if name in ONCE:
        assert service["restart"] == "no"
    else:
        assert service["restart"] == "unless-stopped" and service["healthcheck"]["test"]
        assert set(service["depends_on"]), "starts before what it needs"
    for needed, how in service.get("depends_on", {}).items():
        assert how["condition"] == ("service_completed_successfully" if needed in ONCE else "service_healthy")


def test_everything_waits_for_the_guard() -> None:
    def before(name: str) -> set[str]:
        needed = set(SERVICES[name].get("depends_on", {}))
        return needed.union(*(before(one) for one in needed)) if needed else set()

    assert all("guard" in before(name) for name in SERVICES.keys() - {"guard", "dev"})


def test_only_mlflow_and_ray_s_dashboard_are_published_and_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.keys() == {"mlflow", "ray-head"}
    assert all(port.startswith("${BIND:-127.0.0.1}:") for ports in published.values() for port in ports)


def test_secrets_come_from_the_environment_alone() -> None:
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|ACCESS_KEY", key):
                assert re.fullmatch(r"\$\{[A-Z_]+:\?copy \.env\.example to \.env\}", value), f"{name}: {key}"
    assert example().keys() >= SECRETS


def test_every_image_is_a_target_and_no_user_is_root() -> None:
    stages = dict(re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE))
    assert "${BASE}" in stages and "ARG BASE=python:3.11-slim-bookworm" in DOCKERFILE
    built = {service["build"]["target"]: service["image"] for service in SERVICES.values() if "build" in service}
    assert {service["image"] for service in SERVICES.values()} == set(built.values())
    for target in built:
        stage = re.split(r"^FROM ", DOCKERFILE.split(f" AS {target}\n")[1], flags=re.MULTILINE)[0]
        users = re.findall(r"^USER (\S+)", stage, re.MULTILINE)
        assert users and users[-1] in {"mcc", "postgres"}


def test_the_guard_refuses_the_example_values_and_names_them() -> None:
    done = guard(**example())
    assert done.returncode == 1
    assert all(f"{name} (example value)" in done.stderr for name in SECRETS)
    assert not any(value in done.stderr for value in example().values() if value.startswith("change-me"))


def test_the_guard_lets_secrets_pass_and_names_one_that_is_missing_or_short() -> None:
    good = dict.fromkeys(SECRETS, "0123456789abcdef")
    assert guard(**good).returncode == 0
    short = guard(**good | {"RAY_AUTH_TOKEN": "short", "POSTGRES_PASSWORD": ""})
    assert short.returncode == 1
    assert "RAY_AUTH_TOKEN (shorter than 12 characters)" in short.stderr and "POSTGRES_PASSWORD (empty)" in short.stderr


@pytest.mark.parametrize("script", sorted((ROOT / "docker").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_parse(script: Path) -> None:
    shell = "bash" if script.read_text().startswith("#!/usr/bin/env bash") else "sh"
    assert subprocess.run([shell, "-n", str(script)], capture_output=True, text=True).stderr == ""


def test_the_smoke_script_says_so_where_no_engine_answers(tmp_path: Path) -> None:
    environ = os.environ | {"DOCKER_HOST": f"unix://{tmp_path}/no.sock"}
    done = subprocess.run(["bash", str(ROOT / "docker/smoke.sh")], env=environ, capture_output=True, text=True)
    assert done.returncode == 69 and "no Docker engine answers" in done.stdout
