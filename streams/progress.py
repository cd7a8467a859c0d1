"""A feed on the terminal: a progress bar, Ctrl-C that stops after the item at hand, and what was sent at the end."""

import signal
import threading
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from streams.feed import Counts, Item, Progress, feed
from streams.task import Task


def feed_with_progress(
    items: Iterable[Item],
    total: int,
    task: Task,
    kafka: str,
    *,
    speed: float | None,
    rate: float | None,
    resume: Path | None,
    source: str,
    console: Console,
) -> Counts:
    """Feed items (see `feed.feed`) with a bar; Ctrl-C and SIGTERM end it with everything acknowledged counted."""
    stop = threading.Event()
    before = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Bar(*columns, console=console, transient=True) as bar:
            shown = bar.add_task(f"sending to {task.name}", total=total)

            def on_progress(progress: Progress) -> None:
                bar.update(shown, completed=progress.done)

            counts = feed(
                items, total, task, kafka, speed=speed, rate=rate, on_progress=on_progress, stop=stop, resume=resume,
                source=source,
            )  # fmt: skip
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    skipped = f", {counts.skipped:,} sent earlier" if counts.skipped else ""
    console.print(f"sent {counts.events:,} events and {counts.labels:,} labels{skipped}")
    if counts.stopped:
        again = f"; the same command with --resume {resume} goes on" if resume else ""
        console.print(f"stopped before the end{again}")
    return counts
