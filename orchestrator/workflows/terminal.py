"""What a person sees while a sweep runs, and when it is over. Fed from the events in storage."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mcc_core.config import Experiment
from mcc_core.methods.registry import method_of
from orchestrator.analysis.ladder import ladder
from orchestrator.analysis.leaderboard import CAM, SEG, all_background, leaderboard, table, unscored
from orchestrator.planning.configurations import Trial
from orchestrator.planning.plan import Plan
from orchestrator.planning.remaining import Going, remaining_s
from orchestrator.records import layout
from orchestrator.records.events import EventReader
from orchestrator.records.results import Result
from orchestrator.records.status import ENDED, TrialStatus
from orchestrator.storage.store import Storage
from orchestrator.text import duration, shortened

_REFRESH_S = 1.0
_PLAIN_S = 15.0
_REASONS = {
    TrialStatus.NEW: "did not start; submit the sweep again",
    TrialStatus.STOPPED: "submit the sweep again to go on from its last checkpoint",
}
_STYLES = {
    TrialStatus.FINISHED: "green",
    TrialStatus.FAILED: "red",
    TrialStatus.RUNNING: "cyan",
    TrialStatus.PRUNED: "yellow",
}
_ORDER = (
    TrialStatus.RUNNING,
    TrialStatus.FAILED,
    TrialStatus.STOPPED,
    TrialStatus.WAITING,
    TrialStatus.PRUNED,
    TrialStatus.FINISHED,
)  # what is shown first when not all fits
_FIXED = 49  # width of the table without the trial's name, the iteration and the optional losses
_LOSS = 8  # width of one of those


@dataclass
class _Watched:
    trial: Trial
    reader: EventReader
    since: float  # unix seconds: what was stopped or failed before waits for its next attempt
    status: TrialStatus = TrialStatus.WAITING
    iteration: int = 0
    attempt: int = 1
    images: int = 0  # that a stage labels
    began: float = 0.0  # this attempt, and its last event; unix seconds
    told: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)

    def update(self) -> None:
        for _, events in self.reader:
            for event in events:
                self.iteration = (
                    max(self.iteration, event["iteration"]) if event["kind"] != "start" else event["iteration"]
                )
                if event["kind"] == "start":
                    self.status, self.attempt = TrialStatus.RUNNING, event["attempt"]
                    self.began = event["t"]
                    self.images = (event.get("info") or {}).get("images", self.images)
                elif event["kind"] == "metrics":
                    self.metrics |= event["metrics"]
                elif event["kind"] == "end":
                    again = event["t"] < self.since and event["status"] in (TrialStatus.STOPPED, TrialStatus.FAILED)
                    self.status = TrialStatus.WAITING if again else event["status"]
                self.told = event["t"]

    @property
    def total(self) -> int:
        """Iterations of a training; of labels the images, once they are known."""
        return self.images if self.trial.refine is not None else self.trial.experiment.train.iterations

    @property
    def done(self) -> str:
        """How far it is, for people."""
        return f"{self.iteration}/{self.total or '?'}"

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.iteration) / self.speed if self.speed and self.total else None

    @property
    def going(self) -> Going:
        """How far it is, in seconds."""
        loop_s = self.total / self.speed if self.speed and self.total else None
        return Going(self.status, max(0.0, self.told - self.began), loop_s, self.seconds_left)

    @property
    def speed(self) -> float | None:
        """Iterations, or images labelled, per second."""
        rate = self.metrics.get("images_per_second")
        batch = 1 if self.trial.refine is not None else self.trial.experiment.train.global_batch
        return rate / batch if rate else None


class SweepProgress:
    """A live table on a terminal; elsewhere a line now and then. Call `tick` often."""

    def __init__(self, plan: Plan, storage: Storage, console: Console) -> None:
        self.plan, self.console = plan, console
        self.began, self.since = time.monotonic(), time.time()
        self.note: str | None = None  # shown below the table, such as why MLflow waits
        self._storage = storage
        self._watched = [_Watched(t, EventReader(storage, t.identity), self.since) for t in plan.trials]
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._next = 0.0
        self._losses = shared_terms(t.experiment for t in plan.trials)  # beside the total

    def __enter__(self) -> SweepProgress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def add(self, trial: Trial) -> None:
        """Show one more trial, which a search proposed."""
        self._watched.append(_Watched(trial, EventReader(self._storage, trial.identity), self.since))

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
        digits = max(len(str(w.total)) for w in self._watched)
        room = self.console.width - _FIXED - max(9, 2 * digits + 1)
        longest = max(len(w.trial.name) for w in self._watched)
        losses = self._losses[: max(0, (room - min(longest, 24)) // _LOSS)]
        width = max(8, room - _LOSS * len(losses))
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("trial", "state"):
            table.add_column(name, no_wrap=True)
        for name in ("iteration", "loss", *losses, "CAM %", "seg %", "it/s", "ETA"):
            table.add_column(name, justify="right", no_wrap=True)
        shown = sorted(self._watched, key=lambda w: _ORDER.index(w.status))[: max(3, self.console.height - 5)]
        for w in self._watched if len(shown) == len(self._watched) else shown:
            table.add_row(*self._row(w, losses, width))
        hidden = len(self._watched) - len(shown)
        more = [Text(f"and {hidden} more", style="dim")] if hidden else []
        return Group(table, *more, Text(self._foot(), style="dim"))

    def _row(self, w: _Watched, losses: Sequence[str], width: int) -> list[str | Text]:
        state = w.status if w.attempt == 1 or w.status != TrialStatus.RUNNING else f"try {w.attempt}"
        going = w.status == TrialStatus.RUNNING
        return [
            shortened(w.trial.name, width),
            Text(state, style=_STYLES.get(w.status, "dim")),
            w.done if w.status != TrialStatus.WAITING else "",
            *(_number(w.metrics.get(f"loss/{name}"), 3) for name in ("total", *losses)),
            _percent(w.metrics.get(CAM)),
            _percent(w.metrics.get(SEG)),
            _number(w.speed, 1) if going else "",
            duration(w.seconds_left, short=True) if going and w.seconds_left is not None else "",
        ]

    def _foot(self) -> str:
        done = sum(w.status in ENDED for w in self._watched)
        text = f"{done} of {len(self._watched)} trials done, {duration(time.monotonic() - self.began)} so far"
        going = {w.trial.identity: w.going for w in self._watched}
        left = remaining_s([w.trial for w in self._watched], going, self.plan.seconds, self.plan.concurrent)
        text += f", about {duration(left)} to go" if left is not None else ""
        return text + (f"\n{self.note}" if self.note else "")

    def _line(self) -> str:
        running = [
            f"{w.trial.name}: {w.done}"
            + "".join(
                f" {name} {text}"
                for name, text in (
                    ("loss", _number(w.metrics.get("loss/total"), 3)),
                    ("CAM", _percent(w.metrics.get(CAM))),
                    ("seg", _percent(w.metrics.get(SEG))),
                )
                if text
            )
            for w in self._watched
            if w.status == TrialStatus.RUNNING
        ]
        return " | ".join([self._foot().replace("\n", "; "), *running[:4]])


def print_stage(name: str, began: float, console: Console) -> None:
    """What a stage of a command took, since a moment of `time.monotonic`."""
    console.print(f"{name}: {duration(time.monotonic() - began)}", style="dim", highlight=False)


def print_summary(plan: Plan, results: Sequence[Result], storage: Storage, console: Console, seconds: float) -> None:
    """One screen: leaderboard with the score of an empty prediction in it, failures, what to do next."""
    rows = leaderboard(results, plan.file.metric, plan.file.mode)
    if rows:
        lines = table(rows[:10], plan.file.metric, all_background(results))
        console.print(board(lines, f"{plan.sweep}: {duration(seconds)}, by {plan.file.metric}"))
        console.print(f"best: [bold]{rows[0].point}[/bold] {rows[0].text(plan.file.metric)}", highlight=False)
    print_ladder(results, console)
    if note := unscored(results, plan.file.metric):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    print_unfinished(results, console)
    places = [("summary", layout.sweep(plan.sweep)), ("pictures, checkpoints, logs", "trials")]
    for name, key in places:
        console.print(f"{name}: {storage.local(key) or storage.where(key)}", highlight=False, soft_wrap=True)
    console.print(
        "compare the runs: [bold]mcc ui[/bold]    again later: [bold]mcc sweep status[/bold]", highlight=False
    )


def print_ladder(results: Sequence[Result], console: Console) -> None:
    """What the stages of a sweep reached, and what each adds; nothing where it has none."""
    climbed = ladder(results)
    if climbed.levels:
        console.print(board(climbed.levels, "what each stage reached"))
    if climbed.steps:
        console.print(board(climbed.steps, "what each stage adds, seed by seed"))
    for note in climbed.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def print_unfinished(results: Sequence[Result], console: Console, most: int = 10) -> None:
    """Trials that have no result, or run and show no sign of it: why in a line, and the file with their last output."""
    well = {TrialStatus.FINISHED, TrialStatus.RUNNING}
    bad = [r for r in results if r.status not in well or (r.status == TrialStatus.RUNNING and r.message)]
    for result in bad[:most]:
        reason = result.message or _REASONS.get(result.status, "")
        console.print(f"{result.status} {result.name}: {reason}", highlight=False, markup=False, soft_wrap=True)
        if result.log and result.log not in reason:
            console.print(f"  {result.log}", highlight=False, markup=False, soft_wrap=True)
    if len(bad) > most:
        console.print(f"and {len(bad) - most} more; mcc sweep status", highlight=False)


def board(lines: Sequence[Sequence[str]], title: str) -> Table:
    """A leaderboard for the terminal."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    texts = {"configuration", "method", "stage", "scored", "less", "on", ""}
    for name in lines[0]:
        table.add_column(name, justify="left" if name in texts else "right", overflow="fold")
    for line in lines[1:]:
        table.add_row(*map(Text, line))
    return table


def shared_terms(experiments: Iterable[Experiment]) -> list[str]:
    """Loss terms of experiments, those that more methods have first: the others are dropped first where room is short.

    A method's terms keep its order, optional ones come after them.
    """
    told = dict.fromkeys((e.method, term) for e in experiments for term in method_of(e).terms_of(e))
    counts = Counter(term for _, term in told)
    return [term for term, _ in counts.most_common()]


def _number(value: Any, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "" if value is None else "-" if math.isnan(value) else f"{100 * value:.1f}"
