"""What the shell completes: names that are cheap to find. Imports nothing heavy, asks no server."""

from __future__ import annotations

from pathlib import Path

from orchestrator.records import layout


def experiments(incomplete: str) -> list[str]:
    """Presets, and YAML files in the folder that is being typed."""
    from mcc_core.experiment_files import preset_names

    folder = Path(incomplete if incomplete.endswith("/") else Path(incomplete).parent)
    files = [str(file) for suffix in ("yaml", "yml") for file in sorted(folder.glob(f"*.{suffix}"))]
    return _begun([*preset_names(), *files], incomplete)


def fields(incomplete: str) -> list[str]:
    """Fields of an experiment, for `--set`."""
    from mcc_core.methods.registry import FROZEN, METHODS
    from mcc_core.validation import settable

    names = dict.fromkeys(name for method in (METHODS | FROZEN).values() for name in settable(method.experiment))
    return _begun([f"{name}=" for name in names], incomplete)


def tables(incomplete: str) -> list[str]:
    """Tables of the paper."""
    folder = Path(__file__).parents[1] / "reproduction" / "tables"
    return _begun(sorted(file.stem for file in folder.glob("*.yaml")), incomplete)


def sweep_names(incomplete: str) -> list[str]:
    """Ids of sweeps in a local storage; a bucket is not asked."""
    from orchestrator.settings import Settings

    storage = Settings.from_environment().storage
    if "://" in storage:
        return []
    return _begun(sorted(path.name for path in Path(storage, layout.SWEEPS).glob("*") if path.is_dir()), incomplete)


def _begun(names: list[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
