"""What a person sees of a running sweep, from the events in storage: on a terminal and in a log file."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from tiny import tiny_plan

from mcc_core.experiment_files import resolve
from orchestrator.planning.plan import Plan
from orchestrator.records.events import EventLog
from orchestrator.settings import Settings
from orchestrator.storage.outbox import Outbox
from orchestrator.storage.store import Storage
from orchestrator.workflows.terminal import SweepProgress, shared_terms


@pytest.fixture
def plan(settings: Settings) -> Plan:
    return tiny_plan(settings, parameters={"mask.ratio": [0.5, 0.6, 0.7]}, set={"train.iterations": 100})


def write(plan: Plan, storage: Storage, folder: Path) -> None:
    """The first trial finished, the second at 40 of 100 with two iterations a second, the third not begun."""
    outbox = Outbox(storage, folder / "outbox")
    batch = plan.trials[1].experiment.train.global_batch
    for trial, iteration in zip(plan.trials[:2], (100, 40), strict=True):
        log = EventLog(outbox, trial.identity, 1, flush_events=1)
        log.emit("start", 0, attempt=1, info={})
        seen = {"loss/total": 0.125, "images_per_second": 2.0 * batch, "val/cam/ms/miou": 0.5}
        log.emit("metrics", iteration, metrics=seen | {"val/seg/single/miou": float("nan")})
        if iteration == 100:
            log.emit("end", 100, status="finished", message="", metrics={}, launch="L")
        log.close()
    assert outbox.close(10)


def shown(plan: Plan, storage: Storage, *, terminal: bool, width: int = 120, height: int = 30) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, height=height, color_system=None)
    with SweepProgress(plan, storage, console) as progress:
        progress.tick()
        progress.tick()  # at once: shows nothing more
    return out.getvalue()


def test_a_log_file_gets_a_line(plan: Plan, storage: Storage, tmp_path: Path) -> None:
    write(plan, storage, tmp_path)
    (line,) = shown(plan, storage, terminal=False).splitlines()
    assert line.startswith("1 of 3 trials done") and line.count("ratio=") == 1
    assert line.endswith("| ratio=0.6: 40/100 loss 0.125 CAM 50.0 seg -")
    # 60 iterations and a whole trial that waits, two a second, as many at once as the plan has.
    assert f"about {'50 s' if plan.concurrent > 1 else '1 min 20 s'} to go" in line


def test_what_was_stopped_before_waits_for_its_next_attempt(plan: Plan, storage: Storage, tmp_path: Path) -> None:
    outbox = Outbox(storage, tmp_path / "outbox")
    for trial, status in zip(plan.trials, ("finished", "stopped", "failed"), strict=True):
        log = EventLog(outbox, trial.identity, 1, flush_events=1)
        log.emit("start", 0, attempt=1, info={})
        log.emit("end", 10, status=status, message="", metrics={}, launch="L")
        log.close()
    assert outbox.close(10)
    (line,) = shown(plan, storage, terminal=False).splitlines()
    assert line.startswith("1 of 3 trials done")


def test_a_terminal_gets_a_table_that_fits(plan: Plan, storage: Storage, tmp_path: Path) -> None:
    write(plan, storage, tmp_path)
    wide = shown(plan, storage, terminal=True)
    for cell in ("ratio=0.5", "finished", "running", "waiting", "40/100", "0.125", "50.0", "2.0"):
        assert cell in wide, cell
    for width in (80, 100, 200):
        lines = re.sub(r"\x1b\[[?\d]*\w|\r", "\n", shown(plan, storage, terminal=True, width=width)).splitlines()
        assert max(map(len, lines)) <= width and any(line.rstrip().endswith("ETA") for line in lines)
    low = shown(plan, storage, terminal=True, height=7)
    assert "ratio=0.6" in low and "ratio=0.5" in low


def test_storage_that_is_away_is_said_and_ends_nothing(
    plan: Plan, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise OSError("connection refused")

    monkeypatch.setattr(Storage, "list", away)
    assert "storage does not answer: connection refused" in shown(plan, storage, terminal=False)


def test_optional_terms_have_a_column_where_a_trial_has_them() -> None:
    mcc, fsr = resolve("tiny", {}), resolve("fsr-tiny", {})
    assert "fsr_patch" not in shared_terms([mcc, mcc])
    assert shared_terms([mcc, resolve("tiny", {"loss.fsr_patch": 0.1})])[-1] == "fsr_patch"
    terms = shared_terms([mcc, resolve("tiny", {"loss.fsr_patch": 0.1}), fsr])
    assert terms.index("fsr_patch") < terms.index("mcc") and len(terms) == len(set(terms))
