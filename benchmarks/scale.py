"""What more workers, more entities and more events cost: throughput, memory, time an event.

Workers: the events of one topic are predicted by one and by two real serve workers, which wait, stopped, while the
topic is filled. Entities: the features of an entity in one process, with random events over ever more entities that
are all known already; processor time, one thread. Memory: what the state of the transactions adds to a process.
"""

import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # it is run by its path

from benchmarks._common import finish, parser, scratch, table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from benchmarks._broker import Bench, Worker
    from featurestore.spec import View
    from featurestore.state import EntityState
    from streams.task import Task

    Inputs = tuple[dict[str, NDArray[np.float64]], None, dict[str, NDArray[np.int64]]]

WORKERS = (1, 2)
MEMORY_ENTITIES = 100_000
BATCH, STEP_MS = 1000, 50


def main() -> None:
    """Parse, measure, print."""
    made = parser(__doc__ or "")
    made.add_argument("--events", type=int, default=0, help="for the workers; default: 300,000, quick 60,000")
    made.add_argument(
        "--entities", type=int, default=0, help="at most so many; default: 10,000,000, quick 1,000,000"
    )
    args = made.parse_args()
    finish(lambda: measure(args), args.json)


def measure(args: Namespace) -> Mapping[str, float]:
    """Everything in turn; the figures."""
    events = args.events or (60_000 if args.quick else 300_000)
    most = args.entities or (1_000_000 if args.quick else 10_000_000)
    with scratch() as home:
        workers = _workers(home, events)
    return workers | _memory() | _entities(most, 100_000 if args.quick else 400_000)


def _workers(home: Path, events: int) -> dict[str, float]:
    from benchmarks._broker import Bench

    rows: list[list[str | float]] = []
    rates: dict[int, float] = {}
    with Bench(home, 4) as bench:
        tasks = {count: bench.clicks(f"clicks-{count}") for count in WORKERS}
        bench.register(list(tasks.values()))
        for count, task in tasks.items():
            wall_s, busy_s = _run(bench, task, count, events)
            rates[count] = events / wall_s
            rows.append([str(count), rates[count], rates[count] / rates[1], 1e6 * busy_s / events])
    print(
        f"{events:,} impressions in 4 partitions, exactly once, whole path; broker and workers on one machine\n"
    )
    print(table(["workers", "events/s", "times one", "µs of processor an event"], rows))
    return {"events_per_s": rates[1], "ratio_2_workers": rates[2] / rates[1]}


def _run(bench: "Bench", task: "Task", count: int, events: int) -> tuple[float, float]:
    """Seconds from letting the workers go to the last prediction, and processor seconds of all workers."""
    from benchmarks._process import processor_s
    from infra.kafka import group_ready, read_all
    from streams.topics import Topics

    topics = Topics.of(task)
    with ExitStack() as stack:
        workers = [stack.enter_context(bench.serve(task, str(number))) for number in range(count)]
        group = f"driftline-{task.name}-serve"
        bench.until(lambda: group_ready(bench.kafka, group, members=count), workers[0], "get its partitions")
        time.sleep(2.0)  # takes its partitions over
        with _stopped(workers):
            bench.fill(task, events, seed=count)
        started, before = time.time(), sum(processor_s(worker.process.pid) for worker in workers)
        bench.until(lambda: _predicted(bench, topics.predictions, events), workers[0], "predict all", 600.0)
        busy_s = sum(processor_s(worker.process.pid) for worker in workers) - before
    last_ms = max(record.timestamp for record in read_all(bench.kafka, topics.predictions))
    return last_ms / 1000 - started, busy_s


@contextmanager
def _stopped(workers: "list[Worker]") -> Iterator[None]:
    """The workers do nothing meanwhile; for less than their session's ten seconds."""
    for worker in workers:
        os.kill(worker.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            os.kill(worker.process.pid, signal.SIGCONT)


def _predicted(bench: "Bench", topic: str, events: int) -> bool:
    """Whether all events have their prediction; the end of the log also counts markers of transactions."""
    from infra.kafka import read_all

    return bench.count(topic) >= events and len(list(read_all(bench.kafka, topic))) >= events


def _memory() -> dict[str, float]:
    """What 100,000 customers and 100,000 terminals of the transactions add to this process, in MiB."""
    from benchmarks._process import resident_mb
    from streams.task import load_task

    task, figures, rows = load_task("transactions"), dict[str, float](), list[list[str | float]]()
    kept = [_known(view, 1) for view in task.views.values()]  # compiles, which takes memory too
    for view in task.views.values():
        before = resident_mb()
        state = _known(view, MEMORY_ENTITIES)
        kept.append(state)
        grown = resident_mb() - before
        rows.append([view.entity, state.bytes_per_entity, grown])
        figures[f"mb_100k_{view.entity}"] = grown
    print(f"\nMemory of {MEMORY_ENTITIES:,} entities, transactions\n")
    print(table(["entity", "bytes of a record", "MiB in all"], rows))
    return figures


def _known(view: "View", entities: int) -> "EntityState":
    """A state that knows so many entities, with one event each."""
    import numpy as np

    from featurestore.state import EntityState

    state = EntityState(view)
    for first in range(0, entities, 100_000):
        keys = _keys(np.arange(first, min(entities, first + 100_000), dtype=np.int64))
        state.update(keys, np.full(len(keys), 1_700_000_000_000), *_inputs(view, len(keys)))
    return state


def _keys(numbers: "NDArray[np.int64]") -> "NDArray[np.int64]":
    """Keys as pseudonyms are: spread over all 64 bits (the finaliser of SplitMix64)."""
    import numpy as np

    mixed = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(31)
    return (mixed * np.uint64(0xBF58476D1CE4E5B9)).view(np.int64)


def _inputs(view: "View", count: int) -> "Inputs":
    import numpy as np

    values = {name: np.linspace(1.0, 100.0, count) for name in view.values}
    return values, None, {name: np.arange(count, dtype=np.int64) for name in view.hashed}


def _entities(most: int, events: int) -> dict[str, float]:
    """µs of processor time an event of the clicks' user, for 10,000 to `most` known users."""
    import numpy as np

    from benchmarks._process import resident_mb
    from streams.task import load_task

    view = load_task("clicks").views["user"]
    sizes = [size for size in (10_000, 100_000, 1_000_000, 10_000_000) if size <= most]
    cost: dict[int, float] = {}
    rows: list[list[str | float]] = []
    for size in sizes:
        state = _known(view, size)
        random = np.random.default_rng(1)
        batches = [_keys(random.integers(0, size, BATCH)) for _ in range(events // BATCH)]
        inputs = _inputs(view, BATCH)
        started = time.process_time()
        for number, keys in enumerate(batches):
            state.update(keys, np.full(BATCH, 1_700_000_000_000 + STEP_MS * number), *inputs)
        cost[size] = 1e6 * (time.process_time() - started) / events
        rows.append([f"{size:,}", cost[size], cost[size] / cost[sizes[0]], resident_mb(), _bar(cost[size])])
        del state
    print("\nFeatures of one event, by the number of known users (clicks), events of random users\n")
    print(table(["users", "µs an event", "times the first", "MiB of this process", "█ = 0.1 µs"], rows))
    return {f"us_per_event_{size}": value for size, value in cost.items()} | {
        "cost_ratio": cost[sizes[-1]] / cost[sizes[0]]
    }


def _bar(value: float) -> str:
    return "█" * max(1, round(10 * value))


if __name__ == "__main__":
    main()
