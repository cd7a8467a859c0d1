"""What bad records and bursts do to a serve worker: how much slower good events get, and how much memory it takes.

Flood: the same good events are worked off alone and among as many records of every bad kind (no JSON, wrong types,
NaN, deep nesting, broken UTF-8, null, 10 KB of junk). Burst: a worker that had a steady stream gets so many events at
once as ten times its rate brings in `--seconds`; its memory is looked at all the time until it has caught up.
"""

import itertools
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # it is run by its path

from benchmarks._common import finish, parser, scratch, table

if TYPE_CHECKING:
    from benchmarks._broker import Bench, Worker
    from streams.feed import Item
    from streams.task import Task

BAD: tuple[bytes, ...] = (
    b"no json at all",
    b'{"event_id": 7, "user_id": [], "item_id": {}, "position": "first", "timestamp": "yesterday"}',
    b'{"event_id": "x", "position": NaN}',
    b"[" * 2000 + b"]" * 2000,
    b'{"event_id": "\xff\xfe", "user_id": "u"}',
    b"",
    b'{"junk": "' + b"x" * 10_000 + b'"}',
    b"null",
)


def main() -> None:
    """Parse, measure, print."""
    made = parser(__doc__ or "")
    made.add_argument("--events", type=int, default=0, help="good ones; default: 200,000, quick 40,000")
    made.add_argument("--rate", type=float, default=2000.0, help="events/s before the burst (default: 2,000)")
    made.add_argument("--seconds", type=float, default=0.0, help="of the burst; default: 20, quick 4")
    args = made.parse_args()
    finish(lambda: measure(args), args.json)


def measure(args: Namespace) -> Mapping[str, float]:
    """Flood and burst; the figures."""
    from benchmarks._broker import Bench

    events = args.events or (40_000 if args.quick else 200_000)
    seconds = args.seconds or (4.0 if args.quick else 20.0)
    with scratch() as home, Bench(home, 4) as bench:
        names = ("alone", "flooded", "burst")
        tasks = {name: bench.clicks(f"clicks-{name}") for name in names}
        bench.register(list(tasks.values()))
        return _flood(bench, tasks, events) | _burst(bench, tasks["burst"], args.rate, seconds)


def _flood(bench: "Bench", tasks: Mapping[str, "Task"], events: int) -> dict[str, float]:
    rows: list[list[str | float]] = []
    rates = {}
    for name, mixed in (("alone", False), ("flooded", True)):
        _send(bench, tasks[name], _mixed(_good(events, 1), mixed), 2 * events if mixed else events)
        rates[name], letters = _work_off(bench, tasks[name], events)
        rows.append([name, rates[name], rates["alone"] / rates[name], letters])
    print(f"{events:,} good impressions, one worker, exactly once; flooded: one bad record before each\n")
    print(table(["good events", "good ones a second", "times slower", "dead letters"], rows))
    return {"good_per_s": rates["alone"], "flood_slowdown": rates["alone"] / rates["flooded"]}


def _good(events: int, seed: int) -> "Iterator[Item]":
    from streams.simulate import simulate

    return (item for item in simulate("clicks", seed=seed, events=events).items() if item.kind == "event")


def _mixed(good: "Iterable[Item]", mixed: bool) -> "Iterator[Item]":
    bad = itertools.cycle(BAD)
    for item in good:
        if mixed:
            yield item._replace(value=next(bad))
        yield item


def _send(bench: "Bench", task: "Task", items: "Iterable[Item]", count: int) -> None:
    from streams.feed import feed

    feed(items, count, task, bench.kafka)


def _work_off(bench: "Bench", task: "Task", events: int) -> tuple[float, int]:
    """Good events a second (`Bench.rate`), and how many records were refused."""
    from infra.kafka import read_all
    from streams.topics import Topics

    with bench.serve(task) as worker:
        _until_predicted(bench, worker, task, events)
    letters = sum(1 for _ in read_all(bench.kafka, Topics.of(task).dead_letters))
    return bench.rate(task, events), letters


def _until_predicted(bench: "Bench", worker: "Worker", task: "Task", events: int) -> None:
    from infra.kafka import read_all
    from streams.topics import Topics

    topic = Topics.of(task).predictions

    def done() -> bool:
        return bench.count(topic) >= events and sum(1 for _ in read_all(bench.kafka, topic)) >= events

    bench.until(done, worker, "predict all", 600.0)


def _burst(bench: "Bench", task: "Task", rate: float, seconds: float) -> dict[str, float]:
    from streams.feed import feed

    steady, burst = int(rate * max(5.0, seconds / 2)), int(10 * rate * seconds)
    with bench.serve(task) as worker:
        bench.await_group(f"driftline-{task.name}-serve", worker)
        with _Memory(worker) as before:
            feed(_good(steady, 2), steady, task, bench.kafka, rate=rate)
            _until_predicted(bench, worker, task, steady)
        with _Memory(worker) as during:
            _send(bench, task, _good(burst, 3), burst)
            started = time.monotonic()
            _until_predicted(bench, worker, task, steady + burst)
            caught_up_s = time.monotonic() - started
    grown = during.most - before.most
    rows: list[list[str | float]] = [
        [f"steady, {rate:g} events/s", steady, before.most, ""],
        ["burst", burst, during.most, f"{caught_up_s:.1f}"],
    ]
    print("\nMemory of the worker, and how long after the burst it had caught up\n")
    print(table(["stream", "events", "most MiB", "seconds behind"], rows))
    return {"burst_mb_grown": grown, "burst_memory_ratio": during.most / before.most}


class _Memory:
    """The most memory that a worker had while the body ran, in MiB."""

    def __init__(self, worker: "Worker") -> None:
        self._pid, self._end = worker.process.pid, threading.Event()
        self.most = 0.0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        from benchmarks._process import resident_mb

        look: Callable[[int], float] = resident_mb
        while not self._end.wait(0.05):
            self.most = max(self.most, look(self._pid))


if __name__ == "__main__":
    main()
