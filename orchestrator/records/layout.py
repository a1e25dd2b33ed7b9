"""Every key of the storage: what lies where. No other module builds one."""

from __future__ import annotations

TRIALS = "trials"
SWEEPS = "sweeps"
LEASES = "leases"
LABELS = "labels"
FILES = "files"
RAY = "ray"


def trial(identity: str) -> str:
    """Folder of everything that a trial keeps."""
    return f"{TRIALS}/{identity}"


def events(identity: str) -> str:
    """Folder of a trial's event segments."""
    return f"{trial(identity)}/events"


def attempts(identity: str) -> str:
    """Folder of the attempts of a trial that were begun."""
    return f"{trial(identity)}/attempts"


def waiting(identity: str) -> str:
    """A mark: no node has room for the trial's worker."""
    return f"{trial(identity)}/waiting.json"


def checkpoints(identity: str) -> str:
    """Folder of a trial's checkpoints."""
    return f"{trial(identity)}/checkpoints"


def logs(identity: str) -> str:
    """Folder of what a trial's processes printed."""
    return f"{trial(identity)}/logs"


def images(identity: str) -> str:
    """Folder of a trial's CAM panels."""
    return f"{trial(identity)}/images"


def environment(identity: str) -> str:
    """The record of what a trial ran on."""
    return f"{trial(identity)}/environment.json"


def labels(identity: str) -> str:
    """Folder of the label set that a stage made."""
    return f"{LABELS}/{identity}"


def label_set(identity: str) -> str:
    """A label set, packed."""
    return f"{labels(identity)}/labels.zip"


def sweep(name: str) -> str:
    """Folder of a sweep."""
    return f"{SWEEPS}/{name}"


def plan(name: str) -> str:
    """A sweep's plan, with all of its trials."""
    return f"{sweep(name)}/plan.json"


def results(name: str) -> str:
    """What a sweep's finished trials reached, in one file."""
    return f"{sweep(name)}/results.json"


def state(name: str) -> str:
    """How a sweep stands and what of its budget it used."""
    return f"{sweep(name)}/state.json"


def sent_file(digest: str, name: str) -> str:
    """A file of a submitting machine, such as weights, under its SHA-256."""
    return f"{FILES}/{digest}/{name}"


def search(name: str) -> str:
    """What a sweep's search proposed so far."""
    return f"{sweep(name)}/search.json"


def population(name: str) -> str:
    """The members of population based training."""
    return f"{sweep(name)}/population.json"


def stop(name: str) -> str:
    """A flag: the sweep's trials are to write a checkpoint and stop."""
    return f"{sweep(name)}/stop"


def prunes(name: str) -> str:
    """Folder of flags: trials that the scheduler ends."""
    return f"{sweep(name)}/prune"


def prune(name: str, identity: str) -> str:
    """A flag with the reason why the scheduler ends a trial."""
    return f"{prunes(name)}/{identity}"


def lease(launch: str) -> str:
    """Who runs or deletes which trials."""
    return f"{LEASES}/{launch}.json"


def speeds(profile: str) -> str:
    """Folder of what trials of a speed profile measured."""
    return f"speeds/{profile}"


def speed(profile: str, identity: str) -> str:
    """What one trial measured."""
    return f"{speeds(profile)}/{identity}.json"
