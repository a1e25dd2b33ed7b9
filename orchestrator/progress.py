"""What a person sees while a sweep runs, and when it is over. Fed from the events in storage."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator import report
from orchestrator.events import EventReader
from orchestrator.plan import Plan, Trial
from orchestrator.report import Result
from orchestrator.storage import Storage

_REFRESH_S = 1.0
_PLAIN_S = 15.0
_REASONS = {"new": "did not start", "stopped": "submit the sweep again to go on from its last checkpoint"}
LOSSES = ("total", "cls", "aff", "mcc", "seg")


@dataclass
class _Watched:
    trial: Trial
    reader: EventReader
    status: str = "waiting"
    iteration: int = 0
    attempt: int = 1
    metrics: dict[str, float] = field(default_factory=dict)

    def update(self) -> None:
        for _, events in self.reader:
            for event in events:
                self.iteration = (
                    max(self.iteration, event["iteration"]) if event["kind"] != "start" else event["iteration"]
                )
                if event["kind"] == "start":
                    self.status, self.attempt = "running", event["attempt"]
                elif event["kind"] == "metrics":
                    self.metrics |= event["metrics"]
                elif event["kind"] == "end":
                    self.status = event["status"]

    @property
    def seconds_left(self) -> float | None:
        config = self.trial.experiment.train
        rate = self.metrics.get("images_per_second")
        if not rate:
            return None
        return (config.iterations - self.iteration) * config.batch_size * config.workers / rate


class SweepProgress:
    """A live table on a terminal; elsewhere a line now and then. Call `tick` often."""

    def __init__(self, plan: Plan, storage: Storage, console: Console) -> None:
        self.plan, self.console = plan, console
        self.began = time.monotonic()
        self.note: str | None = None  # shown below the table, such as why MLflow waits
        self._watched = [_Watched(t, EventReader(storage, t.identity)) for t in plan.trials]
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._next = 0.0

    def __enter__(self) -> SweepProgress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def tick(self) -> None:
        """Read new events and show them, at most once a second."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (_REFRESH_S if self._live else _PLAIN_S)
        try:
            for watched in self._watched:
                watched.update()
        except OSError as error:
            self.note = f"storage does not answer: {error}"
        if self._live:
            self._live.update(self._view(), refresh=True)
        else:
            self.console.print(self._line(), highlight=False, soft_wrap=True)

    def _view(self) -> Group:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("trial", "state"):
            table.add_column(name, no_wrap=True)
        for name in ("iteration", *LOSSES, "CAM", "seg", "img/s", "ETA"):
            table.add_column(name, justify="right", no_wrap=True)
        for w in self._watched:
            losses = [_number(w.metrics.get(f"loss/{name}"), 3) for name in LOSSES]
            state = w.status if w.attempt == 1 or w.status != "running" else f"attempt {w.attempt}"
            table.add_row(
                w.trial.name,
                Text(state, style={"finished": "green", "failed": "red", "running": "cyan"}.get(w.status, "dim")),
                f"{w.iteration}/{w.trial.experiment.train.iterations}" if w.status != "waiting" else "",
                *losses,
                _percent(w.metrics.get(report.CAM)),
                _percent(w.metrics.get(report.SEG)),
                _number(w.metrics.get("images_per_second"), 1) if w.status == "running" else "",
                duration(w.seconds_left) if w.status == "running" and w.seconds_left is not None else "",
            )
        return Group(table, Text(self._foot(), style="dim"))

    def _foot(self) -> str:
        done = sum(w.status in {"finished", "failed", "stopped"} for w in self._watched)
        text = f"{done} of {len(self._watched)} trials done, {duration(time.monotonic() - self.began)} so far"
        left = self._left()
        text += f", about {duration(left)} to go" if left is not None else ""
        return text + (f"\n{self.note}" if self.note else "")

    def _left(self) -> float | None:
        """Seconds until all trials are done, at the pace of those that run."""
        known = [w for w in self._watched if w.seconds_left is not None and w.status == "running"]
        if not known:
            return None
        full = [
            w.seconds_left * w.trial.experiment.train.iterations / (w.trial.experiment.train.iterations - w.iteration)
            for w in known
            if w.seconds_left and w.iteration < w.trial.experiment.train.iterations
        ]
        waiting = sum(w.status == "waiting" for w in self._watched)
        mean = sum(full) / len(full) if full else 0.0
        work = sum(w.seconds_left or 0.0 for w in known) + waiting * mean
        return work / max(1, min(self.plan.concurrent, len(known) + waiting))

    def _line(self) -> str:
        running = [
            f"{w.trial.name}: {w.iteration}/{w.trial.experiment.train.iterations}"
            f" loss {_number(w.metrics.get('loss/total'), 3)} seg {_percent(w.metrics.get(report.SEG))}"
            for w in self._watched
            if w.status == "running"
        ]
        return " | ".join([self._foot().replace("\n", "; "), *running])


def print_summary(plan: Plan, results: Sequence[Result], console: Console, *, home: str, seconds: float) -> None:
    """One screen: leaderboard with the score of an empty prediction beside it, failures, what to do next."""
    rows = report.leaderboard(results, plan.file.metric, plan.file.mode)
    if rows:
        lines = report.table(rows[:10], plan.file.metric)
        table = Table(title=f"{plan.sweep}: {duration(seconds)}", title_justify="left", box=None, pad_edge=False)
        for name in lines[0]:
            table.add_column(name, justify="left" if name in {"configuration", ""} else "right")
        for line in lines[1:]:
            table.add_row(*line)
        console.print(table)
        floor = report.all_background(results)
        if floor is not None:
            console.print(f"everything background scores {100 * floor:.1f} mIoU on the same images", highlight=False)
        console.print(f"best: [bold]{rows[0].point}[/bold]")
    for result in results:
        if result.status != "finished":
            reason = result.message or _REASONS.get(result.status, "")
            console.print(f"[red]{result.status}[/red] {result.name}: {reason}", highlight=False)
    console.print(f"pictures and checkpoints: {home}", highlight=False, soft_wrap=True)
    console.print(
        "compare the runs: [bold]mcc ui[/bold]    again later: [bold]mcc sweep status[/bold]", highlight=False
    )


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _number(value: Any, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
