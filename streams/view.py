"""The terminal view of a run: a live table on a terminal, a line every few seconds anywhere else."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from infra.supervisor import RoleStatus
from streams.feed import Progress
from streams.task import Task
from streams.watch import Watch

_LINE_EVERY_S = 10.0
ARMS = {
    "frozen": "frozen before the drift",
    "continuous": "continuous",
    "champion": "swapped (the live model)",
    "served": "as served",
}
"""What is compared: arm → words. All but the last score an event when its label is there; what was served is older."""


class View:
    """Shows a `Watch` while a run goes on; notes (alerts, decisions) stay on the screen."""

    def __init__(self, console: Console, task: Task, events: int, drift_ms: int | None) -> None:
        self._console, self._task, self._events, self._drift_ms = console, task, events, drift_ms
        self._live = (
            Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        )
        self._line_at = 0.0
        self._told = 0
        self._drift_told = False

    def __enter__(self) -> Self:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)

    def show(self, watch: Watch, progress: Progress | None, roles: Sequence[RoleStatus]) -> None:
        """Show the present state."""
        self._tell_notes(watch, progress)
        if self._live:
            self._live.update(self._table(watch, progress, roles))
        elif time.monotonic() - self._line_at >= _LINE_EVERY_S:
            self._line_at = time.monotonic()
            self._console.print(self._line(watch, progress))

    def _tell_notes(self, watch: Watch, progress: Progress | None) -> None:
        """Print each alert and decision once, where it stays."""
        reached = progress.time_ms if progress else None
        if not self._drift_told and self._drift_ms and reached and reached >= self._drift_ms:
            self._drift_told = True
            self._console.print(f"[yellow]drift[/]     {_clock(self._drift_ms)}  the stream changes now")
        for note in watch.notes[self._told :]:
            self._console.print(_note(note))
        self._told = len(watch.notes)

    def _line(self, watch: Watch, progress: Progress | None) -> str:
        sent = progress.events if progress else 0
        metrics = ", ".join(f"{arm} {self._value(watch, arm)}" for arm in ARMS)
        return (
            f"{sent:,} of {self._events:,} events sent, {watch.rate():,.0f} predictions/s, "
            f"lag {self._lag(watch, progress):,}, {self._task.metric}: {metrics}, model {watch.version}"
        )

    def _table(self, watch: Watch, progress: Progress | None, roles: Sequence[RoleStatus]) -> Group:
        sent = progress.events if progress else 0
        median, p99 = watch.latency()
        table = Table.grid(padding=(0, 2))
        table.add_row("events sent", f"{sent:,} of {self._events:,}", "model", watch.version)
        table.add_row("predictions/s", f"{watch.rate():,.0f}", "model updates", f"{watch.refreshes:,}")
        table.add_row("lag (events)", f"{self._lag(watch, progress):,}", "alerts", str(len(watch.alerts)))
        table.add_row("latency p50, p99", f"{median} ms, {p99} ms", "swaps", str(len(watch.swaps)))
        arms = Table(box=None, padding=(0, 2), show_header=True, header_style="dim")
        arms.add_column("model")
        arms.add_column(f"rolling {self._task.metric.replace('_', ' ')}", justify="right")
        arms.add_column("")
        for arm, name in ARMS.items():
            row = watch.latest(arm)
            value = row[self._task.metric] if row else None
            arms.add_row(
                name,
                self._value(watch, arm),
                ProgressBar(total=1.0, completed=min(abs(value or 0.0), 1.0), width=40),
            )
        states = Text(
            "  ".join(f"{r.name} {r.state}{f' ({r.restarts}x)' if r.restarts else ''}" for r in roles), "dim"
        )
        bar = ProgressBar(total=self._events, completed=sent, width=60)
        return Group(bar, table, arms, states)

    def _lag(self, watch: Watch, progress: Progress | None) -> int:
        return max(0, (progress.events if progress else 0) - len(watch.predicted) - watch.dead_letters)

    def _value(self, watch: Watch, arm: str) -> str:
        row = watch.latest(arm)
        value = row[self._task.metric] if row else None
        return "—" if value is None else f"{value:.3f}"


def _note(note: dict[str, Any]) -> Text:
    if "alert_id" in note:
        return Text.assemble(("alert     ", "red"), f"{_clock(note['event_time'])}  {note['message']}")
    reason = note["reason"]
    if not reason.startswith(note["lineage"]):
        reason = f"{note['lineage']}: {reason}"
    style = {"promote": "bold green", "start": "cyan"}.get(note["action"], "dim")
    return Text.assemble((f"{note['action']:<9} ", style), f"{_clock(note['event_time'])}  {reason}")


def _clock(event_ms: int) -> str:
    return f"{datetime.fromtimestamp(event_ms / 1000, UTC):%Y-%m-%d %H:%M}"
