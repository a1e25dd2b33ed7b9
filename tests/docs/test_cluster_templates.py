"""The templates for clusters, as far as they can be looked at without Slurm and Kubernetes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import doc_commands as docs
import pytest
import yaml

CLUSTER = docs.ROOT / "docs/cluster"
BIN = Path(sys.executable).parent


def test_the_slurm_script_is_a_sound_shell_script() -> None:
    script = CLUSTER / "slurm.sbatch"
    for command in (["bash", "-n"], [str(BIN / "shellcheck")]):
        done = subprocess.run([*command, str(script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    lines = script.read_text().splitlines()
    settings = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert settings and max(settings) < first, "Slurm reads settings above the first command alone"


@pytest.mark.parametrize("command", ["start", "symmetric-run"])
def test_the_installed_ray_knows_the_options(command: str) -> None:
    known = subprocess.run([str(BIN / "ray"), "start", "--help"], capture_output=True, text=True).stdout
    known += subprocess.run([str(BIN / "ray"), command, "--help"], capture_output=True, text=True).stdout
    text = (docs.ROOT / "docs/cluster.md").read_text()
    used = re.findall(r"`(--[a-z-]+)`", text) + re.findall(r"^\$ ray .*$", text, re.M)
    used = [option for part in used for option in re.findall(r"--[a-z-]+", part) if option not in ("--on", "--set")]
    if command == "symmetric-run":
        call = re.search(r"ray symmetric-run(.*?)\s--\s", (CLUSTER / "slurm.sbatch").read_text(), re.S)
        assert call
        used = [*re.findall(r"--[a-z-]+", call[1]), "--num-cpus", "--num-gpus"]
    assert used and [option for option in used if option not in known] == []


def test_the_kubernetes_manifest_is_whole() -> None:
    documents = list(yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text()))
    named = {(d["kind"], d["metadata"]["name"]): d for d in documents}
    job = named["RayJob", "mask-ablation"]
    assert job["apiVersion"] == "ray.io/v1"
    cluster = job["spec"]["rayClusterSpec"]
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    pods: list[dict[str, Any]] = [
        job["spec"]["submitterPodTemplate"],
        head["template"],
        *(w["template"] for w in workers),
    ]
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        sources = {name for source in container["envFrom"] for name in (next(iter(source.values()))["name"],)}
        assert sources == {"mcc-settings", "mcc-keys"}, "each pod needs the storage, its keys and Ray's token"
        assert container["image"] == "IMAGE"
    (mount,) = head["template"]["spec"]["containers"][0]["volumeMounts"]
    (volume,) = head["template"]["spec"]["volumes"]
    assert mount["name"] == volume["name"] and ("ConfigMap", volume["configMap"]["name"]) in named
    words = job["spec"]["entrypoint"].split()
    assert docs.check_words(" ".join(words), whole=True) is None
    assert Path(words[-1]).parent == Path(mount["mountPath"])
    for group in workers:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_sweep_of_the_manifest_is_valid(tmp_path: Path) -> None:
    from orchestrator.spec.sweep_file import load_sweep

    documents = list(yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text()))
    (text,) = [d["data"]["sweep.yaml"] for d in documents if d["metadata"]["name"] == "mcc-sweep"]
    (tmp_path / "sweep.yaml").write_text(text)
    assert load_sweep(tmp_path / "sweep.yaml").base == "tiny"
