"""The event log: order, cursors, what survives a crash or storage that is away, and each iteration once."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from mcc_core.errors import MCCError
from orchestrator.records.events import EventLog, EventReader, history, segments, settled, trial_state, write_end
from orchestrator.records.status import TrialStatus
from orchestrator.settings import Settings
from orchestrator.storage.outbox import Outbox
from orchestrator.storage.store import Storage


@pytest.fixture
def settings(settings_of_each_kind: Settings) -> Settings:
    return settings_of_each_kind


@pytest.fixture
def outbox(tmp_path: Path, storage: Storage) -> Outbox:
    return Outbox(storage, tmp_path / "outbox")


def iterations(storage: Storage, kind: str = "metrics") -> list[int]:
    return [e["iteration"] for e in history(storage, "t") if e["kind"] == kind]


def test_events_come_back_in_order_and_a_cursor_goes_on_where_it_was(storage: Storage, outbox: Outbox) -> None:
    log = EventLog(outbox, "t", 1, flush_events=3)
    reader = EventReader(storage, "t")
    for i in range(7):
        log.emit("metrics", i, metrics={"a": i / 3})
    assert outbox.drain(10)
    first = [e for _, events in reader for e in events]
    log.emit("end", 7, status="finished", message="", metrics={"m": 1.0}, launch="x")
    log.close()
    assert outbox.close(10)
    rest = [e for _, events in EventReader(storage, "t", reader.cursor) for e in events]
    assert len(first) >= 6 and len(first) + len(rest) == 8
    assert [e["iteration"] for e in first + rest] == list(range(8))
    assert first[1]["metrics"] == {"a": 1 / 3}
    assert [e for _, events in EventReader(storage, "t") for e in events] == first + rest
    assert trial_state(storage, "t").metrics == {"m": 1.0}


def test_events_reach_storage_by_themselves(storage: Storage, outbox: Outbox) -> None:
    log = EventLog(outbox, "t", 1, flush_s=0.1)
    log.emit("metrics", 1, metrics={})
    deadline = time.monotonic() + 10
    while not segments(storage, "t") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert segments(storage, "t") == ["0001-000001.jsonl"]
    log.close()


def test_an_attempt_replaces_what_was_done_after_its_checkpoint(storage: Storage, outbox: Outbox) -> None:
    for attempt, first, last in ((1, 0, 7), (2, 4, 6), (3, 4, 10)):
        log = EventLog(outbox, "t", attempt)
        log.emit("start", first, attempt=attempt, info={})
        for i in range(first + 1, last + 1):
            log.emit("metrics", i, metrics={"attempt": attempt})
        log.close()
    outbox.close(10)
    assert iterations(storage) == list(range(1, 11))
    assert iterations(storage, "start") == [0, 4, 4]
    assert [e["metrics"]["attempt"] for e in history(storage, "t") if e["kind"] == "metrics"] == [1] * 4 + [3] * 6


def test_settled_keeps_an_undisturbed_log_as_it_is() -> None:
    events = [{"kind": "start", "iteration": 0}, {"kind": "metrics", "iteration": 5}, {"kind": "end", "iteration": 5}]
    assert settled(events) == events


def test_a_killed_writer_leaves_whole_segments_and_the_next_one_sends_the_rest(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from orchestrator.records.events import EventLog
        from orchestrator.storage.outbox import Outbox
        from orchestrator.storage.store import Storage
        folder = Path(sys.argv[1])
        outbox = Outbox(Storage(str(folder / "storage")), folder / "outbox")
        log = EventLog(outbox, "t", 1, flush_events=2)
        for i in range(101):
            log.emit("metrics", i, metrics={"x": 1.0})
            if i == 100:
                os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=120)
    assert done.returncode == -9
    storage = Storage(str(tmp_path / "storage"))
    assert Outbox(storage, tmp_path / "outbox").close(20)
    assert iterations(storage) == list(range(100))  # the last event was in no segment yet
    assert trial_state(storage, "t").status == "running"


def test_nothing_is_lost_while_storage_is_away(tmp_path: Path) -> None:
    target = tmp_path / "storage"
    target.write_text("a file where the folder should be: every write fails")
    storage = Storage(str(target))
    outbox = Outbox(storage, tmp_path / "outbox")
    log = EventLog(outbox, "t", 1, flush_events=1)
    for i in range(5):
        log.emit("metrics", i, metrics={})
    assert not outbox.drain(1)
    assert outbox.error
    target.unlink()
    log.close()
    assert outbox.close(20)
    assert iterations(storage) == list(range(5))


def test_an_outbox_keeps_the_order_of_puts_and_deletes(tmp_path: Path, storage: Storage, outbox: Outbox) -> None:
    file = tmp_path / "big"
    file.write_bytes(b"x" * 1000)
    outbox.put("a/one", b"1")
    outbox.put_file("a/two", file)
    outbox.put_delete("a/one")
    outbox.put("a/two", b"2")
    assert outbox.close(10)
    assert (storage.list("a"), storage.read("a/two"), file.exists()) == (["a/two"], b"2", False)


def test_an_end_from_outside_is_the_last_word(storage: Storage, outbox: Outbox) -> None:
    assert trial_state(storage, "t").status == "new"
    log = EventLog(outbox, "t", 3)
    log.emit("start", 0, attempt=3, info={})
    log.close()
    outbox.close(10)
    assert trial_state(storage, "t").status == "running"
    write_end(storage, "t", TrialStatus.FAILED, "gone", launch="L")
    state = trial_state(storage, "t")
    assert (state.status, state.attempt, state.message, state.launch) == ("failed", 3, "gone", "L")


def test_a_spoiled_segment_is_named(storage: Storage) -> None:
    storage.write("trials/t/events/0001-000001.jsonl", b'{"kind": "sta')
    with pytest.raises(MCCError, match=r"0001-000001\.jsonl: line 1 is not an event"):
        history(storage, "t")


def test_partial_files_of_a_crash_are_not_seen(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))  # S3 has no such files
    storage.write("trials/t/events/0001-000001.jsonl", b'{"kind": "start", "iteration": 0}\n')
    folder = storage.local("trials/t/events")
    assert folder is not None
    (folder / f".0001-000002.jsonl.{os.getpid()}.part").write_bytes(b'{"kind": "met')
    assert segments(storage, "t") == ["0001-000001.jsonl"]
